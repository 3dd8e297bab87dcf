"""Decode two branches that differ in their images, and choose each token by their contrast.

In a batch, rows of the second half are the branches of those of the first half: each row has its
own cache, and both rows of a pair go on with the same token. Families that cannot share a batch are
decoded by two calls of `generate` that take turns.

Source: CRG, arXiv 2403.02325: the difference is taken after all other processors of logits. There
decoding is greedy; with a temperature, we draw from the softmax of the same difference.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from consomme.engines.guided_logits import guided_logits

# Shapes: B rows of one branch, T token positions, V vocabulary.


class GuidanceLogitsProcessor:
    """Replaces the logits of both branches by the guided ones; called like a `LogitsProcessor`.

    Rows are first all with images, then in the same order all with masked images.
    """

    def __init__(self, alpha: float) -> None:
        """Store the strength."""
        self.alpha = alpha

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (2 B, V), equal in both halves."""
        plain_BV, masked_BV = scores.chunk(2)
        guided_BV = guided_logits(plain_BV, masked_BV, self.alpha)
        return torch.cat([guided_BV, guided_BV])


Branch = Callable[[Sequence[Any], Any], Tensor]
"""(first of the processors, stopping criterion) -> rows (B, T), by one call of `generate`."""


def generate_in_turns(plain: Branch, masked: Branch, alpha: float, criterion: Any) -> Tensor:
    """Decode two branches in calls of their own, one after the other at each token.

    Args:
        plain: Generates given the images.
        masked: Generates given the masked images.
        alpha: Strength.
        criterion: When the first branch ends; the second one ends with it.

    Returns:
        The rows (B, T) of the first branch, which the second one equals.
    """
    turns = _Turns(alpha)
    stops = _SharedCriterion(criterion)
    with ThreadPoolExecutor(1, "masked-branch") as pool:
        follower = pool.submit(turns.run, 1, masked, stops.follow)
        try:
            rows_BT = turns.run(0, plain, stops.lead)
        except _TurnLostError:
            follower.result()
            raise
        follower.result()
    return rows_BT


class _SharedCriterion:
    """Lets the second branch stop where the first one did, whatever the clock says."""

    def __init__(self, criterion: Any) -> None:
        self._criterion = criterion
        self._done: dict[int, Tensor] = {}

    def lead(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        done_B: Tensor = self._criterion(input_ids, scores, **kwargs)
        self._done[input_ids.shape[1]] = done_B
        return done_B

    def follow(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return self._done[input_ids.shape[1]]


class _TurnLostError(Exception):
    """The other branch failed; its error is the one that counts."""


class _Turns:
    """Lets two branches run alternately, and gives both the same guided logits."""

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha
        self._changed = threading.Condition()
        self._turn = 0
        self._has_failed = False
        self._plain: Tensor | None = None
        self._guided: Tensor | None = None

    def run(self, number: int, branch: Branch, criterion: Any) -> Tensor:
        """Run one branch to its end."""
        try:
            self._wait_for(number)
            # Inference mode is one of the thread.
            with torch.inference_mode():
                process = self._lead if number == 0 else self._follow
                return branch([process], criterion)
        except BaseException:
            with self._changed:
                self._has_failed = True
                self._changed.notify_all()
            raise
        finally:
            self._pass_to(1 - number)

    def _lead(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._plain = scores
        self._pass_to(1)
        self._wait_for(0)
        assert self._guided is not None
        return self._guided.clone()

    def _follow(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        assert self._plain is not None
        guided_BV = guided_logits(self._plain, scores, self._alpha)
        self._guided = guided_BV
        self._pass_to(0)
        self._wait_for(1)
        return guided_BV

    def _pass_to(self, number: int) -> None:
        with self._changed:
            self._turn = number
            self._changed.notify_all()

    def _wait_for(self, number: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._turn == number or self._has_failed)
            if self._has_failed:
                raise _TurnLostError
