"""The interface of benchmarks, their registry, and the figures that they share.

A benchmark is a fixed list of requests and a function from answers to metrics; it does not know
which model answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

from PIL import Image

from consomme.base.checked import Checked
from consomme.base.errors import RecipeError
from consomme.base.own_modules import OWN_MODULE, OwnModule, own_module_of
from consomme.base.registry import Registry
from consomme.base.sample import Turn, place_images
from consomme.base.schema import added, default_of, is_added
from consomme.evaluate.metrics import accuracy
from consomme.evaluate.open_answers import METRICS
from consomme.storage.pins import portable_url
from consomme.vision.guidance import Guidance, guidance_inputs, portable_guidance

GREY = (128, 128, 128)


@dataclass(frozen=True, kw_only=True)
class BenchmarkItem:
    """One request."""

    turns: tuple[Turn, ...]
    """Ends with the user; or the beginning of a document. See `consomme.base.sample` for where
    images stand."""

    images: Sequence[Image.Image]
    """Any number of them; those of files are decoded when they are asked for."""

    truth: str
    """A right answer, as people read it."""

    meta: Mapping[str, Any] = field(default_factory=dict)
    """What else is known: the cells of its row, or the `boxes` of a scene."""

    @classmethod
    def of_prompt(
        cls,
        prompt: str,
        image: Image.Image,
        *,
        truth: str,
        meta: Mapping[str, Any] | None = None,
    ) -> Self:
        """Build a question about one image."""
        turns = (Turn(role="user", content=prompt),)
        return cls(turns=turns, images=(image,), truth=truth, meta=meta or {})

    @property
    def prompt(self) -> str:
        """Text of the last turn, without its images."""
        return self.turns[-1].text

    @property
    def placed_turns(self) -> tuple[Turn, ...]:
        """The turns with a reference to each image."""
        return place_images(self.turns, len(self.images))


@dataclass(frozen=True, kw_only=True)
class Guidable(Checked):
    """Base of benchmarks whose questions can be asked with a region taken away for comparison."""

    guidance: Guidance | None = added(None)
    """Guides the model by regions of the images, as in CRG (arXiv 2403.02325): how strongly, what
    is masked, and where the boxes are from; see consomme/vision/guidance.py. None: not guided."""


def guidance_of(benchmark: Any) -> Guidance | None:
    """Return how a benchmark guides the model, if it does."""
    found = getattr(benchmark, "guidance", None)
    return found if isinstance(found, Guidance) else None


class Benchmark(Protocol):
    """Interface of every registered benchmark."""

    max_tokens: int
    """Maximum answer length in tokens."""

    def items(self) -> Sequence[BenchmarkItem]:
        """All requests, in a fixed order."""

    def verdicts(self, answers: Sequence[str]) -> list[float]:
        """One score in [0, 1] per request, for paired comparisons."""

    def measure(self, answers: Sequence[str]) -> dict[str, float]:
        """Metrics by name; the first one is the main metric, higher is better."""


BENCHMARKS: Registry[Benchmark] = Registry(
    "benchmark",
    "consomme/evaluate/benchmarks.py",
    needed=("max_tokens", "items", "verdicts", "measure"),
)


@runtime_checkable
class HasData(Protocol):
    """A benchmark whose questions stand in files."""

    not_identity: ClassVar[tuple[str, ...]]
    """Fields that change no answer, given its data's version."""

    def data_version(self) -> str:
        """Hash of the data."""

    def outcomes(self, answers: Sequence[str]) -> list[float]:
        """One score in [0, 1] per question; a question may be asked in several requests."""

    def candidates(self, number: int) -> Mapping[str, str] | None:
        """Possible answers to a request, of which the most likely one is the model's.

        Returns:
            What the answer is called -> the text whose likelihood counts; None: the model writes.
        """

    def choose(self, nlls: Mapping[str, float], number: int) -> str:
        """Return the name of the answer that a request has, from the nll of each in nats."""


@runtime_checkable
class HasParts(Protocol):
    """A benchmark that consists of others, which are asked one after the other."""

    benchmarks: Sequence[Benchmark]

    def identity(self) -> list[Any]:
        """Return what decides the figures, for cache keys."""


def parts_of(benchmark: Benchmark) -> Sequence[Benchmark]:
    """Return the benchmarks that are asked: the parts, or the benchmark itself."""
    if isinstance(benchmark, HasParts):
        return [part for one in benchmark.benchmarks for part in parts_of(one)]
    return [benchmark]


def is_written(benchmark: Benchmark) -> bool:
    """Whether a model writes all answers, and none is chosen by its likelihood."""
    return not any(
        isinstance(one, HasData) and one.candidates(0) is not None for one in parts_of(benchmark)
    )


def outcomes_of(benchmark: Benchmark, answers: Sequence[str]) -> list[float]:
    """Return one score in [0, 1] per question."""
    if isinstance(benchmark, HasData):
        return benchmark.outcomes(answers)
    return benchmark.verdicts(answers)


def main_figure(benchmark: Benchmark) -> str:
    """Return the name of a benchmark's main figure, by measuring empty answers.

    Figures that were stored have lost their order.
    """
    return next(iter(benchmark.measure([""] * len(benchmark.items()))))


def describe(benchmark: Benchmark, *, without: Sequence[str] = ()) -> str:
    """Return a canonical text of a benchmark's parameters and data, for cache keys.

    Args:
        benchmark: The benchmark.
        without: Fields that do not count, such as those that decide verdicts and no answers; of one
            that has parts, all fields of these count.
    """
    own = _own_modules(benchmark)
    if isinstance(benchmark, HasParts):
        named: list[Any] = [type(benchmark).__name__, benchmark.identity()]
        return json.dumps([*named, *(one.content for one in own)], sort_keys=True)
    values = asdict(benchmark)  # type: ignore[call-overload]
    for one in fields(benchmark):  # type: ignore[arg-type]
        # What was answered before there was such a field is still known.
        if is_added(one) and getattr(benchmark, one.name) == default_of(one):
            del values[one.name]
    guidance = guidance_of(benchmark)
    if guidance is not None:
        values["guidance"] = guidance.identity()
    if isinstance(benchmark, HasData):
        values = {k: v for k, v in values.items() if k not in benchmark.not_identity}
        values["data"] = benchmark.data_version()
    values = {k: v for k, v in values.items() if k not in without}
    named_values: list[Any] = [type(benchmark).__name__, values]
    return json.dumps([*named_values, *(one.content for one in own)], sort_keys=True)


def _own_modules(
    benchmark: Benchmark | type[Benchmark], metric: str | None = None
) -> list[OwnModule]:
    """Return the modules of a user that define a benchmark, its bases, or its metric."""
    cls = benchmark if isinstance(benchmark, type) else type(benchmark)
    metric = metric or getattr(benchmark, "metric", None)
    defined = [*cls.__mro__, *([METRICS[metric]] if metric in METRICS else [])]
    found = [own_module_of(one) for one in defined]
    return list({one.path: one for one in found if one is not None}.values())


def portable_node(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return a benchmark's node with paths by which another process finds its files."""
    found = dict(node)
    given = {key: node.get(key) or _default(str(node["name"]), key) for key in _PATHS}
    found |= {key: portable_url(str(value)) for key, value in given.items() if value}
    cls = BENCHMARKS.get(str(node["name"])) if node.get("name") in BENCHMARKS.names() else None
    if cls is not None and (own := _own_modules(cls, node.get("metric"))):
        if len(own) > 1:
            raise RecipeError(
                f"benchmark {node['name']!r} needs {' and '.join(one.path for one in own)};"
                " expected a benchmark and its metric in one file, which goes to workers with it"
            )
        found[OWN_MODULE] = own[0].to_dict()
    if node.get("guidance"):
        found["guidance"] = portable_guidance(node["guidance"])
    if "parts" in node:
        found["parts"] = [
            {**part, "benchmark": portable_node(part["benchmark"])} for part in node["parts"]
        ]
    return found


def _default(name: str, key: str) -> Any:
    """Return where a benchmark lies if its node does not say so; presets know."""
    if name not in BENCHMARKS.names():
        return None
    fields = getattr(BENCHMARKS.get(name), "__dataclass_fields__", {})
    return fields[key].default if key in fields and isinstance(fields[key].default, str) else None


_PATHS = ("file", "image_root", "shots_from")


def data_inputs(nodes: Sequence[Mapping[str, Any]], key: str) -> dict[str, str]:
    """Return the versions of the data of benchmarks, as inputs of a run.

    Args:
        nodes: Of the recipe.
        key: Of the recipe that holds them.

    Raises:
        DataError: A file cannot be read.
    """
    built = {f"{key}[{k}]": BENCHMARKS.build(node, key) for k, node in enumerate(nodes)}
    found = {name: one.data_version() for name, one in built.items() if isinstance(one, HasData)}
    for name, benchmark in built.items():
        for number, part in enumerate(parts_of(benchmark)):
            found |= guidance_inputs(guidance_of(part), f"{name}.guidance[{number}]")
    return found


def shown(image: Image.Image, blank: bool) -> Image.Image:
    """Return an image, or a grey one of its size."""
    return Image.new("RGB", image.size, GREY) if blank else image


def accuracy_figures(right: Sequence[float]) -> dict[str, float]:
    """Return the share of right answers with its interval."""
    interval = accuracy([value > 0 for value in right])
    return {
        "accuracy_fraction": interval.value,
        "accuracy_low_fraction": interval.low,
        "accuracy_high_fraction": interval.high,
        "num_questions": float(interval.num_total),
    }


def accuracy_by_kind(verdicts: Sequence[float], kinds: Sequence[str]) -> dict[str, float]:
    """Return the share of right answers for each kind of question."""
    by_kind: dict[str, list[float]] = {}
    for verdict, kind in zip(verdicts, kinds, strict=True):
        by_kind.setdefault(kind, []).append(verdict)
    return {f"accuracy_{kind}_fraction": mean(values) for kind, values in sorted(by_kind.items())}


def mean(values: Sequence[float]) -> float:
    """Return the mean; 0 of nothing."""
    return sum(values) / len(values) if values else 0.0
