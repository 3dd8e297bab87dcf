"""Write the tables on the pages from `results/*.json`.

    python -m tests.benchmarks.tables

A table stands between two HTML comments, `<!-- NAME -->` and `<!-- /NAME -->`. Tables without a
results file stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
README = ROOT / "README.md"
FIGURES_PAGE = HERE / "README.md"
STUDIES = HERE / "studies"
BAR = "\\|"
"""A bar inside a Markdown table."""

FIGURE_AREAS = (
    "score",
    "score_gpu",
    "recaption",
    "evaluate",
    "filter",
    "io",
    "planning",
    "ledger",
    "chaos",
    "verb_chaos",
    "outages",
    "engine_chaos",
    "train",
    "train_gpu",
    "train_chaos",
    "merge",
    "soup_search",
    "stream",
    "decode",
    "dedup",
    "dedup_kinds",
    "decontaminate",
)
"""Areas whose figures the benchmark page lists one per line."""

JSON_ONLY = ("dedup.d", "dedup.chains", "dedup.stars", "dedup.bits", "dedup.found_at")
"""Prefixes of keys that are left off the page: they justify a constant in the code."""

Result = Mapping[str, Any]


def quickstart_table(result: Result) -> list[str]:
    """The quickstart's summary and its time."""
    seconds = {r["key"]: r["value"] for r in result["rows"]}
    lines: dict[str, tuple[str, str, list[float]]] = {}
    for figure in result["rows"]:
        if figure["key"].startswith("quickstart.table."):
            number = figure["key"].split(".")[2]
            label, note, values = lines.setdefault(number, (figure["how"], figure["unit"], []))
            values.append(figure["value"])
    text = ["| figure | value | how to read it |", "| --- | --- | --- |"]
    for label, note, values in lines.values():
        shown = f" {BAR} ".join(f"{value:.3g}" for value in values)
        text.append(f"| {label.replace('|', BAR)} | {shown} | {note} |")
    return [
        *text,
        "",
        f"Measured on {result['date']} on {result['machine']}:"
        f" {seconds['quickstart.seconds']:.0f} s after installation,"
        f" {seconds['quickstart.again_seconds']:.0f} s when run again.",
    ]


def figures_table(results: Mapping[str, Result]) -> list[str]:
    """The figures of all areas in `FIGURE_AREAS`, one per line, and the machines."""
    text = ["| figure | value | against | how |", "| --- | --- | --- | --- |"]
    machines: dict[str, list[str]] = {}
    for area in FIGURE_AREAS:
        if area not in results:
            continue
        result = results[area]
        machines.setdefault(result["machine"], []).append(f"{area} {result['date']}")
        for figure in result["rows"]:
            if figure["key"].startswith(JSON_ONLY):
                continue
            value = (
                f"{figure['value']:,.3g}" if figure["value"] < 1000 else f"{figure['value']:,.0f}"
            )
            cells = (f"`{figure['key']}`", f"{value} {figure['unit']}", figure["baseline"])
            text.append(f"| {' | '.join(cells)} | {figure['how'].replace('|', BAR)} |")
    where = [f"{name} ({', '.join(areas)})" for name, areas in sorted(machines.items())]
    return [*text, "", f"Machines: {'; '.join(where)}."]


def noise_table(result: Result, model: str, scores: Sequence[str]) -> list[str]:
    """Areas under the curve of one model by kind of noise, a column per data set and score."""
    cells: dict[str, dict[str, float]] = {}
    for figure in result["rows"]:
        _, one, data, kind, score = figure["key"].split(".")
        if one == model:
            cells.setdefault(kind, {})[f"{data} {score}"] = figure["value"]
    columns = [f"{data} {score}" for data in ("scenes", "emoji") for score in scores]
    heads = [f"{data}: {score.replace('_', ' ')}" for data, score in map(str.split, columns)]
    text = [f"| captions that are | {' | '.join(heads)} |", "| --- |" + " --- |" * len(heads)]
    for kind, values in cells.items():
        shown = " | ".join(f"{values[column]:.3f}" for column in columns)
        text.append(f"| {kind.replace('_', ' ')} | {shown} |")
    return text


ARMS = {
    "0": "the web's captions",
    "1": "captions of round 1",
    "2": "captions of round 2",
    "3": "captions of round 3",
    "0_tuned_longer": "the web's captions, tuned three times as long",
    "3_tuned_longer": "captions of round 3, tuned three times as long",
    "longer": "control: the web's captions, twice as long",
    "shuffled": "control: captions of other images",
    "specialists": "the best round's captions and two specialists' answers",
    "reader": "… the specialist for text itself",
    "relater": "… the specialist for relations itself",
}
"""Arm of the VILA² loop -> what its model was trained on."""

ROUND_COLUMNS = {
    "caption_true": "training captions: true claims",
    "caption_false": "false claims",
    "questions": "model: questions right",
    "true": "true claims per caption",
    "false": "false claims",
    "text": "text read",
    "relations": "relations right",
}


def self_augment_table(result: Result) -> list[str]:
    """The figures of the VILA² loop, a line per training, and a sentence about the emoji loop."""
    cells: dict[str, dict[str, str]] = {}
    for figure in result["rows"]:
        _, arm, name = figure["key"].split(".")
        digits = 3 if figure["unit"] == "fraction" else 2
        shown = f"{figure['value']:.{digits}f} ± {figure['spread']:.{digits}f}"
        cells.setdefault(arm, {})[name] = shown
    text = [
        f"| trained on | {' | '.join(ROUND_COLUMNS.values())} |",
        "| --- |" + " --- |" * len(ROUND_COLUMNS),
    ]
    for arm, label in ARMS.items():
        values = [cells[arm].get(name, "") for name in ROUND_COLUMNS]
        text.append(f"| {label} | {' | '.join(values)} |")
    names = {arm: shown.partition(" ")[0] for arm, shown in cells["emoji"].items()}
    return [
        *text,
        "",
        "On emoji (`recipes/loop/self_augment_emoji.yaml`, one seed), the share of names that are"
        f" right word for word: untrained {names['start']}; trained on the web's captions"
        f" {names['0']}; rounds 1 to 3 {names['1']}, {names['2']}, {names['3']}; twice as long on"
        f" the web's captions {names['longer']}; on the true names {names['true']}.",
    ]


def visual_region_table(result: Result) -> list[str]:
    """The study of layer selection, a line per choice of layers."""
    from tests.benchmarks import visual_region

    return visual_region.table(result["rows"])


def several_images_table(result: Result) -> list[str]:
    """The study of several images, a line per task."""
    from tests.benchmarks import several_images

    return several_images.table(result["rows"])


def guidance_table(result: Result) -> list[str]:
    """The study of guidance by regions, and of hard negatives."""
    from tests.benchmarks import guided

    return guided.table(result["rows"])


def soup_study_table(result: Result) -> list[str]:
    """The study of soups, a line per way to choose."""
    from tests.benchmarks import soup_study

    return soup_study.table(result["rows"])


def pruning_table(result: Result, name: str) -> list[str]:
    """The study of pruning: the `nano` VLM; SmolLM2 by `choices` of layers, and `trained`."""
    from tests.benchmarks import pruning, pruning_smollm2

    tables = {
        "nano": pruning.nano_table,
        "choices": pruning_smollm2.choices_table,
        "trained": pruning_smollm2.trained_table,
    }
    return tables[name](result["rows"])


FAMILY_VERBS = {
    "score": "score",
    "anatomy": "parts",
    "train": "train, padded",
    "pack": "train, packed",
    "write": "write",
}


LONGEST_REASON = 200
"""Characters of a reason that the page shows; `results/families.json` has all."""


def families_table(result: Result) -> list[str]:
    """What works with which family of models, a line per outcome, and why some are refused."""
    families: dict[tuple[str, ...], list[str]] = {}
    reasons: dict[str, list[str]] = {}
    for row in result["rows"]:
        shown = []
        for verb in FAMILY_VERBS:
            cell = row["cells"][verb]
            is_slower = cell["state"] == "slower"
            shown.append(f"slower: {cell['detail']}" if is_slower else cell["state"])
            if cell["state"] not in ("ok", "slower"):
                reason = " ".join(cell["detail"].split(";")[0].split()).replace("|", BAR)
                if len(reason) > LONGEST_REASON:
                    reason = f"{reason[:LONGEST_REASON]} …"
                reasons.setdefault(f"{row['family']} | {reason}", []).append(FAMILY_VERBS[verb])
        families.setdefault(tuple(shown), []).append(row["family"])
    text = [f"| {' | '.join(FAMILY_VERBS.values())} | families |", "| --- |" + " --- |" * 5]
    ranked = sorted(families.items(), key=lambda pair: ("refused" in pair[0], -len(pair[1])))
    text += [f"| {' | '.join(shown)} | {', '.join(names)} |" for shown, names in ranked]
    text += ["", "| refused family | why | by |", "| --- | --- | --- |"]
    text += [f"| {why} | {', '.join(verbs)} |" for why, verbs in reasons.items()]
    return [*text, "", f"Measured on {result['date']} with transformers {result['transformers']}."]


TILING_NAMES = {
    "square": "`{name: square}`",
    "split": "`{name: split}`",
    "dynamic": "`{name: dynamic}`, InternVL's",
    "dynamic_of_points": "`{name: dynamic, tie: nearest, max_tiles: 8}`, the baseline of POINTS",
    "catty": "`{name: catty}`",
    "native": "native: 980 px at most",
}


def tilings_table(result: Result) -> list[str]:
    """Image tokens by size of picture, and the time to prepare one, a tiling a line."""
    values = {row["key"]: row["value"] for row in result["rows"]}
    sizes = [key.rpartition(".")[2] for key in values if key.startswith("tilings.tokens.square.")]
    text = [f"| tiling | {' | '.join(sizes)} | ms |", "| --- |" + " --- |" * (len(sizes) + 1)]
    for name, shown in TILING_NAMES.items():
        tokens = [f"{values[f'tilings.tokens.{name}.{size}']:,.0f}" for size in sizes]
        time = f"{values[f'tilings.ms.{name}']:.1f}"
        text.append(f"| {shown} | {' | '.join(tokens)} | {time} |")
    ratios = [f"{values[f'tilings.vs_family.{name}']:.1f}" for name in ("square", "dynamic")]
    return [
        *text,
        "",
        f"Tokens with squares of 336 pixels, 144 tokens each; time of one core for 1280x960,"
        f" measured on {result['date']} on {result['machine']}. The image processors of CLIP and"
        f" InternVL (Pillow) take {ratios[0]} and {ratios[1]} times as long as `square` and"
        " `dynamic`, for the same numbers. Counting a caption's tokens from the picture's size"
        f" takes {values['tilings.count_ms']:.1f} ms, 1 / {values['tilings.count_vs_encode']:.0f}"
        " of encoding it.",
    ]


Table = tuple[Path, tuple[str, ...], Callable[[Mapping[str, Result]], list[str]]]

TABLES: dict[str, Table] = {
    "quickstart-table": (README, ("quickstart",), lambda r: quickstart_table(r["quickstart"])),
    "figures-table": (FIGURES_PAGE, FIGURE_AREAS, figures_table),
    "noise-detection-nano": (
        STUDIES / "noise_detection.md",
        ("noise_detection",),
        lambda r: noise_table(
            r["noise_detection"], "nano", ("text_only_perplexity", "perplexity", "image_gain")
        ),
    ),
    "noise-detection-smollm2": (
        STUDIES / "noise_detection.md",
        ("noise_detection",),
        lambda r: noise_table(r["noise_detection"], "smollm2", ("perplexity", "bits_per_byte")),
    ),
    "self-augment-table": (
        STUDIES / "self_augment.md",
        ("self_augment",),
        lambda r: self_augment_table(r["self_augment"]),
    ),
    "families-table": (
        STUDIES / "families.md",
        ("families",),
        lambda r: families_table(r["families"]),
    ),
    "guidance-table": (
        STUDIES / "guidance.md",
        ("crg",),
        lambda r: guidance_table(r["crg"]),
    ),
    "soup-study-table": (
        STUDIES / "soups.md",
        ("soup_study",),
        lambda r: soup_study_table(r["soup_study"]),
    ),
    "pruning-nano": (
        STUDIES / "pruning.md",
        ("prune",),
        lambda r: pruning_table(r["prune"], "nano"),
    ),
    "pruning-smollm2": (
        STUDIES / "pruning.md",
        ("prune_smollm2",),
        lambda r: pruning_table(r["prune_smollm2"], "choices"),
    ),
    "pruning-smollm2-trained": (
        STUDIES / "pruning.md",
        ("prune_smollm2_trained",),
        lambda r: pruning_table(r["prune_smollm2_trained"], "trained"),
    ),
    "several-images-table": (
        STUDIES / "several_images.md",
        ("several_images",),
        lambda r: several_images_table(r["several_images"]),
    ),
    "tilings-table": (
        ROOT / "recipes/assemble/README.md",
        ("tilings",),
        lambda r: tilings_table(r["tilings"]),
    ),
    "visual-region-table": (
        STUDIES / "visual_region.md",
        ("visual_region",),
        lambda r: visual_region_table(r["visual_region"]),
    ),
}
"""Name of a table -> its page, the areas it needs, and the function that makes its lines."""


def filled_pages() -> dict[Path, str]:
    """Return the text of every page with tables, as it should be.

    Raises:
        ValueError: A page lacks the markers of its table.
    """
    results = {
        path.stem: json.loads(path.read_text()) for path in (HERE / "results").glob("*.json")
    }
    pages: dict[Path, str] = {}
    for name, (page, areas, table) in TABLES.items():
        text = pages.get(page) or page.read_text()
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if text.count(start) != 1 or text.count(end) != 1:
            raise ValueError(f"{page}: found no single pair of markers {start} and {end}")
        if not results.keys().isdisjoint(areas):
            before, _, rest = text.partition(start)
            _, _, after = rest.partition(end)
            lines = "\n".join(table(results))
            text = f"{before}{start}\n{lines}\n{end}{after}"
        pages[page] = text
    return pages


def fill() -> None:
    """Write the tables into their pages."""
    for page, text in filled_pages().items():
        page.write_text(text)


if __name__ == "__main__":
    fill()
