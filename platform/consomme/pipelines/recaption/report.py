"""The section of a report about new captions: examples, guards, canaries, the engine's queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from consomme.base.manifest import Manifest
from consomme.base.sample import Sample, Turn
from consomme.datasets.truth import CAPTION_TRUTHS, CaptionTruth
from consomme.execution.gauges import load_gauges
from consomme.report import model as page
from consomme.report.samples import shown_turns
from consomme.storage.captions import CAPTIONS, stored_turns
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.sidecar import read_columns
from consomme.storage.units import read_samples

SHOWN = 12
SHOWN_FLAGGED = 4


def sections(runs: Sequence[Manifest], every_run: Mapping[str, Manifest]) -> list[page.Section]:
    """Draw these runs; `every_run` of the page, by name, says what else is known."""
    return [_section(manifest) for manifest in runs]


def _section(manifest: Manifest) -> page.Section:
    """Draw one recaption run."""
    table = read_columns(
        manifest.url,
        ["caption", "written", "parent_caption", "guard", "is_new"],
        kind=CAPTIONS,
    ).to_pylist()
    blocks: list[page.Block] = []
    rows = claims_rows(manifest)
    if rows:
        blocks.append(
            page.Table(
                columns=("captions", "true claims", "false claims", "missing"),
                rows=rows,
                caption="Claims per recaptioned sample, checked exactly against the scenes; where a"
                " guard flagged the new caption, the old one is counted.",
            )
        )
    blocks.append(_figures(manifest))
    common = manifest.decisions["most_common"]
    if common:
        blocks.append(
            page.Table(
                columns=("text", "share"),
                rows=[(text, share) for text, share in common],
                caption="What was written most often: captions that fit everything say nothing.",
            )
        )
    queue = load_gauges(RunFolder.at(manifest.url).store)
    if queue:
        blocks.append(
            page.Curves(
                series=queue,
                x_label="seconds since the first request",
                y_label="requests",
                caption="The engine is busy as long as some wait, or many run at once.",
            )
        )
    blocks.append(page.BeforeAfter(items=_items(manifest, table)))
    return page.Section(
        title=f"Recaption: {manifest.name}", lead_text=_lead(manifest), blocks=blocks
    )


def _lead(manifest: Manifest) -> str:
    counts, recipe = manifest.counts, manifest.recipe
    flagged = [(k.partition("/")[2], v) for k, v in counts.items() if k.startswith("guard/")]
    named = [one for one in recipe["prompts"] if isinstance(one, str)]
    own = [f"{name} (“{text}”)" for name, text in manifest.decisions.get("prompts", {}).items()]
    prompts = ", ".join([*named, *own])
    doubts = ", ".join(f"{reason} {number:,}" for reason, number in sorted(flagged)) or "none"
    return (
        f"`{recipe['model']}` was asked about {counts.get('asked', 0):,} of {counts['samples']:,}"
        f" samples, with {prompts}, and wrote {counts.get('new', 0):,} new texts in"
        f" {manifest.seconds:.0f} s, merged by {recipe['merge']['name']}."
        f" Guards did not believe: {doubts}. {counts.get('rejected', 0):,} samples were rejected."
        f"{_skipped(counts)}{_guided(manifest)}"
    )


def _guided(manifest: Manifest) -> str:
    guidance = manifest.recipe.get("guidance")
    if not guidance:
        return ""
    number = manifest.counts.get("guided", 0)
    return f" Guided by regions, alpha {guidance['alpha']:g}: {number:,} samples."


def _skipped(counts: Mapping[str, int]) -> str:
    kinds = {"text_only": "without an image", "document": "that are documents"}
    found = [
        f"{counts[f'skipped/{reason}']:,} {what}"
        for reason, what in kinds.items()
        if counts.get(f"skipped/{reason}")
    ]
    return f" Left as they were: {' and '.join(found)}." if found else ""


def _figures(manifest: Manifest) -> page.Table:
    """Words per caption, and the results of the canaries."""
    found = manifest.metrics
    rows = [
        ("words per caption, before", found["recaption/words_before"]),
        ("words per caption, after", found["recaption/words_per_caption"]),
        ("… standard deviation", found["recaption/words_sd"]),
        (
            "share of texts that recur too often",
            found["recaption/mass_identical_fraction"],
        ),
    ]
    for how, meaning in (("blank", "a grey picture"), ("swap", "another sample's picture")):
        key = f"recaption/canary_{how}_same_fraction"
        if key in found:
            rows.append((f"share of canaries that say the same of {meaning}", found[key]))
    if "recaption/canaries_left_out" in found:
        left_out = found["recaption/canaries_left_out"]
        rows.append(("canaries with several pictures, and no other sample to swap them", left_out))
    return page.Table(columns=("figure", "value"), rows=rows)


def _items(manifest: Manifest, table: Sequence[Mapping[str, Any]]) -> list[page.BeforeAfterItem]:
    """Pick samples evenly over the run, some of them flagged by a guard."""
    flagged = [row for row in table if row["guard"]]
    others = [row for row in table if not row["guard"] and row["written"] is not None]
    picked = _spread(others, SHOWN) + _spread(flagged, SHOWN_FLAGGED)
    run = RunFolder.at(manifest.url)
    units = {record.unit_id: record.unit for record in run.iter_commits()}
    places = [(row["unit_id"], row["row"]) for row in picked]
    samples = read_samples(units, places)
    turns = {
        unit_id: stored_turns(run, unit_id) for unit_id in dict.fromkeys(one for one, _ in places)
    }
    # Older runs have no key `truth` and checked all rendered scenes.
    truth = CAPTION_TRUTHS.build(manifest.recipe.get("truth", {"name": "scenes"}), "truth")
    builds_on = bool(manifest.recipe.get("captions"))
    return [
        _item(row, sample, turns[row["unit_id"]][row["row"]], truth, builds_on=builds_on)
        for row, sample in zip(picked, samples, strict=True)
    ]


def _item(
    row: Mapping[str, Any],
    sample: Sample,
    turns: Sequence[Turn],
    truth: CaptionTruth,
    *,
    builds_on: bool,
) -> page.BeforeAfterItem:
    """Show one picture with its text before and after; samples of other shapes turn by turn.

    Args:
        row: Of the run.
        sample: As it was read from its shard.
        turns: Its turns after the run.
        truth: Counts claims.
        builds_on: Whether the run was given the texts of an earlier one instead of the sample's.
    """
    text = row["caption"] if row["is_new"] else row["written"] or ""
    notes: list[tuple[str, page.Tone]] = []
    if row["guard"]:
        notes.append((row["guard"], "bad"))
    if claims := truth(sample, text):
        num_true, num_false, _ = claims
        tone: page.Tone = "bad" if num_false else "neutral"
        notes += [(f"{num_true} true", "good"), (f"{num_false} false", tone)]
    if len(sample.images) == 1 and sample.is_plain:
        return page.BeforeAfterItem(
            image_bytes=sample.images[0].data, before=row["parent_caption"], after=text, notes=notes
        )
    after: str | Sequence[page.ShownTurn] = shown_turns(sample, turns) if row["is_new"] else text
    before = row["parent_caption"] if builds_on else shown_turns(sample)
    return page.BeforeAfterItem(before=before, after=after, notes=notes)


def _spread(rows: Sequence[Mapping[str, Any]], number: int) -> list[Mapping[str, Any]]:
    step = max(1, len(rows) // number)
    return list(rows[::step][:number])


def claims_rows(manifest: Manifest) -> list[tuple[str, float, float, float]]:
    """Claims per caption before and after recaptioning; empty if the truth is unknown."""
    claims = manifest.metrics
    if "recaption/after_true_claims" not in claims:
        return []
    return [
        (
            when,
            claims[f"recaption/{when}_true_claims"],
            claims[f"recaption/{when}_false_claims"],
            claims[f"recaption/{when}_missing_claims"],
        )
        for when in ("before", "after")
    ]
