"""Share a step's samples out to ranks and passes; several short ones may go in one row.

One decision is made here: what is packed together are samples of one and the same step. The step's
loss is a sum over its tokens, so packing changes how it is worked out and never what it is; nothing
has to be remembered from step to step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

Row = list[int]
"""Samples that stand one after the other in a row, by their number in the step."""

Pass = list[Row]
"""Rows that go through the model together."""


def padded(num_samples: int, world: int, micro_batch: int) -> list[list[Pass]]:
    """One sample to a row; the rows of a pass are padded to the longest.

    Args:
        num_samples: Of the step, over all ranks.
        world: Ranks.
        micro_batch: Most rows of a pass.

    Returns:
        Passes of each rank. All ranks have equally many, because they wait for each other in every
        pass; where there are too few samples a pass is empty.
    """
    num_passes = math.ceil(math.ceil(num_samples / world) / micro_batch)
    found = []
    for rank in range(world):
        mine = range(num_samples)[rank::world]
        cuts = [part * len(mine) // num_passes for part in range(num_passes + 1)]
        found.append([[[k] for k in mine[a:b]] for a, b in itertools.pairwise(cuts)])
    return found


def packed(lengths: Sequence[int], world: int, capacity: int) -> list[list[Pass]]:
    """As many samples to a row as it holds; a pass is one row, so nothing is padded.

    Longest first, each into the fullest row that still has room (best-fit decreasing). The rows of
    one pass are of like length on all ranks.

    Args:
        lengths: Tokens of each sample.
        world: Ranks.
        capacity: Most tokens of a row; a longer sample has a row for itself.

    Returns:
        Passes of each rank, equally many; some of the last may be empty.
    """
    rows: list[Row] = []
    room: list[int] = []
    for sample in sorted(range(len(lengths)), key=lambda k: (-lengths[k], k)):
        fitting = [(left, row) for row, left in enumerate(room) if left >= lengths[sample]]
        if fitting:
            _, row = min(fitting)
            rows[row].append(sample)
            room[row] -= lengths[sample]
        else:
            rows.append([sample])
            room.append(max(0, capacity - lengths[sample]))
    rows.sort(key=lambda row: (-sum(lengths[k] for k in row), row))
    num_passes = math.ceil(len(rows) / world)
    rows += [[] for _ in range(num_passes * world - len(rows))]
    return [[[row] if row else [] for row in rows[rank::world]] for rank in range(world)]
