"""Distribute the samples of a step over ranks and micro-batches; short samples may share a row.

Only samples of the same step are packed together. The loss of a step is a sum over its tokens, so
packing does not change it, and no state is carried from step to step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

Row = list[int]
"""Samples concatenated in a row, by their index in the step."""

Pass = list[Row]
"""Rows of one forward pass: a micro-batch."""


@dataclass(frozen=True, kw_only=True)
class RowLayout:
    """How the samples of a step become rows."""

    micro_batch: int
    """Most padded rows per pass."""

    pack_tokens: int | None = None
    """Most tokens of a row of several samples; None gives each sample a row of its own."""

    alone_beyond: int | None = None
    """A sample of more tokens has a pass of its own; None for no such length."""

    def is_alone(self, num_tokens: int) -> bool:
        """Return whether a sample of this length has a pass of its own."""
        return self.alone_beyond is not None and num_tokens > self.alone_beyond

    def split(self, lengths: Sequence[int], world: int) -> list[list[Pass]]:
        """Distribute samples.

        Args:
            lengths: Tokens of each sample of the step, over all ranks.
            world: Number of ranks.

        Returns:
            Passes of each rank; all ranks have the same number, because they communicate in every
            pass.
        """
        alone = [k for k, length in enumerate(lengths) if self.is_alone(length)]
        others = [k for k, length in enumerate(lengths) if not self.is_alone(length)]
        groups = []
        if others:
            if self.pack_tokens is None:
                ranks = padded(len(others), world, self.micro_batch)
            else:
                ranks = packed([lengths[k] for k in others], world, self.pack_tokens)
            groups.append((others, ranks))
        if alone:
            groups.append((alone, padded(len(alone), world, 1)))
        return [
            [
                [[some[k] for k in row] for row in rows]
                for some, ranks in groups
                for rows in ranks[rank]
            ]
            for rank in range(world)
        ]

    def batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """Return padded batches of samples by index, in order, but those that run alone are last.

        Args:
            lengths: Tokens of each sample.
        """
        alone = [k for k, length in enumerate(lengths) if self.is_alone(length)]
        others = [k for k, length in enumerate(lengths) if not self.is_alone(length)]
        size = self.micro_batch
        return [
            *(others[at : at + size] for at in range(0, len(others), size)),
            *([k] for k in alone),
        ]


def padded(num_samples: int, world: int, micro_batch: int) -> list[list[Pass]]:
    """Put each sample into a row of its own; the rows of a pass are padded to the longest.

    Args:
        num_samples: Of the step, over all ranks.
        world: Number of ranks.
        micro_batch: Most rows per pass.

    Returns:
        Passes of each rank. All ranks have the same number of passes, because they communicate in
        every pass; a rank with too few samples has empty ones.
    """
    num_passes = math.ceil(math.ceil(num_samples / world) / micro_batch)
    ranks = []
    for rank in range(world):
        mine = range(num_samples)[rank::world]
        cuts = [part * len(mine) // num_passes for part in range(num_passes + 1)]
        ranks.append([[[k] for k in mine[a:b]] for a, b in itertools.pairwise(cuts)])
    return ranks


def packed(lengths: Sequence[int], world: int, capacity: int) -> list[list[Pass]]:
    """Pack samples into rows; a pass is one row, so there is no padding.

    Best-fit decreasing: longest sample first, each into the fullest row that still has room. The
    rows of one pass have similar lengths on all ranks.

    Args:
        lengths: Tokens of each sample.
        world: Number of ranks.
        capacity: Most tokens per row; a longer sample gets a row of its own.

    Returns:
        Passes of each rank, the same number for all; the last ones may be empty.
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
