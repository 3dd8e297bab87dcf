"""The second half of a dedup run: from the hashes in the ledger to a view and a table of groups.

The driver holds numeric columns, about 75 bytes per picture, and no sample ids; ids are read again
for samples that have duplicates. The decision temporarily needs another 180 bytes per picture, so a
hundred million pictures need 25 GB on the driver. Thumbnails stay on disk: `ThumbnailScratch`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

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
from consomme.pipelines.dedup.pictures import CONTENT_HASH, FURTHER, PictureRows
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.plan import pack_rows
from consomme.storage.sidecar import ID_HASH, iter_columns, table_bytes
from consomme.storage.unit import Unit
from consomme.storage.view import View

# Shapes: N pictures in the order of unit ids, rows and places in the sample; S samples with
# pictures, in that order; U units, R pictures by rank.
HASHES = "hashes"
"""Kind of the output files that hold a unit's hashes."""

GROUPS = "groups.parquet"
"""Name of the table of groups in its run folder."""

IMAGE_INDEX = "image_index"
"""Column of that table, if there are samples with none or several pictures."""

HASH_COLUMNS = (
    CONTENT_HASH,
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
    """Hashes and sizes of all pictures of a dedup run."""

    units: tuple[Unit, ...]
    """All units, in the order of their ids."""

    begin_U: Index  # noqa: N815
    """Index of the first picture of each unit, followed by the number of pictures."""

    bare_U: tuple[NDArray[np.int32], ...]  # noqa: N815
    """Rows of each unit's samples without pictures."""

    row_N: NDArray[np.int32]  # noqa: N815
    """Row of each picture's sample in its unit."""

    image_N: NDArray[np.int32]  # noqa: N815
    """Index of each picture in its sample."""

    place_N: NDArray[np.int32]  # noqa: N815
    """Place of each picture among those of its unit's file."""

    content_N2: Words  # noqa: N815
    phash_N: Words  # noqa: N815
    flipped_N: Words  # noqa: N815
    colour_N: Words  # noqa: N815
    is_flat_N: NDArray[np.bool_]  # noqa: N815
    pixels_N: NDArray[np.int64]  # noqa: N815
    num_bytes_N: NDArray[np.int32]  # noqa: N815
    id_hash_N: Words  # noqa: N815
    """Hash of source and id of the picture's sample."""

    @property
    def num_pictures(self) -> int:
        """Number of pictures."""
        return len(self.row_N)

    @cached_property
    def first_S(self) -> Index:  # noqa: N802
        """Index of the first picture of each sample that has any."""
        return np.flatnonzero(self.image_N == 0)

    @property
    def num_bare(self) -> int:
        """Number of samples without pictures."""
        return sum(map(len, self.bare_U))

    @property
    def num_samples(self) -> int:
        """Number of samples, those without pictures included."""
        return len(self.first_S) + self.num_bare

    @property
    def is_plain(self) -> bool:
        """Whether every sample has exactly one picture."""
        return len(self.first_S) == self.num_pictures and not self.num_bare

    @property
    def unit_N(self) -> Index:  # noqa: N802
        """Index of each picture's unit in `units`."""
        return np.repeat(np.arange(len(self.units)), np.diff(self.begin_U))


def load_hashes(url: str) -> SampleHashes:
    """Read the hashes of a run.

    Raises:
        DataError: The run has none.
    """
    tables = iter_columns(url, HASH_COLUMNS, HASHES, with_ids=False, optional=[FURTHER])
    return join_hashes(((record.unit, table) for record, table in tables), url)


def join_hashes(tables: Iterable[tuple[Unit, pa.Table]], where: str) -> SampleHashes:
    """Join the hashes of units.

    Raises:
        DataError: There are none.
    """
    units: list[Unit] = []
    bare: list[NDArray[np.int32]] = []
    parts: dict[str, list[NDArray[np.generic]]] = {}
    for unit, table in tables:
        rows = PictureRows.of(table)

        def hashes(name: str, table: pa.Table = table, rows: PictureRows = rows) -> Any:
            return rows.column(table, name).to_numpy(zero_copy_only=False)

        row_N, id_hash_N = table["row"].to_numpy(), table[ID_HASH].to_numpy()
        found: dict[str, NDArray[np.generic]] = {
            "row": row_N[rows.row_P],
            "image": rows.image_P.astype(np.int32),
            "place": np.arange(len(rows.row_P), dtype=np.int32),
            "content": _words(rows.column(table, CONTENT_HASH)),
            "phash": hashes("phash"),
            "flipped": hashes("phash_flipped"),
            "colour": hashes("colour"),
            "is_flat": hashes("is_flat"),
            "pixels": hashes("num_pixels"),
            "num_bytes": hashes("num_bytes"),
            "id_hash": id_hash_N[rows.row_P],
        }
        units.append(unit)
        bare.append(row_N[rows.bare])
        for name, values in found.items():
            parts.setdefault(name, []).append(values)
    sizes = [len(numbers) for numbers in parts.get("row", [])]
    if not sum(sizes) + sum(map(len, bare)):
        raise DataError(f"{where}: found no hashes of pictures; expected a dedup run with samples")
    joined = {f"{name}_N": np.concatenate(parts.pop(name)) for name in list(parts)}
    joined["content_N2"] = joined.pop("content_N")
    begin_U = np.cumsum([0, *sizes])
    return SampleHashes(units=tuple(units), begin_U=begin_U, bare_U=tuple(bare), **joined)


def read_scores(url: str, column: str, hashed: SampleHashes) -> NDArray[np.float32]:
    """Read one column of a score run, by sample with pictures; NaN where there is no score.

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
    first_S = hashed.first_S
    score_S = np.full(len(first_S), np.nan, dtype=np.float32)
    if sum(map(len, keys)):
        key = np.concatenate(keys)
        order = np.argsort(key)
        key, value, id_hash = (np.concatenate(part)[order] for part in (keys, values, ids))
        first_U = [(shards[_shard(unit)] << 32) + unit.start for unit in hashed.units]
        wanted_S = np.array(first_U)[hashed.unit_N[first_S]] + hashed.row_N[first_S]
        place_S = np.minimum(np.searchsorted(key, wanted_S), len(key) - 1)
        is_scored_S = key[place_S] == wanted_S
        num_others = int((is_scored_S & (id_hash[place_S] != hashed.id_hash_N[first_S])).sum())
        if num_others:
            raise DataError(
                f"{url}: {num_others:,} of the {len(first_S):,} samples have another id"
                " there; these are scores of other data, or the shards have changed since"
            )
        score_S = np.where(is_scored_S, value[place_S], score_S)
    if len(score_S) and np.isnan(score_S).all():
        raise DataError(
            f"{url}: none of the {len(first_S):,} samples has a {column} there; expected a"
            " score run of the same shards under the same source name"
        )
    return score_S


def rank_pictures(hashed: SampleHashes, score_S: NDArray[np.float32] | None) -> Index:
    """Return all pictures, those of the best sample first, in their order.

    A sample with a higher score is better, then one with more pictures, then with more pixels and
    bytes in all of them.
    """
    first_S = hashed.first_S
    if hashed.is_plain or not len(first_S):
        return rank_order(score_S, hashed.pixels_N, hashed.num_bytes_N, hashed.id_hash_N)
    size_S = np.diff(first_S, append=hashed.num_pictures)
    order = rank_order(
        None,
        np.add.reduceat(hashed.pixels_N, first_S),
        np.add.reduceat(hashed.num_bytes_N.astype(np.int64), first_S),
        hashed.id_hash_N[first_S],
    )
    keys = [-size_S[order]]
    if score_S is not None:
        is_missing = np.isnan(score_S[order])
        keys += [np.where(is_missing, 0, -score_S[order]), is_missing]
    order = order[np.lexsort(keys)]
    size = size_S[order]
    begin = np.cumsum(size) - size
    place = np.arange(hashed.num_pictures) - np.repeat(begin, size)
    pictures: Index = np.repeat(first_S[order], size) + place
    return pictures


def decide(
    hashed: SampleHashes,
    score_S: NDArray[np.float32] | None,
    limits: NearDuplicateLimits | None,
    *,
    flips: bool,
    thumbnails: Callable[[Index], ThumbnailTable],
) -> tuple[Index, Duplicates]:
    """Rank the pictures and find duplicates.

    Args:
        hashed: The pictures.
        score_S: What makes a sample the best of its copies, if anything does.
        limits: See `find_duplicates`.
        flips: Whether mirror images are duplicates.
        thumbnails: Opens the thumbnails of pictures, by index.

    Returns:
        order_R: Index of the picture at each rank; see `rank_pictures`.
        duplicates: By rank.
    """
    order_R = rank_pictures(hashed, score_S)
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
    """Write the view of the samples of kept pictures, and of those without pictures.

    Returns:
        Its path in the folder.
    """
    is_kept_N = np.zeros(hashed.num_pictures, dtype=bool)
    is_kept_N[kept] = True
    is_kept_N &= hashed.image_N == 0
    entries = []
    for unit, begin, end, bare in zip(
        hashed.units, hashed.begin_U[:-1], hashed.begin_U[1:], hashed.bare_U, strict=True
    ):
        rows = hashed.row_N[begin:end][is_kept_N[begin:end]].tolist()
        entries.append((unit, pack_rows(unit, [*rows, *bare.tolist()])))
    return View(entries=tuple(entries)).save(folder)


def save_groups(
    folder: RunFolder,
    hashes_url: str,
    hashed: SampleHashes,
    order_R: Index,
    duplicates: Duplicates,
    is_kept_R: NDArray[np.bool_],
) -> str:
    """Write the groups of duplicates: in each the best picture first, then by distance.

    Args:
        folder: Of the run.
        hashes_url: The run with the hashes.
        hashed: The pictures.
        order_R: Index of the picture at each rank.
        duplicates: By rank.
        is_kept_R: True for the pictures of samples that are kept.
    """
    size_R = np.bincount(duplicates.representative_N, minlength=len(order_R))
    members = np.flatnonzero(size_R[duplicates.representative_N] > 1)
    best, distance = duplicates.representative_N[members], duplicates.distance_N[members]
    members = members[np.lexsort((members, distance, best != members, best))]
    best, pictures = duplicates.representative_N[members], order_R[members]
    is_best = best == members
    reasons = np.where(duplicates.is_exact_N[members], "exact", "near")
    names, unit_N = _sample_ids(hashes_url, hashed, pictures), hashed.unit_N
    columns = {
        "group": np.cumsum(is_best) - 1,
        "unit_id": [hashed.units[number].unit_id for number in unit_N[pictures]],
        "row": hashed.row_N[pictures],
        "sample_id": [names[number] for number in pictures.tolist()],
        "kept": is_kept_R[members],
        "distance": duplicates.distance_N[members],
        "reason": pa.array(reasons, pa.string(), mask=is_best),
        "difference": pa.array(duplicates.difference_N[members], pa.float32(), mask=is_best),
    }
    table = pa.table(columns, schema=_GROUPS_SCHEMA)
    if not hashed.is_plain:
        image_index = pa.array(hashed.image_N[pictures], pa.int32())
        table = table.add_column(table.column_names.index("row") + 1, IMAGE_INDEX, image_index)
    folder.store.write(GROUPS, table_bytes(table))
    return GROUPS


def group_sizes(duplicates: Duplicates) -> dict[str, int]:
    """Count groups of duplicates by their number of pictures: `2`, `3-4`, `5-8` and so on."""
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


def _words(values: pa.Array) -> Words:
    """View hashes of 16 bytes as pairs of 64-bit words."""
    words = np.frombuffer(b"".join(values.to_pylist()), dtype="<u8")
    return words.reshape(-1, 2).astype(np.uint64)


def _shard(unit: Unit) -> str:
    """Return the prefix that the ids of all units of one shard share."""
    return unit.unit_id.rpartition("-")[0]


def _sample_ids(url: str, hashed: SampleHashes, pictures: Index) -> Mapping[int, str]:
    """Read the sample ids of pictures."""
    is_wanted_N = np.zeros(hashed.num_pictures, dtype=bool)
    is_wanted_N[pictures] = True
    names: dict[int, str] = {}
    tables = iter_columns(url, [CONTENT_HASH], HASHES, optional=[FURTHER])
    for begin, end, (_, table) in zip(
        hashed.begin_U[:-1].tolist(), hashed.begin_U[1:].tolist(), tables, strict=True
    ):
        pictures = np.flatnonzero(is_wanted_N[begin:end]) + begin
        if not len(pictures):
            continue
        rows = PictureRows.of(table).row_P[hashed.place_N[pictures]]
        found = table["sample_id"].take(pa.array(rows)).to_pylist()
        names.update(zip(pictures.tolist(), found, strict=True))
    return names
