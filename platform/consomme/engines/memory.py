"""Fit work into the memory there is: micro-batches by a budget, halved where it was too much."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def halving(
    run: Callable[[Sequence[T]], list[Any]],
    items: Sequence[T],
    halves_of: Callable[[T], list[T]] = lambda _: [],
) -> list[Any]:
    """Run on some items; if memory does not suffice, on half of them at a time.

    Args:
        run: Returns a list for some items; lists of parts are put one behind the other.
        items: All of them.
        halves_of: Cuts a single item, if it can be cut.

    Raises:
        torch.OutOfMemoryError: Not even the smallest piece fits.
    """
    try:
        return run(items)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        halves = _halves(items, halves_of)
        if not halves or not _is_memory(error):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return [part for half in halves for part in halving(run, half, halves_of)]


def _halves(items: Sequence[T], halves_of: Callable[[T], list[T]]) -> list[Sequence[T]]:
    if len(items) > 1:
        half = len(items) // 2
        return [items[:half], items[half:]]
    return [[part] for part in halves_of(items[0])]


def _is_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def groups(items: Sequence[tuple[int, int]], budget: int) -> list[list[int]]:
    """Cut (number, size) into groups whose largest size times their count is within a budget."""
    found: list[list[int]] = []
    largest = 0
    for number, size in items:
        if found and (len(found[-1]) + 1) * max(largest, size) <= budget:
            found[-1].append(number)
            largest = max(largest, size)
        else:
            found.append([number])
            largest = size
    return found
