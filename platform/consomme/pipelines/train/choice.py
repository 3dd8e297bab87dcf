"""Which checkpoint of a training becomes its model, and what speaks for it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from consomme.base.errors import ClusterError, DataError
from consomme.evaluate.guards import check_kept
from consomme.evaluate.names import benchmark_name
from consomme.pipelines.train.context import TrainContext
from consomme.pipelines.train.outputs import CHOICE, EVAL_LOSS, evaluations
from consomme.pipelines.train.recipe import TrainRecipe

logger = logging.getLogger(__name__)


def score_attribute(recipe: TrainRecipe) -> str | None:
    """Return the metric that checkpoints are kept by; None keeps the last ones."""
    if recipe.evaluation.asks:
        return CHOICE
    return EVAL_LOSS if recipe.evaluation.data else None


def score_order(recipe: TrainRecipe) -> str:
    """Return which direction of that metric is better."""
    return "max" if recipe.evaluation.asks else "min"


@dataclass(frozen=True, kw_only=True)
class CheckpointChoice:
    """The checkpoint that becomes the model."""

    recipe: TrainRecipe
    step: int
    checkpoint: Any
    """Ray Train's; None if the last step was exported by its worker."""

    evaluated: Sequence[Mapping[str, Any]]
    """What each evaluation wrote, by step."""

    def told(self, start: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return what the manifest keeps.

        Args:
            start: What the model that training started from answered.
        """
        evaluation = self.recipe.evaluation
        own = _of_step(self.evaluated, self.step) or {}
        by = "loss"
        if evaluation.benchmark is not None:
            by = benchmark_name(evaluation.benchmark)
        told: dict[str, Any] = {
            "by": by if self.recipe.export_checkpoint == "best" else "last step",
            "step": self.step,
            "start": dict(start or {}),
            "checkpoints": [dict(one) for one in self.evaluated],
        }
        if evaluation.guards:
            told["guards"] = list(own.get("guards", ()))
            told["ignores_guards"] = not _is_kept(own)
        return told


def choose_checkpoint(
    context: TrainContext, checkpoints: Sequence[tuple[Any, Mapping[str, Any]]]
) -> CheckpointChoice:
    """Choose the checkpoint that becomes the model.

    Args:
        context: The run's.
        checkpoints: Ray Train's that are still there, with their metrics.

    Raises:
        DataError: A checkpoint could not be evaluated, or every one lost more than a guard allows.
        ClusterError: A checkpoint that is needed was not evaluated.
    """
    recipe = context.recipe
    evaluated = evaluations(context.folder) if recipe.evaluation.is_wanted else []
    for one in evaluated:
        if "error" in one:
            raise DataError(
                f"the checkpoint of step {one['step']} was not evaluated: {one['error']}"
            )
    step, checkpoint = recipe.num_steps, None
    if recipe.export_checkpoint == "best":
        step, checkpoint = _best(recipe, checkpoints, evaluated)
    own = _of_step(evaluated, step)
    if recipe.evaluation.guards:
        if own is None:
            raise ClusterError(f"the checkpoint of step {step} was not evaluated; run it again")
        check_kept(recipe.evaluation.guards, own["guards"])
        for finding in own["guards"]:
            if not finding["passes"]:
                logger.warning("train: step %d: %s", step, finding["line"])
    return CheckpointChoice(recipe=recipe, step=step, checkpoint=checkpoint, evaluated=evaluated)


def _best(
    recipe: TrainRecipe,
    checkpoints: Sequence[tuple[Any, Mapping[str, Any]]],
    evaluated: Sequence[Mapping[str, Any]],
) -> tuple[int, Any]:
    """Return step and checkpoint of the best one; the first one of several that are equal."""
    attribute = score_attribute(recipe)
    sign = 1.0 if score_order(recipe) == "max" else -1.0
    known = [(one, metrics) for one, metrics in checkpoints if attribute in metrics]
    missing = _missing(recipe, evaluated)
    if missing or not known:
        what = f"those of steps {', '.join(map(str, missing))}" if missing else "none of them"
        raise ClusterError(
            f"checkpoints were not all evaluated: {what}; see the log, and run the same command"
            " again"
        )
    best, metrics = max(
        known, key=lambda pair: (sign * float(pair[1][attribute or ""]), -int(pair[1]["step"]))
    )
    return int(metrics["step"]), best


def _missing(recipe: TrainRecipe, evaluated: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return steps that the recipe names and that were not evaluated."""
    done = {int(one["step"]) for one in evaluated}
    named = range(1, recipe.num_steps + 1)
    return [s for s in named if recipe.evaluation.is_due(s, recipe.num_steps) and s not in done]


def _of_step(evaluated: Sequence[Mapping[str, Any]], step: int) -> Mapping[str, Any] | None:
    return next((one for one in evaluated if int(one["step"]) == step), None)


def _is_kept(found: Mapping[str, Any]) -> bool:
    return all(guard["passes"] for guard in found.get("guards", ()))
