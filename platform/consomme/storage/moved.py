"""Shards in run folders that lie elsewhere than when they were read, as in a copy of all runs."""

from __future__ import annotations

import dataclasses

from consomme.base.errors import DataError
from consomme.base.manifest import moved_runs
from consomme.storage.ledger.run_folder import RunFolder, load_manifest
from consomme.storage.unit import Unit


class MovedShards:
    """Finds the shards of a run's units where they lie now."""

    def __init__(self, run: RunFolder) -> None:
        """Look for the runs that this one was made from: beside it, or where they were."""
        try:
            self._moved = moved_runs(run.manifest(), load_manifest)
        except DataError:
            # Not finished; its parents have not moved while it runs.
            self._moved = {}

    def url(self, shard: str) -> str:
        """Return where a shard lies now."""
        for before, now in self._moved.items():
            if shard.startswith(f"{before}/"):
                return now + shard[len(before) :]
        return shard

    def unit(self, unit: Unit) -> Unit:
        """Return a unit with the shard where it lies now."""
        return dataclasses.replace(unit, shard=self.url(unit.shard)) if self._moved else unit
