"""What a recipe of `sweep` may say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from consomme.base.schema import runtime, strategy


@dataclass(frozen=True, kw_only=True)
class SweepRecipe:
    """Trainings that differ in some keys, and what they are compared by."""

    name: str
    """Name of the run."""

    train: dict[str, Any]
    """The train recipe: its keys, or `recipe: FILE` and the keys that differ from that file; a
    strategy with a `name` replaces the whole strategy."""

    space: dict[str, dict[str, Any]] = strategy("consomme.sweep.choices:CHOICES", keyed=True)
    """Dotted key of the train recipe (`lr`, `layers`, `layers.fraction`, `data.0.fraction`) ->
    what is tried there; see consomme/sweep/choices.py."""

    benchmarks: tuple[dict[str, Any], ...] = strategy(
        "consomme.evaluate.benchmarks:BENCHMARKS", default=()
    )
    """What each trained model is measured on; none leaves it at the training loss."""

    metric: str | None = None
    """What trials are compared by: a benchmark as tables name it, for its main figure;
    `benchmark/figure` for another one; or `train/last_loss_nats`, `train/step_s`,
    `train/peak_bytes`. null: the first benchmark, or the training loss if there is none."""

    mode: Literal["max", "min"] | None = None
    """Which way is better; null: `min` for what begins with `train/`, else `max`."""

    searcher: dict[str, Any] = strategy(
        "consomme.sweep.searchers:SEARCHERS", default={"name": "grid"}
    )
    """Which trials are tried, and in which order."""

    stopper: dict[str, Any] = strategy("consomme.sweep.stoppers:STOPPERS", default={"name": "none"})
    """Which trials are given up early."""

    root: str = runtime("runs")
    """Where run folders are made, those of the trials too: a local path or a URL."""

    max_concurrent: int | None = runtime(None)
    """Trials at once; null: as many as the cluster has GPUs, or CPUs, for."""

    description: str = runtime("")
    """What the report says first."""
