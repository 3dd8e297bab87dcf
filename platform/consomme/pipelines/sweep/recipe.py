"""The recipe of `sweep`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from consomme.base.bounds import PositiveInt
from consomme.base.checked import Checked
from consomme.base.schema import added, located, own_modules, runtime, strategy
from consomme.evaluate.guards import Guard
from consomme.storage.options import StorageOptions


@dataclass(frozen=True, kw_only=True)
class SweepRecipe(Checked):
    """Trainings that differ in some keys, and the metric that compares them."""

    name: str
    """Name of the run."""

    train: dict[str, Any] = located()
    """The train recipe: its keys, or `recipe: FILE` and the keys that differ from that file. A
    strategy with a `name` replaces the whole strategy."""

    space: dict[str, dict[str, Any]] = strategy("consomme.sweep.choices:CHOICES", keyed=True)
    """Dotted key of the train recipe (`lr`, `layers`, `layers.fraction`, `data.0.fraction`) ->
    values to try; see consomme/sweep/choices.py."""

    modules: tuple[str, ...] = own_modules()
    """Python files of yours that register benchmarks or metrics: paths from the current directory,
    or beside the recipe. Their text goes to workers; what they import has to be installed there."""

    benchmarks: tuple[dict[str, Any], ...] = strategy(
        "consomme.evaluate.benchmarks:BENCHMARKS", default=()
    )
    """Benchmarks for each trained model; without any, trials are compared by training loss."""

    metric: str | None = None
    """Metric that compares trials: the name of a benchmark as in tables, for its main figure;
    `benchmark/figure` for another figure; `eval/best_loss_nats`, the loss on `evaluation.data` of
    the train recipe; or `train/last_loss_nats`, `train/step_s`, `train/peak_bytes`. null: the first
    benchmark, or the training loss if there is none. The other benchmarks report; their questions
    must not be among those of the one that compares."""

    mode: Literal["max", "min"] | None = None
    """Which direction is better; null: `min` for metrics that begin with `train/` or `eval/`, else
    `max`."""

    reports_what_it_chose_by: bool = runtime(False)
    """Allow benchmarks that report to have questions of the one that compares."""

    guards: tuple[Guard, ...] = added(())
    """Benchmarks, such as one of texts alone, on which a trained model may be only so much worse
    than the model that its training starts from; trials that lose more are not the best."""

    searcher: dict[str, Any] = strategy(
        "consomme.sweep.registry:SEARCHERS", default={"name": "grid"}
    )
    """Which trials to run, and in which order."""

    stopper: dict[str, Any] = strategy("consomme.sweep.stoppers:STOPPERS", default={"name": "none"})
    """Which trials to stop early."""

    root: str = runtime("runs")
    """Where run folders are created, also those of the trials: a local path or a URL."""

    storage: StorageOptions = runtime(StorageOptions())
    """How patient the run is with its storage, trials included."""

    max_concurrent: PositiveInt | None = runtime(None)
    """Maximum number of concurrent trials; null: as many as the cluster has GPUs, or CPUs, for."""

    description: str = runtime("")
    """Introduction of the report."""
