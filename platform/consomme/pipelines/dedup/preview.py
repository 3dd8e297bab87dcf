"""Preview what a dedup would drop: counts, and a page with both pictures of each pair.

With `hashes`, all samples are decided about, as in the run. With shards or a view, the pictures of
the first `MAX_PICTURES` samples are read and hashed in this process, without Ray. Nothing is
written except the page, outside all run folders.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from consomme.base.errors import DataError
from consomme.base.sample import Sample
from consomme.curate.dedup.confirmation import ThumbnailTable
from consomme.curate.dedup.hash_tables import Index
from consomme.curate.dedup.thumbnails import NUM_BYTES
from consomme.curate.dedup.thumbnails import coarse_levels as levels_of
from consomme.execution.previews import write_preview
from consomme.execution.stage import DecodedSample
from consomme.execution.worker import with_id_hash
from consomme.pipelines.dedup.copies import (
    HASH_COLUMNS,
    SampleHashes,
    distances,
    join_hashes,
    load_hashes,
)
from consomme.pipelines.dedup.decision import DedupDecision, decide_by, describe_best
from consomme.pipelines.dedup.recipe import DedupRecipe
from consomme.pipelines.dedup.stage import MIN_SIDE_PX, THUMBNAIL, HashStage
from consomme.pipelines.dedup.thumbnails import ThumbnailScratch, fill
from consomme.report import model as page
from consomme.report.html import render
from consomme.storage.shards import find_shards
from consomme.storage.unit import Unit
from consomme.storage.units import plan_shard, read_unit
from consomme.storage.view import View, read_view_unit
from consomme.vision.decode import DecodeProblem, decode

MAX_PICTURES = 20_000
"""Pictures that are hashed for a preview; minutes on one core."""

MAX_PAIRS = 60
"""Pairs on the page: those that differ most, and some of each smaller difference."""

_SIDE_PX = 220


@dataclass(frozen=True, kw_only=True)
class DedupPreview:
    """The preview as the command line shows it."""

    name: str
    table: Mapping[str, Any]
    """`{"title": …, "columns": […], "rows": [[…], …]}`."""

    page: str
    """Path of the page."""

    what: str
    """What was looked at."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines below the table."""
        return (f"  looked at   {self.what}", f"  page        {self.page}")


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """A copy and the sample that stays instead."""

    kept: Sample
    dropped: Sample
    facts: str


def preview(recipe: DedupRecipe) -> DedupPreview:
    """Decide without a run, and write the page.

    Raises:
        DataError: As in the run; or no picture could be read.
    """
    if recipe.hashes:
        hashed = load_hashes(recipe.hashes)
        what = f"all {hashed.num_samples:,} samples"
        with ThumbnailScratch(recipe.hashes, hashed) as scratch:
            decision = decide_by(recipe, hashed, scratch.open)
    else:
        tables, is_all = _hashed_here(recipe)
        hashed = join_hashes(tables, _data(recipe))
        number = f"{hashed.num_samples:,} samples"
        what = f"all {number}" if is_all else f"the first {number}; a run finds copies among all"

        def thumbnails(sample_M: Index) -> ThumbnailTable:
            made = np.zeros((len(sample_M), NUM_BYTES), np.uint8)
            table = ThumbnailTable(thumbnail_NB=made, coarse_NB=levels_of(made))
            fill(table, sample_M, hashed, tables)
            return table

        decision = decide_by(recipe, hashed, thumbnails)
    pairs = _pairs(hashed, decision)
    counts = decision.counts
    table = {
        "title": "What would be dropped",
        "columns": ["", "samples"],
        "rows": [[name, f"{counts[name]:,}"] for name in ("samples", "kept", "exact", "near")],
    }
    text = render(_page(recipe, decision, pairs, what))
    return DedupPreview(
        name=recipe.name,
        table=table,
        page=write_preview("dedup", recipe.root, recipe.name, text),
        what=what,
    )


def _hashed_here(recipe: DedupRecipe) -> tuple[list[tuple[Unit, pa.Table]], bool]:
    """Hash the first pictures; also say whether they are all."""
    stage, total = HashStage(), 0
    done: list[tuple[Unit, pa.Table]] = []
    for unit, rows in _units(recipe):
        if total >= MAX_PICTURES:
            return done, False
        pictures = (
            (row, sample, decode(sample.images[0].data, min_side_px=MIN_SIDE_PX))
            for row, sample in rows
        )
        decoded = [
            DecodedSample(row=row, sample=sample, images=(image,))
            for row, sample, image in pictures
            if not isinstance(image, DecodeProblem)
        ]
        if decoded:
            table = with_id_hash(stage.work(decoded).table, unit.source)
            done.append((unit, table.select(["row", *HASH_COLUMNS, THUMBNAIL])))
            total += len(decoded)
    return done, True


def _units(recipe: DedupRecipe) -> Iterator[tuple[Unit, Sequence[tuple[int, Sample]]]]:
    if recipe.view:
        for unit, bitmap in View.load(recipe.view).entries:
            yield unit, read_view_unit(unit, bitmap)
        return
    for shard in find_shards(recipe.inputs, recipe.source, recipe.sources):
        for unit in plan_shard(shard, recipe.unit_rows):
            yield unit, read_unit(unit)[0]


def _pairs(hashed: SampleHashes, decision: DedupDecision) -> list[_Pair]:
    """Read the pictures of some pairs, those that differ most first."""
    duplicates = decision.duplicates
    near_R = np.flatnonzero(~duplicates.is_kept_N & ~duplicates.is_exact_N)
    by_difference = near_R[np.argsort(-duplicates.difference_N[near_R], kind="stable")]
    half = MAX_PAIRS // 2
    rest = by_difference[half:]
    step = max(1, -(-len(rest) // half))
    chosen_R = np.concatenate([by_difference[:half], rest[::step]])
    kept_R = duplicates.representative_N[chosen_R]
    samples = _read(hashed, decision.order_R[np.concatenate([chosen_R, kept_R])])
    return [
        _Pair(
            kept=kept,
            dropped=dropped,
            facts=(
                f"{duplicates.distance_N[rank]} bits apart, difference"
                f" {duplicates.difference_N[rank]:.2f}"
            ),
        )
        for rank, dropped, kept in zip(
            chosen_R, samples[: len(chosen_R)], samples[len(chosen_R) :], strict=True
        )
    ]


def _read(hashed: SampleHashes, wanted: Index) -> list[Sample]:
    """Read samples by index, each unit once."""
    unit_of = hashed.unit_N[wanted]
    found: dict[int, Sample] = {}
    for number in np.unique(unit_of).tolist():
        unit = hashed.units[number]
        samples = dict(read_unit(unit)[0])
        for index in wanted[unit_of == number].tolist():
            row = int(hashed.row_N[index])
            if row not in samples:
                raise DataError(
                    f"{unit.shard}: row {unit.start + row} was hashed, but cannot be read any more;"
                    " expected the data that was hashed"
                )
            found[index] = samples[row]
    return [found[index] for index in wanted.tolist()]


def _page(
    recipe: DedupRecipe, decision: DedupDecision, pairs: Sequence[_Pair], what: str
) -> page.Report:
    counts = decision.counts
    dropped = counts["exact"] + counts["near"]
    text = (
        f"{dropped:,} of {counts['samples']:,} samples would be dropped: {counts['exact']:,} have"
        f" the same bytes as one that stays, {counts['near']:,} look like one. Of each group the"
        f" best stays: {describe_best(recipe)}."
    )
    blocks: list[page.Block] = [
        page.Table(
            columns=("bits apart", "near copies"), rows=list(distances(decision.duplicates).items())
        )
    ]
    if pairs:
        blocks.append(
            page.Gallery(
                items=[_item(pair) for pair in pairs],
                is_wide=True,
                caption=(
                    "Left what stays, right what goes; those that differ most first. A difference"
                    " of 1 is the largest that counts as a copy."
                ),
            )
        )
    return page.Report(
        title=f"Preview of dedup {recipe.name}",
        subtitle="nothing has been written but this page",
        facts=[("looked at", what), ("would stay", f"{counts['kept']:,}")],
        sections=[page.Section(title="What would be dropped", lead_text=text, blocks=blocks)],
        footer=f"Data: {_data(recipe)}",
    )


def _data(recipe: DedupRecipe) -> str:
    shards = [*recipe.inputs, *(url for urls in recipe.sources.values() for url in urls)]
    return recipe.hashes or recipe.view or ", ".join(shards)


def _item(pair: _Pair) -> page.GalleryItem:
    return page.GalleryItem(
        image_bytes=_side_by_side(pair.kept.images[0].data, pair.dropped.images[0].data),
        title=pair.facts,
        lines=(f"stays: {pair.kept.sample_id}", f"goes: {pair.dropped.sample_id}"),
        badge="copy",
    )


def _side_by_side(one: bytes, other: bytes) -> bytes:
    """Draw two pictures beside each other, as JPEG."""
    sheet = Image.new("RGB", (2 * _SIDE_PX + 8, _SIDE_PX), "white")
    for place, data in enumerate((one, other)):
        picture = decode(data, min_side_px=_SIDE_PX)
        if isinstance(picture, DecodeProblem):
            continue
        factor = _SIDE_PX / max(picture.size)
        size = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
        picture = picture.resize(size, Image.Resampling.BICUBIC)
        at = place * (_SIDE_PX + 8) + (_SIDE_PX - size[0]) // 2, (_SIDE_PX - size[1]) // 2
        sheet.paste(picture, at)
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
