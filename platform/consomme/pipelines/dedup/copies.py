"""The second half of a dedup run: from the hashes in the ledger to a view and a table of groups.

The driver holds numeric columns, about 70 bytes per sample, and no sample ids; ids are read again
for samples that have duplicates. The decision temporarily needs another 180 bytes per sample, so a
hundred million pictures need 25 GB on the driver. Thumbnails stay on disk: `ThumbnailScratch`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from consomme.base.errors import DataError
from consomme.curate.dedup.confirmation import ThumbnailTable
from consomme.curate.dedup.copies import (
    Duplicates,
    NearDuplicateLimits,
    find_duplicates,
    rank_order,
)
from consomme.curate.dedup.hash_tables import Index, Words
from consomme.curate.dedup.phash import mirrored_colour
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.plan import pack_rows
from consomme.storage.sidecar import ID_HASH, iter_columns, table_bytes
from consomme.storage.unit import Unit
from consomme.storage.view import View

# Shapes: N samples in the order of unit ids and rows, U units, R samples by rank.
HASHES = "hashes"
"""Kind of the output files that hold a unit's hashes."""

GROUPS = "groups.parquet"
"""Name of the table of groups in its run folder."""

HASH_COLUMNS = (
    "content_hash",
    "phash",
    "phash_flipped",
    "colour",
    "is_flat",
    "num_pixels",
    "num_bytes",
    ID_HASH,
)
_GROUPS_SCHEMA = pa.schema(
    [
        ("group", pa.int64()),
        ("unit_id", pa.string()),
        ("row", pa.int32()),
        ("sample_id", pa.string()),
        ("kept", pa.bool_()),
        ("distance", pa.uint8()),
        ("reason", pa.string()),
        ("difference", pa.float32()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class SampleHashes:
    """Hashes and sizes of all samples of a dedup run."""

    units: tuple[Unit, ...]
    """All units, in the order of their ids."""

    begin_U: Index  # noqa: N815
    """Index of the first sample of each unit, followed by the number of samples."""

    row_N: NDArray[np.int32]  # noqa: N815
    content_N2: Words  # noqa: N815
    phash_N: Words  # noqa: N815
    flipped_N: Words  # noqa: N815
    colour_N: Words  # noqa: N815
    is_flat_N: NDArray[np.bool_]  # noqa: N815
    pixels_N: NDArray[np.int64]  # noqa: N815
    num_bytes_N: NDArray[np.int32]  # noqa: N815
    id_hash_N: Words  # noqa: N815
    """Hash of source and sample id."""

    @property
    def num_samples(self) -> int:
        """Number of samples."""
        return len(self.row_N)

    @property
    def unit_N(self) -> Index:  # noqa: N802
        """Index of each sample's unit in `units`."""
        return np.repeat(np.arange(len(self.units)), np.diff(self.begin_U))


def load_hashes(url: str) -> SampleHashes:
    """Read the hashes of a run.

    Raises:
        DataError: The run has none.
    """
    tables = iter_columns(url, HASH_COLUMNS, HASHES, with_ids=False)
    return join_hashes(((record.unit, table) for record, table in tables), url)


def join_hashes(tables: Iterable[tuple[Unit, pa.Table]], where: str) -> SampleHashes:
    """Join the hashes of units.

    Raises:
        DataError: There are none.
    """
    units: list[Unit] = []
    parts: dict[str, list[NDArray[np.generic]]] = {}
    for unit, table in tables:
        found: dict[str, NDArray[np.generic]] = {
            "row": table["row"].to_numpy(),
            "content": _words(table["content_hash"]),
            "phash": table["phash"].to_numpy(),
            "flipped": table["phash_flipped"].to_numpy(),
            "colour": table["colour"].to_numpy(),
            "is_flat": table["is_flat"].to_numpy(),
            "pixels": table["num_pixels"].to_numpy(),
            "num_bytes": table["num_bytes"].to_numpy(),
            "id_hash": table[ID_HASH].to_numpy(),
        }
        units.append(unit)
        for name, values in found.items():
            parts.setdefault(name, []).append(values)
    sizes = [len(rows) for rows in parts.get("row", [])]
    if not sum(sizes):
        raise DataError(f"{where}: found no hashes of pictures; expected a dedup run with samples")
    joined = {f"{name}_N": np.concatenate(parts.pop(name)) for name in list(parts)}
    joined["content_N2"] = joined.pop("content_N")
    return SampleHashes(units=tuple(units), begin_U=np.cumsum([0, *sizes]), **joined)


def read_scores(url: str, column: str, hashed: SampleHashes) -> NDArray[np.float32]:
    """Read one column of a score run, aligned with the samples; NaN where there is no score.

    Samples are matched by shard and row, so the two runs may split shards into different units.

    Raises:
        DataError: There is no such numeric column, no sample has a score, or a row has another
            sample id, which means that the scores are of other data.
    """
    names = dict.fromkeys(map(_shard, hashed.units))
    shards = {name: number for number, name in enumerate(names)}
    keys, ids, values = [], [], []
    for record, table in iter_columns(url, [column, ID_HASH], with_ids=False):
        number = shards.get(_shard(record.unit))
        if number is None:
            continue
        kind = table.schema.field(column).type
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            raise DataError(f"{url}: column {column} holds {kind}, expected numbers")
        keys.append((number << 32) + record.unit.start + table["row"].to_numpy().astype(np.int64))
        ids.append(table[ID_HASH].to_numpy())
        values.append(table[column].to_numpy(zero_copy_only=False).astype(np.float32))
    score_N = np.full(hashed.num_samples, np.nan, dtype=np.float32)
    if sum(map(len, keys)):
        key = np.concatenate(keys)
        order = np.argsort(key)
        key, value, id_hash = (np.concatenate(part)[order] for part in (keys, values, ids))
        first_U = [(shards[_shard(unit)] << 32) + unit.start for unit in hashed.units]
        wanted_N = np.array(first_U)[hashed.unit_N] + hashed.row_N
        place_N = np.minimum(np.searchsorted(key, wanted_N), len(key) - 1)
        is_scored_N = key[place_N] == wanted_N
        num_others = int((is_scored_N & (id_hash[place_N] != hashed.id_hash_N)).sum())
        if num_others:
            raise DataError(
                f"{url}: {num_others:,} of the {hashed.num_samples:,} samples have another id"
                " there; these are scores of other data, or the shards have changed since"
            )
        score_N = np.where(is_scored_N, value[place_N], score_N)
    if np.isnan(score_N).all():
        raise DataError(
            f"{url}: none of the {hashed.num_samples:,} samples has a {column} there; expected a"
            " score run of the same shards under the same source name"
        )
    return score_N


def decide(
    hashed: SampleHashes,
    score_N: NDArray[np.float32] | None,
    limits: NearDuplicateLimits | None,
    *,
    flips: bool,
    thumbnails: Callable[[Index], ThumbnailTable],
) -> tuple[Index, Duplicates]:
    """Rank the samples, higher scores first, and find duplicates.

    Args:
        hashed: The samples.
        score_N: What makes a sample the best of its copies, if anything does.
        limits: See `find_duplicates`.
        flips: Whether mirror images are duplicates.
        thumbnails: Opens the thumbnails of samples, by index.

    Returns:
        order_R: Index of the sample at each rank.
        duplicates: By rank.
    """
    order_R = rank_order(score_N, hashed.pixels_N, hashed.num_bytes_N, hashed.id_hash_N)
    hashes, colours = [hashed.phash_N[order_R]], [hashed.colour_N[order_R]]
    if flips:
        hashes.append(hashed.flipped_N[order_R])
        colours.append(mirrored_colour(colours[0]))
    duplicates = find_duplicates(
        hashed.content_N2[order_R],
        np.stack(hashes, axis=1),
        np.stack(colours, axis=1),
        hashed.is_flat_N[order_R],
        limits,
        lambda ranks: thumbnails(order_R[ranks]),
    )
    return order_R, duplicates


def save_view(folder: RunFolder, hashed: SampleHashes, kept: Index) -> str:
    """Write the view of the kept samples, and return its path in the folder."""
    is_kept_N = np.zeros(hashed.num_samples, dtype=bool)
    is_kept_N[kept] = True
    entries = []
    for unit, begin, end in zip(hashed.units, hashed.begin_U[:-1], hashed.begin_U[1:], strict=True):
        rows = hashed.row_N[begin:end][is_kept_N[begin:end]].tolist()
        entries.append((unit, pack_rows(unit, rows)))
    return View(entries=tuple(entries)).save(folder)


def save_groups(
    folder: RunFolder, hashes_url: str, hashed: SampleHashes, order_R: Index, duplicates: Duplicates
) -> str:
    """Write the groups of duplicates: in each the kept sample first, then by distance."""
    size_R = np.bincount(duplicates.representative_N, minlength=len(order_R))
    members = np.flatnonzero(size_R[duplicates.representative_N] > 1)
    kept, distance = duplicates.representative_N[members], duplicates.distance_N[members]
    members = members[np.lexsort((members, distance, kept != members, kept))]
    kept, samples = duplicates.representative_N[members], order_R[members]
    is_kept = kept == members
    reasons = np.where(duplicates.is_exact_N[members], "exact", "near")
    names, unit_N = _sample_ids(hashes_url, hashed, samples), hashed.unit_N
    columns = {
        "group": np.cumsum(is_kept) - 1,
        "unit_id": [hashed.units[number].unit_id for number in unit_N[samples]],
        "row": hashed.row_N[samples],
        "sample_id": [names[number] for number in samples.tolist()],
        "kept": is_kept,
        "distance": duplicates.distance_N[members],
        "reason": pa.array(reasons, pa.string(), mask=is_kept),
        "difference": pa.array(duplicates.difference_N[members], pa.float32(), mask=is_kept),
    }
    folder.store.write(GROUPS, table_bytes(pa.table(columns, schema=_GROUPS_SCHEMA)))
    return GROUPS


def group_sizes(duplicates: Duplicates) -> dict[str, int]:
    """Count groups of duplicates by their number of samples: `2`, `3-4`, `5-8` and so on."""
    sizes = np.bincount(duplicates.representative_N)
    counts: dict[str, int] = {}
    high = 2
    while (sizes >= (low := high // 2 + 1)).any():
        number = int(((sizes >= low) & (sizes <= high)).sum())
        if number:
            counts[str(high) if low == high else f"{low}-{high}"] = number
        high *= 2
    return counts


def distances(duplicates: Duplicates) -> dict[str, int]:
    """Count near duplicates by the distance from their representative."""
    is_near_R = ~duplicates.is_exact_N & ~duplicates.is_kept_N
    counts = np.bincount(duplicates.distance_N[is_near_R])
    return {str(bits): int(number) for bits, number in enumerate(counts) if number}


def _words(column: pa.ChunkedArray) -> Words:
    """View hashes of 16 bytes as pairs of 64-bit words."""
    words = np.frombuffer(b"".join(column.to_pylist()), dtype="<u8")
    return words.reshape(-1, 2).astype(np.uint64)


def _shard(unit: Unit) -> str:
    """Return the prefix that the ids of all units of one shard share."""
    return unit.unit_id.rpartition("-")[0]


def _sample_ids(url: str, hashed: SampleHashes, samples: Index) -> Mapping[int, str]:
    """Read the ids of samples."""
    is_wanted_N = np.zeros(hashed.num_samples, dtype=bool)
    is_wanted_N[samples] = True
    names: dict[int, str] = {}
    for begin, (_, table) in zip(
        hashed.begin_U.tolist(), iter_columns(url, [], HASHES), strict=False
    ):
        places = np.flatnonzero(is_wanted_N[begin : begin + table.num_rows])
        found = table["sample_id"].take(pa.array(places)).to_pylist()
        names.update(zip((places + begin).tolist(), found, strict=True))
    return names
