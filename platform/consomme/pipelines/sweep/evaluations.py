"""The evaluations of a trial: one on the benchmarks, and one on the guards beside its start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from consomme.base.manifest import Manifest
from consomme.evaluate.guards import Guard, GuardFinding
from consomme.pipelines.evaluate.findings import findings_in
from consomme.pipelines.evaluate.recipe import EvaluateRecipe
from consomme.pipelines.train.recipe import TrainRecipe

BASE, TUNED = "base", "model"
"""Labels of the model that a training starts from, and of the trained one."""


def evaluations_of(
    recipe: TrainRecipe,
    model: str,
    benchmarks: Sequence[dict[str, Any]],
    guards: Sequence[Guard],
) -> list[EvaluateRecipe]:
    """Return the recipes that `consomme evaluate` would need for one trained model.

    Args:
        recipe: Of the training.
        model: The folder of its run.
        benchmarks: Registry nodes of the benchmarks that models are measured on.
        guards: Of the sweep.

    Returns:
        One for the benchmarks, then one for the guards; without any, there is none for them.
    """
    # Trials run in parallel, so each evaluation gets one actor.
    shared: dict[str, Any] = {
        "root": recipe.root,
        "template": dict(recipe.template),
        "modules": recipe.modules,
        "num_actors": 1,
    }
    found = []
    if benchmarks:
        found.append(
            EvaluateRecipe(
                name=recipe.name, models={TUNED: model}, benchmarks=tuple(benchmarks), **shared
            )
        )
    if guards:
        found.append(
            EvaluateRecipe(
                name=f"{recipe.name}-guards",
                models={BASE: recipe.model, TUNED: model},
                benchmarks=tuple(guard.benchmark for guard in guards),
                **shared,
            )
        )
    return found


def guard_findings(guards: Sequence[Guard], evaluated: Manifest) -> list[GuardFinding]:
    """Return what a trained model has kept, from the evaluation of the guards."""
    return findings_in(guards, evaluated, BASE, TUNED)
