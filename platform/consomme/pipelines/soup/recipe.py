"""The recipe of `soup`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from consomme.base.bounds import NonNegativeFloat, PositiveFloat, PositiveInt
from consomme.base.checked import Checked, rule
from consomme.base.schema import added, located, own_modules, runtime, strategy
from consomme.base.suggest import did_you_mean
from consomme.evaluate.early_stop import EarlyStop
from consomme.evaluate.engine_rules import DEFAULT_ENGINE, dtype_problems, guidance_problems
from consomme.evaluate.guards import Guard
from consomme.soup.methods import METHODS
from consomme.storage.options import StorageOptions

DEFAULT_SEARCHES: tuple[dict[str, Any], ...] = ({"name": "uniform"}, {"name": "greedy"})

_NEEDS_ALL = {"uniform", "maximum", "beam", "pairs", "nsga2"}
"""Searches that need the scores of all their candidates."""


@dataclass(frozen=True, kw_only=True)
class SoupRecipe(Checked):
    """Ingredients of a model soup, and how to choose among them."""

    name: str
    """Name of the run."""

    ingredients: dict[str, str] | str = located()
    """Label -> model: models fine-tuned from the same checkpoint, or LoRA adapters of `base`, in
    PEFT's format. Or the folder of a finished sweep: the models of all its trials that are done and
    pass the sweep's guards, labelled by what differs between them."""

    modules: tuple[str, ...] = own_modules()
    """Python files of yours that register benchmarks or metrics: paths from the current directory,
    or beside the recipe. Their text goes to workers; what they import has to be installed there."""

    benchmark: dict[str, Any] | None = strategy(
        "consomme.evaluate.benchmarks:BENCHMARKS", default=None
    )
    """Held-out benchmark that decides which ingredients are used, by its main figure; `weighted`
    takes several. A `likelihood` of held-out answers chooses by their loss. None: all ingredients
    are mixed, by their `weights`, and nothing is measured."""

    method: dict[str, Any] = strategy(
        "consomme.soup.methods:METHODS", default={"name": "average"}, was_added=True
    )
    """How weights are mixed; see consomme/soup/methods.py."""

    weights: dict[str, NonNegativeFloat] = added({})
    """Label -> weight, in any unit, if there is no benchmark; empty: equal ones."""

    dtype: Literal["float32", "bfloat16", "float16"] | None = added(None)
    """Type of the mixed weights; None: that of the first ingredient."""

    max_shard_gb: PositiveFloat | None = added(None)
    """Largest file of weights, in GB (10^9 bytes); None: files as the first ingredient has them."""

    report: tuple[dict[str, Any], ...] = strategy(
        "consomme.evaluate.benchmarks:BENCHMARKS", default=(), was_added=True
    )
    """Benchmarks that report the soup of each search and the best single ingredient, and choose
    nothing; their questions must not be among those of `benchmark`."""

    reports_what_it_chose_by: bool = runtime(False)
    """Allow `report` to have questions of `benchmark`."""

    base: str | None = located(None)
    """The model that the ingredients were tuned from, which `guards` compare with, which some
    methods take differences from, and which adapters are added to."""

    guards: tuple[Guard, ...] = added(())
    """Benchmarks, such as one of texts alone, on which a soup may be only so much worse than
    `base`; candidates that lose more are not chosen."""

    root: str = runtime("runs")
    """Where run folders are created: a local path or a URL."""

    storage: StorageOptions = runtime(StorageOptions())
    """How patient the run is with its storage."""

    searches: tuple[dict[str, Any], ...] = strategy(
        "consomme.soup.searches:SEARCHES", default=DEFAULT_SEARCHES
    )
    """Ways to choose ingredients; the best result of all becomes the soup."""

    engine: dict[str, Any] = strategy(
        "consomme.engines.generation.registry:GENERATION_ENGINES",
        default=DEFAULT_ENGINE,
        was_added=True,
    )
    """What candidates answer with, mixed in its memory: `transformers` or `vllm`; see
    consomme/engines/generation/registry.py. Its `dtype` has to be named, as for `evaluate`."""

    early_stop: EarlyStop | None = added(None)
    """Ask a candidate no more when it is worse, most likely, than the best one so far, on the same
    questions of `benchmark`; it is never the soup then. None: all are asked all questions."""

    num_actors: PositiveInt | None = runtime(None)
    """Candidates to score in parallel; None: one per GPU. Without GPUs: one per CPU for
    transformers, else one."""

    @rule
    def _has_ingredients(self) -> Iterator[str]:
        if isinstance(self.ingredients, str):
            if not self.ingredients:
                yield "ingredients: found an empty text, expected models or the folder of a sweep"
        elif len(self.ingredients) < 2:
            yield f"ingredients: found {len(self.ingredients)}, a soup needs at least two"

    @rule
    def _has_searches(self) -> Iterator[str]:
        if not self.searches:
            yield "searches: found none, expected at least one {name: …}"
        names = [str(one["name"]) for one in self.searches]
        for name in dict.fromkeys(name for name in names if names.count(name) > 1):
            yield f"searches: found {name} {names.count(name)} times, whose soups have one name"
        if self.benchmark is None:
            return
        if self.early_stop and not set(names) - _NEEDS_ALL:
            yield (
                f"early_stop: found one, but {' and '.join(names)} need the scores of all"
                " candidates; expected another search too, such as greedy"
            )
        if "nsga2" in names and not (self.guards or self.benchmark["name"] == "weighted"):
            yield (
                "searches: found nsga2 with one objective; give it several as guards, or as a"
                " benchmark {name: weighted, parts: […]}"
            )

    @rule
    def _engine_in_place(self) -> Iterator[str]:
        yield from dtype_problems(self.engine, "engine")
        name = str(self.engine["name"])
        if name == "openai":
            yield (
                "engine: found openai, but candidates are mixed in the engine's memory; expected"
                " {name: transformers} or {name: vllm}"
            )
        if self.engine.get("adapter"):
            yield (
                "engine.adapter: found one, but an adapter is an ingredient here: name it in"
                " ingredients, and its model as base"
            )
        if (each := self.engine.get("tensor_parallel") or 1) > 1:
            yield (
                f"engine.tensor_parallel: found {each}, expected 1: candidates are mixed in the"
                " engine's own process; write the soup, and evaluate it over several GPUs"
            )
        if self.engine.get("own_process"):
            yield (
                "engine.own_process: found true, but candidates are mixed in the engine's own"
                " process; leave it out"
            )
        nodes = {"benchmark": self.benchmark} if self.benchmark is not None else {}
        nodes |= {f"guards[{k}].benchmark": one.benchmark for k, one in enumerate(self.guards)}
        nodes |= {f"report[{k}]": node for k, node in enumerate(self.report)}
        for where, node in nodes.items():
            yield from guidance_problems(node, name, where)

    @rule
    def _guards_have_a_base(self) -> Iterator[str]:
        if self.guards and self.base is None:
            yield (
                "base: missing; guards say how much a soup may be worse than the model that its"
                " ingredients were tuned from, so name that model"
            )
        needs_base = METHODS.get(str(self.method["name"])).needs_base
        if needs_base and self.base is None:
            yield (
                f"base: missing; {self.method['name']} mixes differences from the model that the"
                " ingredients were tuned from, so name that model"
            )

    @rule
    def _nothing_measured_without_benchmark(self) -> Iterator[str]:
        if self.benchmark is not None:
            if self.weights:
                yield "weights: found some with a benchmark, by which searches choose them"
            return
        if self.early_stop:
            yield "benchmark: missing; early_stop compares candidates by it"
        if self.guards or self.report:
            yield (
                "benchmark: missing; guards and report measure what a search chooses by it. Without"
                " one all ingredients are mixed, and `consomme evaluate` measures the soup"
            )
        # A node that was read from a recipe has all parameters.
        if [one["name"] for one in self.searches] != [one["name"] for one in DEFAULT_SEARCHES]:
            yield "benchmark: missing; searches choose by it"

    @rule
    def _weights_of_ingredients(self) -> Iterator[str]:
        if not self.weights:
            return
        if not sum(self.weights.values()):
            yield "weights: found only zeros"
        if isinstance(self.ingredients, str):
            # The labels of a sweep's models are known when it is done.
            return
        for label in self.weights.keys() - self.ingredients.keys():
            yield f"weights.{label}: no such ingredient{did_you_mean(label, self.ingredients)}"
        for label in self.ingredients.keys() - self.weights.keys():
            yield f"weights.{label}: missing; give each ingredient a weight, 0 leaves it out"

    @property
    def models(self) -> dict[str, str]:
        """The ingredients by label; those of a sweep were looked up before, see `with_models`."""
        assert not isinstance(self.ingredients, str)
        return self.ingredients
