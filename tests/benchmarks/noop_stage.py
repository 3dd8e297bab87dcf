"""A stage that decodes samples and writes them unchanged."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from consomme.execution.stage import DecodedSample, Outcome, UnitStage
from consomme.storage.ledger.run_folder import SAMPLES
from consomme.storage.writers import tar_bytes


class NoopStage(UnitStage):
    """Write samples unchanged."""

    def work(self, samples: Sequence[DecodedSample]) -> Outcome:
        """Write one shard per unit."""
        rows = pa.array([item.row for item in samples], pa.int32())
        ids = pa.array([item.sample.sample_id for item in samples], pa.string())
        return Outcome(
            table=pa.table({"row": rows, "sample_id": ids}),
            files=[(SAMPLES, "tar", tar_bytes([item.sample for item in samples]))],
        )
