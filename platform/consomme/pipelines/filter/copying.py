"""The stage that copies samples into new shards, with names and bytes unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa

from consomme.base.errors import DataError
from consomme.base.sample import Reject
from consomme.execution.stage import BytesStage, Outcome, UnitSample, reject_of
from consomme.storage.ledger.run_folder import SAMPLES
from consomme.storage.writers import FORMATS

if TYPE_CHECKING:
    from consomme.pipelines.filter.recipe import FilterRecipe


class CopyStage(BytesStage):
    """Write each unit's samples as one shard of its own."""

    def __init__(self, recipe: FilterRecipe) -> None:
        """Select the writer of the recipe's `file_format`."""
        self.suffix, self.pack = FORMATS[recipe.file_format]

    def work(self, samples: Sequence[UnitSample]) -> Outcome:
        """Copy one unit."""
        good, rejects = self._storable(samples)
        return Outcome(
            rejects=rejects,
            table=pa.table(
                {
                    "row": pa.array([item.row for item in good], pa.int32()),
                    "sample_id": pa.array([item.sample.sample_id for item in good], pa.string()),
                }
            ),
            files=[(SAMPLES, self.suffix, self.pack([item.sample for item in good]))],
        )

    def _storable(
        self, samples: Sequence[UnitSample]
    ) -> tuple[list[UnitSample], list[tuple[int, Reject]]]:
        """Separate samples that the format can hold from those it cannot."""
        good, rejects = [], []
        for item in samples:
            try:
                empty = tuple(replace(image, data=b"") for image in item.sample.images)
                self.pack([replace(item.sample, images=empty)])
            except DataError as error:
                reject = reject_of(item.sample, "record_malformed", str(error))
                rejects.append((item.row, reject))
            else:
                good.append(item)
        return good, rejects
