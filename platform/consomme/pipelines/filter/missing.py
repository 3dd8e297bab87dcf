"""Count samples without a value in a column of the policy, and say what became of them.

A sample has no `image_gain` if it has no picture, and no tag of a run that rejected it. What a
policy does about that is its own rule; that it happens has to be seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consomme.curate.keep.policy import is_missing

# Shapes: N samples of a chunk.


class MissingValues:
    """Counts, by column, samples without a value and those of them that are kept."""

    def __init__(self) -> None:
        self.counts: dict[str, tuple[int, int]] = {}
        """Column -> (kept, all) of the samples without a value; columns that lack none are left
        out."""

    def add(self, columns: Mapping[str, NDArray[Any]], mask_N: NDArray[np.bool_]) -> None:
        """Count a chunk.

        Args:
            columns: The columns that the policy reads.
            mask_N: True for samples that are kept.
        """
        for name, values_N in columns.items():
            missing_N = is_missing(values_N)
            if missing_N.any():
                kept, total = self.counts.get(name, (0, 0))
                kept += int((missing_N & mask_N).sum())
                self.counts[name] = (kept, total + int(missing_N.sum()))

    @property
    def table(self) -> dict[str, Any]:
        """The counts as the command line shows them."""
        return {
            "title": "Samples without a value",
            "columns": ["column", "samples", "kept"],
            "rows": [
                [name, f"{total:,}", f"{kept:,}"] for name, (kept, total) in self.counts.items()
            ],
        }

    @property
    def text(self) -> str:
        """The counts in a sentence for each column."""
        return describe_missing(self.counts)


def describe_missing(counts: Mapping[str, tuple[int, int]]) -> str:
    """Say for each column how many samples have no value there, and how many of those are kept."""
    return " ".join(
        f"{total:,} samples have no `{name}`; {kept:,} of them are kept."
        for name, (kept, total) in counts.items()
    )
