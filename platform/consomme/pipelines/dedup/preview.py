"""Preview what a dedup would drop: counts, and a page with both pictures of each pair.

With `hashes`, all samples are decided about, as in the run. With shards or a view, the first
`MAX_PICTURES` pictures are read and hashed in this process, without Ray. Nothing is written except
the page, outside all run folders.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from consomme.base.errors import DataError
from consomme.base.sample import Reject, Sample
from consomme.curate.dedup.confirmation import ThumbnailTable
from consomme.curate.dedup.hash_tables import Index
from consomme.curate.dedup.thumbnails import NUM_BYTES
from consomme.curate.dedup.thumbnails import coarse_levels as levels_of
from consomme.execution.previews import write_preview
from consomme.execution.stage import DecodedSample, decoded_images
from consomme.execution.worker import with_id_hash
from consomme.pipelines.dedup.against import (
    KnownQuestions,
    find_contaminated,
    tables_of,
    without,
)
from consomme.pipelines.dedup.copies import (
    HASH_COLUMNS,
    SampleHashes,
    distances,
    join_hashes,
    load_hashes,
)
from consomme.pipelines.dedup.decision import DedupDecision, decide_by, describe_best
from consomme.pipelines.dedup.pictures import FURTHER, FURTHER_THUMBNAILS, THUMBNAIL
from consomme.pipelines.dedup.recipe import DedupRecipe
from consomme.pipelines.dedup.report import against_blocks, against_text, describe_order
from consomme.pipelines.dedup.stage import MIN_SIDE_PX, QUOTES, HashStage
from consomme.pipelines.dedup.thumbnails import ThumbnailScratch, fill
from consomme.report import model as page
from consomme.report.html import render
from consomme.report.samples import is_caption, shown_turns
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
class _SampleImage:
    """A picture of a sample."""

    sample: Sample
    index: int

    @property
    def data(self) -> bytes:
        """Its encoded bytes."""
        return self.sample.images[self.index].data

    @property
    def name(self) -> str:
        """Id of the sample, and which of its pictures it is if there are several."""
        total = len(self.sample.images)
        which = f", picture {self.index + 1} of {total}" if total > 1 else ""
        return f"{self.sample.sample_id}{which}"


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """A copy, and the picture that it is a copy of."""

    best: _SampleImage
    copy: _SampleImage
    is_best_kept: bool
    is_copy_kept: bool
    facts: str


def preview(recipe: DedupRecipe) -> DedupPreview:
    """Decide without a run, and write the page.

    Raises:
        DataError: As in the run; or no picture could be read.
    """
    known = KnownQuestions.of(recipe)
    contaminated = None
    if recipe.hashes:
        hashed = load_hashes(recipe.hashes)
        what = f"all {hashed.num_samples:,} samples"
        if known is not None:
            with ThumbnailScratch(recipe.hashes, hashed) as scratch:
                contaminated = find_contaminated(
                    recipe, known, hashed, tables_of(recipe.hashes), scratch.open
                )
            hashed = without(hashed, contaminated.rows)
        with ThumbnailScratch(recipe.hashes, hashed) as scratch:
            decision = decide_by(recipe, hashed, scratch.open)
    else:
        tables, is_all = _hashed_here(recipe, known)
        hashed = join_hashes(tables, _data(recipe))
        number = f"{hashed.num_samples:,} samples"
        what = f"all {number}" if is_all else f"the first {number}; a run finds copies among all"

        def thumbnails(picture_M: Index) -> ThumbnailTable:
            made = np.zeros((len(picture_M), NUM_BYTES), np.uint8)
            table = ThumbnailTable(thumbnail_NB=made, coarse_NB=levels_of(made))
            # `hashed` as it is when this is called: without what is of a benchmark.
            fill(table, picture_M, hashed, tables)
            return table

        if known is not None:
            contaminated = find_contaminated(recipe, known, hashed, tables, thumbnails)
            hashed = without(hashed, contaminated.rows)
        decision = decide_by(recipe, hashed, thumbnails)
    pairs = _pairs(hashed, decision)
    counts = decision.counts
    if contaminated is not None:
        counts["of a benchmark"] = contaminated.num_samples
        counts["samples"] += contaminated.num_samples
    table = {
        "title": "What would be dropped",
        "columns": ["", "samples"],
        "rows": [[name, f"{number:,}"] for name, number in counts.items()],
    }
    report = _page(recipe, hashed, decision, pairs, what)
    if contaminated is not None:
        found = page.Section(
            title="Benchmarks in the data",
            lead_text=against_text(contaminated.num_samples),
            blocks=[against_blocks(contaminated.by_benchmark)],
        )
        report = dataclasses.replace(report, sections=[*report.sections, found])
    text = render(report)
    return DedupPreview(
        name=recipe.name,
        table=table,
        page=write_preview("dedup", recipe.root, recipe.name, text),
        what=what,
    )


def _hashed_here(
    recipe: DedupRecipe, known: KnownQuestions | None
) -> tuple[list[tuple[Unit, pa.Table]], bool]:
    """Hash the first pictures; also say whether they are all."""
    stage, total = HashStage(known.index if known else None), 0
    done: list[tuple[Unit, pa.Table]] = []
    for unit, rows in _units(recipe):
        if total >= MAX_PICTURES:
            return done, False
        read = partial(decode, min_side_px=MIN_SIDE_PX)
        decoded = [
            DecodedSample(row=row, sample=sample, images=images)
            for row, sample in rows
            for images in [decoded_images(sample, [read(one.data) for one in sample.images])]
            if not isinstance(images, Reject)
        ]
        if decoded:
            table = with_id_hash(stage.work(decoded).table, unit.source)
            optional = [THUMBNAIL, FURTHER, FURTHER_THUMBNAILS, QUOTES]
            names = ["row", "sample_id", *HASH_COLUMNS, *optional]
            done.append((unit, table.select([n for n in names if n in table.column_names])))
            total += sum(len(item.images) for item in decoded)
    return done, True


def _units(recipe: DedupRecipe) -> Iterator[tuple[Unit, Sequence[tuple[int, Sample]]]]:
    if recipe.view:
        for unit, bitmap in View.load(recipe.view).entries:
            yield unit, read_view_unit(unit, bitmap)
        return
    for shard in find_shards(recipe.inputs, recipe.source, recipe.sources):
        for unit in plan_shard(shard, recipe.unit_rows, reading=recipe.reading.for_units()):
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
    best_R = duplicates.representative_N[chosen_R]
    is_kept_R = decision.is_kept_R
    images = _read(hashed, decision.order_R[np.concatenate([chosen_R, best_R])])
    return [
        _Pair(
            best=best,
            copy=copy,
            is_best_kept=bool(is_kept_R[best_rank]),
            is_copy_kept=bool(is_kept_R[rank]),
            facts=(
                f"{duplicates.distance_N[rank]} bits apart, difference"
                f" {duplicates.difference_N[rank]:.2f}"
            ),
        )
        for rank, best_rank, copy, best in zip(
            chosen_R, best_R, images[: len(chosen_R)], images[len(chosen_R) :], strict=True
        )
    ]


def _read(hashed: SampleHashes, wanted: Index) -> list[_SampleImage]:
    """Read pictures by index, each unit once."""
    unit_of = hashed.unit_N[wanted]
    found: dict[int, _SampleImage] = {}
    for number in np.unique(unit_of).tolist():
        unit = hashed.units[number]
        samples = dict(read_unit(unit)[0])
        for index in wanted[unit_of == number].tolist():
            row, image = int(hashed.row_N[index]), int(hashed.image_N[index])
            if row not in samples or image >= len(samples[row].images):
                raise DataError(
                    f"{unit.shard}: row {unit.start + row} was hashed, but cannot be read any more;"
                    " expected the data that was hashed"
                )
            found[index] = _SampleImage(sample=samples[row], index=image)
    return [found[index] for index in wanted.tolist()]


def _page(
    recipe: DedupRecipe,
    hashed: SampleHashes,
    decision: DedupDecision,
    pairs: Sequence[_Pair],
    what: str,
) -> page.Report:
    counts = decision.counts
    dropped = counts["exact"] + counts["near"]
    best = describe_best(recipe, is_plain=hashed.is_plain)
    text = (
        f"{dropped:,} of {counts['samples']:,} samples would be dropped: {counts['exact']:,} have"
        f" the same bytes as one that stays, {counts['near']:,} look like one."
        f" {describe_order(best, is_plain=hashed.is_plain)}"
    )
    left, right = "what stays", "what goes"
    if not hashed.is_plain:
        text += (
            f" There are {hashed.num_pictures:,} pictures in all; {hashed.num_bare:,} samples have"
            f" none and stay. A sample goes by `drop_sample_if: {recipe.drop_sample_if}`."
        )
        left, right = "the better picture", "its copy"
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
                    f"Left {left}, right {right}; those that differ most first. A difference of 1"
                    " is the largest that counts as a copy."
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
    """Show both pictures; and both samples, unless they have a picture and a caption each."""
    turns: list[page.ShownTurn] = []
    if not (is_caption(pair.best.sample) and is_caption(pair.copy.sample)):
        for side, one in (("left", pair.best), ("right", pair.copy)):
            for turn in shown_turns(one.sample, marked=one.index):
                role = f"{side} · {turn.role}" if turn.role else side
                turns.append(dataclasses.replace(turn, role=role))
    fates = {True: "stays", False: "goes"}
    return page.GalleryItem(
        image_bytes=_side_by_side(pair.best.data, pair.copy.data),
        title=pair.facts,
        turns=turns,
        lines=(
            *((pair.facts,) if turns else ()),
            f"{fates[pair.is_best_kept]}: {pair.best.name}",
            f"{fates[pair.is_copy_kept]}: {pair.copy.name}",
        ),
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
