"""The stage that copies samples into new shards, with names and bytes unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from consomme.execution.stage import BytesStage, Outcome, UnitSample
from consomme.storage.ledger.run_folder import SAMPLES
from consomme.storage.writers import FORMATS, shard_fields

if TYPE_CHECKING:
    from consomme.pipelines.filter.recipe import FilterRecipe


class CopyStage(BytesStage):
    """Write each unit's samples as one shard of its own."""

    def __init__(self, recipe: FilterRecipe) -> None:
        """Select the writer of the recipe's `file_format`."""
        self.suffix, self.pack = FORMATS[recipe.file_format]

    def work(self, samples: Sequence[UnitSample]) -> Outcome:
        """Copy one unit."""
        copies = [item.sample for item in samples]
        return Outcome(
            table=pa.table(
                {
                    "row": pa.array([item.row for item in samples], pa.int32()),
                    "sample_id": pa.array([item.sample.sample_id for item in samples], pa.string()),
                }
            ),
            sums=shard_fields(copies, self.suffix),
            files=[(SAMPLES, self.suffix, self.pack(copies))],
        )
