"""Try recipes: Ray Tune runs trials, each an ordinary training and an ordinary evaluation.

One decision is made here: a trial has no state of its own. It is what its train recipe says, so one
that was made by another sweep or by hand is found done, and each is found again in its folder.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from consomme.base.errors import RecipeError
from consomme.base.manifest import Manifest, Parent
from consomme.base.schema import runtime, strategy, to_plain
from consomme.pipelines.runs import begin
from consomme.pipelines.sweep_plan import SweepPlan
from consomme.pipelines.sweep_table import best_of, means, terminal_table
from consomme.pipelines.sweep_trials import Trial, run_trials
from consomme.storage.ledger import load_manifest


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

    story: str = runtime("")
    """What the report says first."""


def run(recipe: SweepRecipe) -> Manifest:
    """Run every trial that is not done, then compare them."""
    from consomme.pipelines.report_sweep import sweep_report

    plan = SweepPlan.of(recipe)
    # The saved recipe says everything, whatever becomes of the file that it builds on.
    attempt = begin("sweep", dataclasses.replace(recipe, train=plan.base), inputs=plan.inputs)
    if attempt.folder.is_done:
        return attempt.folder.manifest()
    trials = run_trials(plan, attempt.folder.store)
    done = [trial for trial in trials if trial.state == "done"]
    if not done:
        reasons = "; ".join(f"{t.name}: {t.reason or t.state}" for t in trials[:3])
        raise RecipeError(f"none of {len(trials)} trials came to its end: {reasons}")
    attempt.parents = _parents(done)
    best = best_of(done, plan.mode)
    found: dict[str, Any] = {
        "metric": plan.metric,
        "mode": plan.mode,
        "figures": list(plan.figures),
        "trials": to_plain(trials),
        "best": best.number,
        "means": to_plain(means(done)),
        "table": terminal_table(recipe.name, trials, plan.figures),
    }
    attempt.folder.store.write("trials.json", json.dumps(found["trials"], indent=1).encode())
    page = sweep_report(recipe.name, recipe.story, attempt.fingerprint, found)
    attempt.folder.store.write("report.html", page.encode())
    counts = {"trials": len(trials)} | {
        state: sum(trial.state == state for trial in trials)
        for state in ("done", "stopped", "failed")
    }
    return attempt.finish(
        counts=counts,
        decisions=found,
        metrics={"sweep/best_value": best.value or 0.0},
        outputs={"report": "report.html", "trials": "trials.json"},
    )


def _parents(trials: Sequence[Trial]) -> tuple[Parent, ...]:
    urls = dict.fromkeys(url for trial in trials for url in (trial.train, trial.evaluate) if url)
    return tuple(
        Parent(verb=one.verb, url=url, fingerprint=one.fingerprint)
        for url, one in ((url, load_manifest(url)) for url in urls)
    )
