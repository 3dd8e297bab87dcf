"""Measure what consomme promises and write it as JSON; the README's table is made from these files.

    make bench                    # everything
    python -m tests.benchmarks.run score quickstart

Ratios are measured in one run on one machine, both sides in turn; nothing here asserts a time.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
BAR = "\\|"  # a bar inside a Markdown table
Row = dict[str, Any]


def machine(*, on_gpu: bool) -> str:
    """Name the processor, its cores, the memory, and the GPU if it was measured."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    gpu = "no GPU"
    if on_gpu:
        import torch

        gpu = f"one {torch.cuda.get_device_name()}"
    return f"{model}, {os.cpu_count()} cores, {pages / 2**30:.0f} GiB, {gpu}"


def row(key: str, value: float, unit: str, baseline: str, how: str) -> Row:
    """One measured figure."""
    return {"key": key, "value": round(value, 4), "unit": unit, "baseline": baseline, "how": how}


def bench_quickstart() -> list[Row]:
    """Time the whole loop in a fresh folder, then once more."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            sys.executable,
            "-m",
            "consomme.cli",
            "loop",
            str(ROOT / "recipes/quickstart.yaml"),
            f"root={scratch}",
        ]
        times = []
        for _ in range(2):
            began = time.monotonic()
            subprocess.run(command, check=True, cwd=ROOT)
            times.append(time.monotonic() - began)
        (summary,) = Path(scratch).glob("loop/*/summary.json")
        table = json.loads(summary.read_text())
    how = "consomme loop recipes/quickstart.yaml in an empty folder, after installation"
    return [
        row("quickstart.seconds", times[0], "s", "", how),
        row("quickstart.again_seconds", times[1], "s", "", "the same command again"),
        *(
            row(f"quickstart.table.{number}.{place}", value, line["note"], "", line["label"])
            for number, line in enumerate(table)
            for place, value in enumerate(line["values"])
        ),
    ]


def bench_score() -> list[Row]:
    """Score with the engine, two other ways, and through Ray."""
    from tests.benchmarks import ray_score, scoring

    through = ray_score.rows()
    return [*scoring.rows(), *through]


def bench_score_gpu() -> Iterator[Row]:
    """Score with a billion parameters' model three ways, and through Ray."""
    from tests.benchmarks import ray_score, scoring

    yield from scoring.gpu_rows()
    yield from ray_score.gpu_rows()


def bench_recaption() -> list[Row]:
    """Recaption through Ray against vLLM alone."""
    from tests.benchmarks import ray_recaption

    return ray_recaption.rows()


def bench_self_augment() -> list[Row]:
    """VILA²'s loop over three seeds; a loop that was interrupted goes on."""
    from tests.benchmarks import self_augment

    return [*self_augment.rows(), *self_augment.emoji_rows()]


def bench_visual_region() -> list[Row]:
    """Which layers to train, how many, on how much data; a sweep that was interrupted goes on."""
    from tests.benchmarks import visual_region

    return visual_region.rows()


def bench_stream() -> list[Row]:
    """What packing saves, and how long going on far into the data takes."""
    from tests.benchmarks import streaming

    return streaming.rows()


def bench_telling() -> list[Row]:
    """What scores tell apart: areas under the curve by kind of noise."""
    from tests.benchmarks import telling

    return telling.rows()


def fill_readme() -> None:
    """Write the quickstart's figures between their marks in the README."""
    path = HERE / "results" / "quickstart.json"
    if not path.exists():
        return
    result = json.loads(path.read_text())
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
    text.append("")
    text.append(
        f"Measured on {result['date']} on {result['machine']}:"
        f" {seconds['quickstart.seconds']:.0f} s after installation,"
        f" {seconds['quickstart.again_seconds']:.0f} s when run again."
    )
    between("quickstart-table", text)


def fill_figures() -> None:
    """Put the figures of all other areas into the README, one line each."""
    text = ["| figure | value | against | how |", "| --- | --- | --- | --- |"]
    machines: dict[str, list[str]] = {}
    for area in FIGURES:
        path = HERE / "results" / f"{area}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text())
        machines.setdefault(result["machine"], []).append(f"{area} {result['date']}")
        for figure in result["rows"]:
            if figure["key"].startswith(DETAILS):
                continue
            value = (
                f"{figure['value']:,.3g}" if figure["value"] < 1000 else f"{figure['value']:,.0f}"
            )
            cells = (f"`{figure['key']}`", f"{value} {figure['unit']}", figure["baseline"])
            text.append(f"| {' | '.join(cells)} | {figure['how'].replace('|', BAR)} |")
    where = [f"{name} ({', '.join(areas)})" for name, areas in sorted(machines.items())]
    text += ["", f"Machines: {'; '.join(where)}."]
    between("figures-table", text)


def fill_telling() -> None:
    """Put the areas under the curve into the README, scores side by side."""
    path = HERE / "results" / "telling.json"
    if not path.exists():
        return
    result = json.loads(path.read_text())
    cells: dict[tuple[str, str], dict[str, float]] = {}
    for figure in result["rows"]:
        _, model, data, kind, score = figure["key"].split(".")
        cells.setdefault((model, kind), {})[f"{data} {score}"] = figure["value"]
    for model, scores in (
        ("nano", ("text_only_perplexity", "perplexity", "image_gain")),
        ("smollm2", ("perplexity", "bits_per_byte")),
    ):
        columns = [f"{data} {score}" for data in ("scenes", "emoji") for score in scores]
        heads = [f"{data}: {score.replace('_', ' ')}" for data, score in map(str.split, columns)]
        text = [f"| captions that are | {' | '.join(heads)} |", "| --- |" + " --- |" * len(heads)]
        for (one, kind), values in cells.items():
            if one == model:
                shown = " | ".join(f"{values[column]:.3f}" for column in columns)
                text.append(f"| {kind.replace('_', ' ')} | {shown} |")
        between(f"telling-{model}", text)


ARMS = {
    "0": "the web's captions",
    "1": "captions of round 1",
    "2": "captions of round 2",
    "3": "captions of round 3",
    "0_tuned_longer": "the web's captions, tuned three times as long",
    "3_tuned_longer": "captions of round 3, tuned three times as long",
    "longer": "control: the web's captions, twice as long",
    "shuffled": "control: captions of other pictures",
    "specialists": "the best round's captions and two specialists' answers",
    "reader": "… the specialist for text itself",
    "relater": "… the specialist for relations itself",
}
"""What a model of VILA²'s loop was trained on."""

ROUND_COLUMNS = {
    "caption_true": "training captions: true claims",
    "caption_false": "false claims",
    "questions": "model: questions right",
    "true": "true claims per caption",
    "false": "false claims",
    "text": "text read",
    "relations": "relations right",
}


def fill_rounds() -> None:
    """Put the figures of VILA²'s loop into the README, a line per training."""
    path = HERE / "results" / "self_augment.json"
    if not path.exists():
        return
    cells: dict[str, dict[str, str]] = {}
    for figure in json.loads(path.read_text())["rows"]:
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
    text += [
        "",
        "On emoji (`recipes/loop/self_augment_emoji.yaml`, one seed), names right, word for word:"
        f" {names['0']} after the web's captions, then {names['1']}, {names['2']}, {names['3']} by"
        f" round; {names['start']} untrained, {names['longer']} after twice as long on the web's,"
        f" {names['true']} after true names.",
    ]
    between("self-augment-table", text)


def fill_visual_region() -> None:
    """Put the study of layers into the README, a line per choice of layers."""
    from tests.benchmarks import visual_region

    path = HERE / "results" / "visual_region.json"
    if path.exists():
        between("visual-region-table", visual_region.table(json.loads(path.read_text())["rows"]))


def between(name: str, text: list[str]) -> None:
    """Replace what stands between two marks of the README."""
    readme = ROOT / "README.md"
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = readme.read_text().partition(start)
    _, _, after = rest.partition(end)
    readme.write_text(before + start + "\n" + "\n".join(text) + "\n" + end + after)


def bench_io() -> list[Row]:
    """Read, decode, no-op, write against a loop and against Ray Data."""
    from tests.benchmarks import throughput

    return throughput.measure()


def bench_ledger() -> list[Row]:
    """Restart of a run with a hundred thousand and a million units, on disk and on S3."""
    from tests.benchmarks import ledger

    return ledger.rows()


def bench_planning() -> list[Row]:
    """Planning of a hundred thousand shards."""
    from tests.benchmarks import planning

    return planning.rows()


def bench_filter() -> list[Row]:
    """A cut through a hundred million scores."""
    from tests.benchmarks import filtering

    return filtering.rows()


def bench_decode() -> list[Row]:
    """Decoding at reduced size against decoding in full."""
    from tests.benchmarks import decode

    return decode.measure()


def bench_dedup() -> list[Row]:
    """What is found among edited copies, what is wrongly found, and what ten million cost."""
    from tests.benchmarks import dedup

    return dedup.measure()


def bench_train() -> list[Row]:
    """The training loop against a bare one, and selections of layers against all of them."""
    from tests.benchmarks import training

    return training.measure()


def bench_train_gpu() -> list[Row]:
    """Selections of layers of a billion parameters' model, and how much of the GPU a step uses."""
    from tests.benchmarks import training

    return training.gpu_rows()


FIGURES = (
    "score",
    "score_gpu",
    "recaption",
    "filter",
    "io",
    "planning",
    "ledger",
    "chaos",
    "engine_chaos",
    "train",
    "train_gpu",
    "train_chaos",
    "stream",
    "decode",
    "dedup",
)
"""Areas whose figures the README shows line by line."""

DETAILS = ("dedup.d", "dedup.chains", "dedup.stars", "dedup.bits", "dedup.found_at")
"""How keys begin that only the JSON has: figures behind a decision in the code."""

AREAS: dict[str, Callable[[], Iterable[Row]]] = {
    "score": bench_score,
    "recaption": bench_recaption,
    "telling": bench_telling,
    "self_augment": bench_self_augment,
    "visual_region": bench_visual_region,
    "stream": bench_stream,
    "filter": bench_filter,
    "io": bench_io,
    "planning": bench_planning,
    "ledger": bench_ledger,
    "decode": bench_decode,
    "dedup": bench_dedup,
    "train": bench_train,
    "quickstart": bench_quickstart,
}

GPU_AREAS: dict[str, Callable[[], Iterable[Row]]] = {
    "score_gpu": bench_score_gpu,
    "train_gpu": bench_train_gpu,
}
"""Areas that only a GPU has."""


def has_gpu() -> bool:
    """Ask in another process, since importing torch costs memory that others are measured by."""
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def main() -> None:
    """Measure the areas named on the command line, or all that this machine can."""
    measures = AREAS | GPU_AREAS
    named = sys.argv[1:]
    if unknown := set(named) - measures.keys():
        sys.exit(f"no areas {', '.join(sorted(unknown))}; there are {', '.join(measures)}")
    if not has_gpu():
        if wanting := [area for area in named if area in GPU_AREAS]:
            sys.exit(f"{', '.join(wanting)}: needs a GPU, and torch finds none here")
        sys.stdout.write(f"no GPU here, so not measured: {', '.join(GPU_AREAS)}\n")
        measures = AREAS
    for area in named or measures:
        rows = []
        for figure in measures[area]():
            # At once: what comes after may fail.
            sys.stdout.write(f"  {figure['key']}: {figure['value']} {figure['unit']}\n")
            sys.stdout.flush()
            rows.append(figure)
        text = {
            "machine": machine(on_gpu=area in GPU_AREAS),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "rows": rows,
        }
        path = HERE / "results" / f"{area}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(text, indent=1) + "\n")
        sys.stdout.write(f"{path}\n")
    fill_readme()
    fill_figures()
    fill_telling()
    fill_rounds()
    fill_visual_region()


if __name__ == "__main__":
    main()
