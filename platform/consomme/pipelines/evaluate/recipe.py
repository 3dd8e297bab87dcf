"""The recipe of `evaluate`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from consomme.base.bounds import Fraction, PositiveInt
from consomme.base.checked import Checked, rule
from consomme.base.needs import Need
from consomme.base.schema import added, located, own_modules, runtime, strategy
from consomme.evaluate.engine_rules import (
    DEFAULT_ENGINE,
    dtype_problems,
    guidance_problems,
    likelihood_problems,
)
from consomme.evaluate.names import benchmark_name
from consomme.storage.options import StorageOptions


@dataclass(frozen=True, kw_only=True)
class EvaluateRecipe(Checked):
    """Models to evaluate, and the benchmarks to evaluate them on."""

    name: str
    """Name of the run."""

    models: dict[str, str] = located()
    """Label -> model: a folder, a run, a URL, `org/name` on the hub, or `package://models/nano`."""

    modules: tuple[str, ...] = own_modules()
    """Python files of yours that register benchmarks or metrics: paths from the current directory,
    or beside the recipe. Their text goes to workers; what they import has to be installed there."""

    benchmarks: tuple[dict[str, Any], ...] = strategy("consomme.evaluate.benchmarks:BENCHMARKS")
    """Benchmarks; see consomme/evaluate/benchmarks.py."""

    template: dict[str, bool | int | str] = field(default_factory=dict)
    """Options of the models' chat templates, such as `{enable_thinking: true}`; thinking is off if
    it is not named here."""

    engine: dict[str, Any] = strategy(
        "consomme.engines.generation.registry:GENERATION_ENGINES",
        default=DEFAULT_ENGINE,
        was_added=True,
    )
    """What runs the models: `transformers`, `vllm` or `openai`; see
    consomme/engines/generation/registry.py. Its `dtype` has to be named: answers are cached, and it
    decides them."""

    root: str = runtime("runs")
    """Where run folders are created: a local path or a URL."""

    storage: StorageOptions = runtime(StorageOptions())
    """How patient the run is with its storage."""

    unit_items: PositiveInt = added(64)
    """Maximum number of requests per unit, which is what is retried, resumed and committed."""

    max_reject_fraction: Fraction = runtime(1.0)
    """The run fails if more than this share of all requests cannot be answered. Those that cannot
    be are answered wrongly, and are counted; a benchmark of which nothing can be asked always fails
    the run."""

    num_actors: PositiveInt | None = runtime(None)
    """Maximum number of engines; None: one per GPU, or per group of GPUs. Without GPUs: one per CPU
    for transformers, else one."""

    min_actors: PositiveInt = runtime(1)
    """Minimum number of engines; the pool scales between the two with the work and the nodes."""

    def needs(self, num_gpus: float) -> Iterator[Need]:
        """Yield what the run claims at least: the smallest pool of engines."""
        each = float(self.engine.get("tensor_parallel") or 1)
        is_remote = self.engine.get("name") == "openai"
        yield Need(
            key=f"min_actors={self.min_actors}",
            count=self.min_actors,
            cpus=0.8,
            gpus=each if num_gpus and not is_remote else 0.0,
        )
        if each > 1 and not num_gpus:
            yield Need(key=f"engine.tensor_parallel={each:g}", count=self.min_actors, gpus=each)

    @rule
    def _named_dtype(self) -> Iterator[str]:
        yield from dtype_problems(self.engine, "engine")

    @rule
    def _known_likelihoods(self) -> Iterator[str]:
        if self.engine.get("name") == "openai":
            for k, node in enumerate(self.benchmarks):
                yield from likelihood_problems(node, f"benchmarks[{k}]")

    @rule
    def _guided_with_logits(self) -> Iterator[str]:
        for k, node in enumerate(self.benchmarks):
            name = str(self.engine.get("name"))
            yield from guidance_problems(node, name, f"benchmarks[{k}]")

    @rule
    def _has_models(self) -> Iterator[str]:
        if not self.models:
            yield "models: found none, expected at least one {label: model}"

    @rule
    def _different_benchmarks(self) -> Iterator[str]:
        names = [benchmark_name(node) for node in self.benchmarks if "name" in node]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield (
                f"benchmarks: found {names.count(name)} that are called {name} in tables, so only"
                " the last one would be shown; evaluate them in recipes of their own"
            )
