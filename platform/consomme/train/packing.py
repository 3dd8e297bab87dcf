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

    several_alone: bool = False
    """A sample of several images has a pass of its own."""

    has_text_passes: bool = False
    """Samples without an image share no pass with others, on any rank. The first and the last pass
    of a step have images: DDP takes what the last pass leaves out for unused, and ZeRO-3 adds to
    the gradients of the step before what the first pass leaves out."""

    def is_alone(self, num_tokens: int, num_images: int = 1) -> bool:
        """Return whether a sample of this length and with so many images has a pass of its own."""
        is_long = self.alone_beyond is not None and num_tokens > self.alone_beyond
        return is_long or (self.several_alone and num_images > 1)

    def split(
        self, lengths: Sequence[int], world: int, num_images: Sequence[int] | None = None
    ) -> list[list[Pass]]:
        """Distribute samples.

        Args:
            lengths: Tokens of each sample of the step, over all ranks.
            world: Number of ranks.
            num_images: Images of each sample; None if none has several.

        Returns:
            Passes of each rank; all ranks have the same number, because they communicate in every
            pass.
        """
        images = num_images or [1] * len(lengths)
        every = range(len(lengths))
        texts = [k for k in every if self.has_text_passes and not images[k]]
        others = [k for k in every if k not in set(texts)]
        first, second = (
            [
                [[[some[k] for k in row] for row in rows] for rows in passes]
                for passes in self._split(
                    [lengths[k] for k in some], world, [images[k] for k in some]
                )
            ]
            for some in (others, texts)
        )
        if not texts:
            return first
        # Empty passes of all ranks stand for an image that no sample has.
        with_images = [passes or [[]] for passes in first]
        return [
            [*before[:1], *between, *(before[1:] or [[]])]
            for before, between in zip(with_images, second, strict=True)
        ]

    def _split(
        self, lengths: Sequence[int], world: int, num_images: Sequence[int]
    ) -> list[list[Pass]]:
        others, alone = self._divide(lengths, num_images)
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

    def batches(
        self, lengths: Sequence[int], num_images: Sequence[int] | None = None
    ) -> list[list[int]]:
        """Return padded batches of samples by index, in order, but those that run alone are last.

        Args:
            lengths: Tokens of each sample.
            num_images: Images of each sample; None if none has several.
        """
        others, alone = self._divide(lengths, num_images)
        size = self.micro_batch
        return [
            *(others[at : at + size] for at in range(0, len(others), size)),
            *([k] for k in alone),
        ]

    def _divide(
        self, lengths: Sequence[int], num_images: Sequence[int] | None
    ) -> tuple[list[int], list[int]]:
        """Return the samples that share passes, and those that run alone, by index."""
        images = num_images or [1] * len(lengths)
        is_alone = [self.is_alone(*one) for one in zip(lengths, images, strict=True)]
        others = [k for k, alone in enumerate(is_alone) if not alone]
        return others, [k for k, alone in enumerate(is_alone) if alone]


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
