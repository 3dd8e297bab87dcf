"""Fit work into memory: batches within a budget, and halves of a batch that ran out of memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def halve_on_oom(
    run: Callable[[Sequence[T]], list[Any]],
    items: Sequence[T],
    split: Callable[[T], list[T]] = lambda _: [],
) -> list[Any]:
    """Run on a batch; if it runs out of memory, run on each half of it, recursively.

    Args:
        run: Returns a list for some items; lists of halves are concatenated.
        items: The batch.
        split: Splits a single item in two; an empty list if it cannot be split.

    Raises:
        torch.OutOfMemoryError: Not even the smallest piece fits.
    """
    try:
        return run(items)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        halves = _halves(items, split)
        if not halves or not _is_out_of_memory(error):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return [part for half in halves for part in halve_on_oom(run, half, split)]


def _halves(items: Sequence[T], split: Callable[[T], list[T]]) -> list[Sequence[T]]:
    if len(items) > 1:
        half = len(items) // 2
        return [items[:half], items[half:]]
    return [[part] for part in split(items[0])]


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def batch_by_budget(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Group neighbours into batches, whose padded size is within a budget.

    Args:
        sizes: Size of each item.
        budget: Maximum of a batch's largest size times its length; a larger item is alone.

    Returns:
        Indices of the items of each batch.
    """
    batches: list[list[int]] = []
    largest = 0
    for index, size in enumerate(sizes):
        if batches and (len(batches[-1]) + 1) * max(largest, size) <= budget:
            batches[-1].append(index)
            largest = max(largest, size)
        else:
            batches.append([index])
            largest = size
    return batches
