"""The recipe of `evaluate`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from consomme.base.bounds import PositiveInt
from consomme.base.checked import Checked, rule
from consomme.base.needs import Need
from consomme.base.schema import located, runtime, strategy
from consomme.evaluate.names import benchmark_name
from consomme.storage.options import StorageOptions


@dataclass(frozen=True, kw_only=True)
class EvaluateRecipe(Checked):
    """Models to evaluate, and the benchmarks to evaluate them on."""

    name: str
    """Name of the run."""

    models: dict[str, str] = located()
    """Label -> model: a folder, a run, a URL, `org/name` on the hub, or `package://models/nano`."""

    benchmarks: tuple[dict[str, Any], ...] = strategy("consomme.evaluate.benchmarks:BENCHMARKS")
    """Benchmarks; see consomme/evaluate/benchmarks.py."""

    template: dict[str, bool | int | str] = field(default_factory=dict)
    """Options of the models' chat templates, such as `{enable_thinking: true}`; thinking is off if
    it is not named here."""

    root: str = runtime("runs")
    """Where run folders are created: a local path or a URL."""

    storage: StorageOptions = runtime(StorageOptions())
    """How patient the run is with its storage."""

    num_actors: PositiveInt | None = runtime(None)
    """Number of actors; None: one per GPU, or one per CPU."""

    def needs(self, num_gpus: float) -> Iterator[Need]:
        """Yield what the run claims: all its actors at once, but no more than it has work for."""
        if self.num_actors:
            count = min(self.num_actors, len(self.models) * len(self.benchmarks))
            gpus = 1.0 if num_gpus else 0.0
            key = f"num_actors={self.num_actors}"
            yield Need(key=key, count=count, cpus=0.9, gpus=gpus)

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
