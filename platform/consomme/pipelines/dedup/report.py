"""The report section of `dedup`: what was taken for duplicates."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq

from consomme.base.manifest import Manifest
from consomme.base.sample import Sample
from consomme.pipelines.dedup.against import read_contaminated
from consomme.pipelines.dedup.copies import GROUPS, IMAGE_INDEX
from consomme.report import model as page
from consomme.report.samples import sample_card
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.units import read_unit

NUM_GROUPS = 12
MAX_SHOWN = 4


def sections(runs: Sequence[Manifest], every_run: Mapping[str, Manifest]) -> list[page.Section]:
    """Draw these runs; `every_run` of the page, by name, says what else is known."""
    return [_section(manifest) for manifest in runs]


def _section(manifest: Manifest) -> page.Section:
    """Show counts, distances, and the groups to check first."""
    counts, decisions = manifest.counts, manifest.decisions
    text = kept_text(counts, decisions)
    if decisions["max_distance"] is not None:
        text += (
            f" (at most {decisions['max_distance']} of 64 bits and {decisions['max_colour']} of 255"
            " colour levels apart by their hashes"
        )
        text += ", and confirmed by their thumbnails)" if "max_difference" in decisions else ")"
    text += (
        f". {describe_order(decisions['best'], is_plain='pictures' not in decisions)}"
        f" {decisions['num_flat']:,} pictures are nearly uniform and were compared by their bytes"
        " only."
    )
    if decisions.get("copies_inside"):
        text += (
            " Copies of another picture of the same sample, for which no sample goes:"
            f" {decisions['copies_inside']:,}."
        )
    blocks: list[page.Block] = [
        _table(
            "samples in a group" if "pictures" not in decisions else "pictures in a group",
            "groups",
            decisions["groups_by_size"],
        ),
        _table("bits apart", "near copies", decisions["near_by_distance"]),
    ]
    groups = RunFolder.at(manifest.url).store.read(GROUPS)
    rows = _loosest_groups(pq.read_table(io.BytesIO(groups)).to_pylist())
    if rows:
        items = [
            _item(row, sample) for row, sample in zip(rows, _fetch(manifest, rows), strict=True)
        ]
        caption = (
            "Groups whose farthest member is farthest from the one that stays, that one first:"
            " a difference of 1 is the largest that counts as a copy."
        )
        blocks.append(page.Gallery(items=items, caption=caption))
    if "against" in decisions:
        text += " " + against_text(counts["contaminated"])
        blocks.append(against_blocks(decisions["against"]))
        blocks += _contaminated(manifest)
    return page.Section(title=f"Dedup: {manifest.name}", lead_text=text, blocks=blocks)


def against_text(num_samples: int) -> str:
    """Say how many samples are of a benchmark."""
    return (
        f"{num_samples:,} samples show an image of a benchmark or quote a text of one, and are left"
        " out."
    )


def against_blocks(by_benchmark: Mapping[str, Mapping[str, int]]) -> page.Block:
    """Show what was looked for and found of each benchmark."""
    columns = {
        "questions": "questions",
        "images": "images",
        "texts_compared": "texts compared",
        "questions_found": "questions found",
        "samples_by_image": "samples by image",
        "samples_by_text": "samples by text",
    }
    return page.Table(
        columns=("benchmark", *columns.values()),
        rows=[(name, *(one[key] for key in columns)) for name, one in by_benchmark.items()],
    )


def _contaminated(manifest: Manifest) -> list[page.Block]:
    """Show some samples of benchmarks, spread over all that were found."""
    found = read_contaminated(RunFolder.at(manifest.url))
    rows = [found[len(found) * k // NUM_GROUPS] for k in range(min(NUM_GROUPS, len(found)))]
    if not rows:
        return []
    items = []
    for row, sample in zip(rows, _fetch(manifest, rows), strict=True):
        total, image = len(sample.images), row["image_index"]
        what = f"quotes {row['quoted_fraction']:.0%} of" if image is None else "shows"
        lines = [f"{what} question {row['question']} of {row['benchmark']}", row["question_text"]]
        if row["found_by"] == "near":
            lines.append(f"{row['distance']} bits apart, difference {row['difference']:.2f}")
        marked = image if total > 1 else None
        items.append(
            sample_card(sample, lines=lines, badge=row["found_by"], badge_kind="bad", marked=marked)
        )
    return [page.Gallery(items=items, caption="Samples of benchmarks, some of all.")]


def kept_text(counts: Mapping[str, int], decisions: Mapping[str, Any]) -> str:
    """Say how many samples stay, and what the others are; the sentence goes on."""
    if "pictures" not in decisions:
        return (
            f"{counts['kept']:,} of {counts['samples']:,} pictures stay; {counts['exact']:,} have"
            f" the same bytes as one that stays, {counts['near']:,} look like one"
        )
    which = {
        "all_copies": "all of their pictures",
        "any_copy": "one of their pictures or more",
        "first_copy": "their first picture",
    }[decisions["drop_sample_if"]]
    return (
        f"{counts['kept']:,} of {counts['samples']:,} samples stay, with {decisions['pictures']:,}"
        f" pictures in all; {decisions['without_pictures']:,} samples have none and stay."
        f" {counts['exact'] + counts['near']:,} samples go, because {which} are copies of those of"
        f" samples that stay: {counts['exact']:,} with the same bytes, {counts['near']:,} that look"
        f" alike"
    )


def describe_order(best: str, *, is_plain: bool) -> str:
    """Say in a sentence which copies are preferred."""
    if is_plain:
        return f"Of each group the best stays: {best}."
    return f"The better of two samples is the one with the {best}."


def _table(first: str, second: str, counts: Mapping[str, int]) -> page.Table:
    return page.Table(columns=(first, second), rows=list(counts.items()))


def _loosest_groups(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows of the loosest groups: the kept sample of each and its farthest duplicates."""
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    loosest = sorted(groups.values(), key=lambda group: (-group[-1]["distance"], group[0]["group"]))
    return [
        row for kept, *others in loosest[:NUM_GROUPS] for row in (kept, *others[:-MAX_SHOWN:-1])
    ]


def _fetch(manifest: Manifest, rows: Sequence[dict[str, Any]]) -> list[Sample]:
    """Read the samples of rows, each unit once."""
    hashes = manifest.recipe.get("hashes") or manifest.url
    wanted = {row["unit_id"] for row in rows}
    units = {
        record.unit_id: dict(read_unit(record.unit)[0])
        for record in RunFolder.at(hashes).iter_commits()
        if record.unit_id in wanted
    }
    return [units[row["unit_id"]][row["row"]] for row in rows]


def _item(row: Mapping[str, Any], sample: Sample) -> page.GalleryItem:
    what = "same bytes" if row["reason"] == "exact" else f"{row['distance']} bits apart"
    # Runs of earlier versions did not compare thumbnails.
    if row["reason"] == "near" and row.get("difference") is not None:
        what += f", difference {row['difference']:.2f}"
    image, total = row.get(IMAGE_INDEX, 0), len(sample.images)
    # Of runs whose samples have one picture each, the best copy is the one that is kept.
    badge = "kept" if row["kept"] else row["reason"] or "dropped"
    lines = [f"group {row['group']}"]
    if total > 1:
        lines.append(f"picture {image + 1} of {total}")
    if row["reason"] is not None:
        lines.append(f"{row['reason']} copy, {what}" if row["kept"] else what)
    return sample_card(
        sample,
        lines=lines,
        badge=badge,
        badge_kind="good" if row["kept"] else "bad",
        marked=image if total > 1 else None,
    )
