"""Sweep over recipes: Ray Tune runs trials, each an ordinary training and an ordinary evaluation.

A trial is defined by its train recipe alone. A training that was run before, by another sweep or by
hand, is reused, and every trial has its own run folders.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from typing import Any

from consomme.base.errors import RecipeError
from consomme.base.manifest import Manifest
from consomme.base.schema import to_plain
from consomme.base.sealed import sealed
from consomme.evaluate.guards import check_kept
from consomme.execution.capacity import check_capacity
from consomme.execution.runs import Run, open_pinned, parents_of
from consomme.pipelines.sweep.plan import SweepPlan
from consomme.pipelines.sweep.recipe import SweepRecipe
from consomme.pipelines.sweep.table import best_of, means_over_seeds, terminal_table
from consomme.pipelines.sweep.tuner import run_sweep
from consomme.storage.ledger.run_folder import load_manifest
from consomme.storage.pins import pins_kept
from consomme.sweep.keys import label

logger = logging.getLogger(__name__)


def run(recipe: SweepRecipe) -> Manifest:
    """Run every trial that is not done, then compare them."""
    with pins_kept():
        run = open_pinned(open_run, recipe)
        for keys in run.resolved.samples:
            check_capacity(run.resolved.train_recipe(keys), f"trial {label(keys)}: ")
        return run.once(_sweep)


def open_run(recipe: SweepRecipe) -> Run[SweepPlan]:
    """Check the recipe and all trials that it names; writes nothing."""
    plan = SweepPlan.of(recipe)
    # The saved recipe is complete, whatever becomes of the file that it builds on.
    complete = dataclasses.replace(recipe, train=plan.base)
    hashed = dataclasses.replace(complete, space=plan.hashed_space)
    return Run.open("sweep", complete, plan, inputs=plan.inputs, hashed=hashed)


def _sweep(run: Run[SweepPlan]) -> Manifest:
    from consomme.pipelines.sweep.report import sweep_report

    recipe, plan = run.recipe, run.resolved
    attempt_no = run.folder.start_attempt()
    trials = run_sweep(plan, run.folder, attempt_no, run.pins)
    done = [trial for trial in trials if trial.state == "done"]
    if not done:
        reasons = "; ".join(f"{t.name}: {t.reason or t.state}" for t in trials[:3])
        raise RecipeError(f"none of {len(trials)} trials finished: {reasons}")
    urls = dict.fromkeys(
        url for trial in done for url in (trial.train, trial.evaluate, trial.guards) if url
    )
    run.parents = parents_of(map(load_manifest, urls))
    best = best_of([trial for trial in done if trial.passes] or done, plan.mode)
    check_kept(recipe.guards, best.findings)
    if not best.passes:
        logger.warning("sweep: no trial passes its guards; the best is %s", best.reason)
    decisions: dict[str, Any] = {
        "metric": plan.metric,
        "mode": plan.mode,
        "figures": list(plan.figures),
        "trials": to_plain(trials),
        "best": best.number,
        **({"ignores_guards": not best.passes} if recipe.guards else {}),
        "means": to_plain(means_over_seeds(done)),
        "table": terminal_table(recipe.name, trials, plan.figures),
    }
    run.folder.store.write("trials.json", json.dumps(decisions["trials"], indent=1).encode())
    page = sweep_report(recipe.name, recipe.description, run.fingerprint, decisions)
    run.folder.store.write("report.html", sealed(page))
    counts = {"trials": len(trials)} | {
        state: sum(trial.state == state for trial in trials)
        for state in ("done", "stopped", "failed")
    }
    run.folder.check_current(attempt_no)
    return run.finish(
        counts=counts,
        decisions=decisions,
        metrics={"sweep/best_value": best.value or 0.0},
        outputs={"report": "report.html", "trials": "trials.json"},
    )
