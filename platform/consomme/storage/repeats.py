"""Ids that occur more than once in a shard: all samples are kept, the later ones renamed.

Which records these are is found when a shard is planned, so that it does not depend on how the
shard is cut. A unit carries them as a bitmap in hexadecimal digits; most carry none.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from consomme.storage.readers.names import id_of
from consomme.storage.reading import Reading
from consomme.storage.unit import Unit


class Repeats:
    """Collects the ids of a shard's records: 24 bytes each."""

    def __init__(self, reading: Reading) -> None:
        """Know none.

        Args:
            reading: May name the column of ids.
        """
        self._reading = reading
        self._hashes = array("q")
        self._renamed = array("q")
        """Hashes of what the ids are made if they came before."""

        self._rows = array("q")
        self._num_records = 0

    def add(self, value: Any) -> None:
        """Add the next record.

        Args:
            value: Its id, or the record; what has no id is unique.
        """
        name = id_of(value, self._reading) if isinstance(value, dict) else value
        if isinstance(name, str):
            self._hashes.append(hash(name))
            self._renamed.append(hash(name + suffix_of(self._num_records)))
            self._rows.append(self._num_records)
        self._num_records += 1

    def marked(self, units: Sequence[Unit]) -> Iterator[Unit]:
        """Yield the units, in the order of records, with the repeats that each holds."""
        rows = np.empty(0, np.int64)
        if self._rows:
            hashes_N, renamed_N, rows_N = (
                np.frombuffer(one, np.int64) for one in (self._hashes, self._renamed, self._rows)
            )
            is_repeat_N = np.ones(len(hashes_N), bool)
            is_repeat_N[np.unique(hashes_N, return_index=True)[1]] = False
            # An id that somebody gave may be what a repeated one is made; then it is renamed, too.
            while (taken_N := np.isin(hashes_N, renamed_N[is_repeat_N]) & ~is_repeat_N).any():
                is_repeat_N |= taken_N
            rows = rows_N[is_repeat_N]
        for unit in units:
            begin, end = np.searchsorted(rows, (unit.start, unit.start + unit.count))
            yield replace(unit, repeats=_packed((rows[begin:end] - unit.start).tolist()))


def suffix_of(record: int) -> str:
    """Return what is added to an id that came before, by the number of its record in the shard."""
    return f"@{record}"


def repeated_rows(text: str) -> frozenset[int]:
    """Return the records of a unit whose ids came before."""
    if not text:
        return frozenset()
    bits = int(text, 16)
    return frozenset(row for row in range(bits.bit_length()) if bits >> row & 1)


def repeats_between(text: str, first: int, last: int) -> str:
    """Return what a part of a unit carries: its records from `first` to before `last`."""
    return _packed([row - first for row in repeated_rows(text) if first <= row < last])


def _packed(rows: Sequence[int]) -> str:
    return f"{sum(1 << row for row in rows):x}" if rows else ""
