"""Choose the layers that are removed, given a function that scores runs of neighbouring layers.

Low scores matter least. Protected layers are never chosen, and never inside of a run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

from consomme.base.errors import RecipeError
from consomme.base.registry import Registry

ScoreRuns = Callable[[Sequence[int], int], Sequence[float]]
"""Maps the layers that are there, ascending, and a size to the score of each run of that many of
them, by its first."""


@dataclass(frozen=True, kw_only=True)
class RemovalStep:
    """One decision: some layers that were removed together."""

    removed: tuple[int, ...]
    """Their indices in the whole model."""

    score: float
    """What they scored; the lowest of what could be removed."""

    scores: dict[str, float]
    """Scores of everything that was compared, by its layers: `3`, or `3-5` for a run."""


@dataclass(frozen=True, kw_only=True)
class ChosenLayers:
    """The layers that are removed, and how it was decided."""

    removed: tuple[int, ...]
    """Ascending."""

    steps: tuple[RemovalStep, ...]


class LayerChoice(ABC):
    """Interface of every registered way to choose."""

    can_rescore: ClassVar[bool] = False
    """Whether layers are scored again after others were removed."""

    @abstractmethod
    def __call__(
        self, score_runs: ScoreRuns, num_layers: int, count: int, protected: Collection[int]
    ) -> ChosenLayers:
        """Choose `count` layers.

        Args:
            score_runs: Scores runs of layers.
            num_layers: Of the model.
            count: Layers to remove; at least 1.
            protected: Layers that stay.

        Raises:
            RecipeError: So many layers cannot be removed.
        """


LAYER_CHOICES: Registry[LayerChoice] = Registry("choice of layers", "consomme/prune/choosing.py")


def _check_count(num_layers: int, count: int, protected: Collection[int]) -> None:
    free = num_layers - len(set(protected))
    if count > min(free, num_layers - 1):
        raise RecipeError(
            f"n_layers: found {count}, but the language model has {num_layers} layers, of which"
            f" {len(set(protected))} are protected and one has to stay"
        )


@LAYER_CHOICES.register("contiguous")
@dataclass(frozen=True, kw_only=True)
class ContiguousBlock(LayerChoice):
    """Remove neighbouring layers: the run that changes least between its two ends.

    Source: Gromov et al., arXiv 2403.17887.
    """

    def __call__(
        self, score_runs: ScoreRuns, num_layers: int, count: int, protected: Collection[int]
    ) -> ChosenLayers:
        """Choose the run with the lowest score, of equal ones the lowest in the model."""
        _check_count(num_layers, count, protected)
        stays = set(protected)
        runs = [range(k, k + count) for k in range(num_layers - count + 1)]
        free = [run for run in runs if not stays & set(run)]
        if not free:
            raise RecipeError(
                f"n_layers: found {count}, but between the protected layers"
                f" {', '.join(map(str, sorted(stays)))} there are no {count} neighbours; remove"
                " fewer, or set choose={name: greedy}"
            )
        scores = score_runs(range(num_layers), count)
        best = min(free, key=lambda run: (scores[run.start], run.start))
        compared = {_name(run): scores[run.start] for run in free}
        removed = tuple(best)
        step = RemovalStep(removed=removed, score=scores[best.start], scores=compared)
        return ChosenLayers(removed=removed, steps=(step,))


@LAYER_CHOICES.register("greedy")
@dataclass(frozen=True, kw_only=True)
class GreedyRemoval(LayerChoice):
    """Remove the layer that matters least, score the others again without it, and so on."""

    can_rescore: ClassVar[bool] = True

    def __call__(
        self, score_runs: ScoreRuns, num_layers: int, count: int, protected: Collection[int]
    ) -> ChosenLayers:
        """Choose one layer after the other."""
        _check_count(num_layers, count, protected)
        kept, steps = list(range(num_layers)), []
        for _ in range(count):
            scores = dict(zip(kept, score_runs(tuple(kept), 1), strict=True))
            free = [index for index in kept if index not in protected]
            best = min(free, key=lambda index: (scores[index], index))
            compared = {str(index): scores[index] for index in free}
            steps.append(RemovalStep(removed=(best,), score=scores[best], scores=compared))
            kept.remove(best)
        removed = sorted(index for step in steps for index in step.removed)
        return ChosenLayers(removed=tuple(removed), steps=tuple(steps))


@LAYER_CHOICES.register("lowest")
@dataclass(frozen=True, kw_only=True)
class LowestScores(LayerChoice):
    """Remove the layers with the lowest scores in the whole model.

    Source: arXiv 2412.12785, section on layer pruning.
    """

    def __call__(
        self, score_runs: ScoreRuns, num_layers: int, count: int, protected: Collection[int]
    ) -> ChosenLayers:
        """Choose the lowest scores, of equal ones the lowest in the model."""
        _check_count(num_layers, count, protected)
        scores = score_runs(range(num_layers), 1)
        free = [index for index in range(num_layers) if index not in protected]
        order = sorted(free, key=lambda index: (scores[index], index))
        compared = {str(index): scores[index] for index in free}
        steps = tuple(
            RemovalStep(removed=(index,), score=scores[index], scores=compared)
            for index in order[:count]
        )
        return ChosenLayers(removed=tuple(sorted(order[:count])), steps=steps)


def _name(run: range) -> str:
    return f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0])
