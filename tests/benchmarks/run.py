"""Run the benchmarks, write `results/AREA.json`, and update the tables on the pages.

    make bench                    # every area that this machine can measure
    python -m tests.benchmarks.run score quickstart

A ratio compares both sides in turn, in one run on one machine. No benchmark asserts a time.
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

from tests.benchmarks import tables

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
Row = dict[str, Any]


def machine(*, on_gpu: bool) -> str:
    """Describe the machine: processor, cores, memory, and for GPU areas the GPU."""
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
    """Return one measured figure."""
    return {"key": key, "value": round(value, 6), "unit": unit, "baseline": baseline, "how": how}


def bench_quickstart() -> list[Row]:
    """Time the quickstart in an empty folder, then run it again."""
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
    """Compare the scoring engine with two other implementations, and with itself under Ray."""
    from tests.benchmarks import ray_score, scoring

    through = ray_score.rows()
    return [*scoring.rows(), *through]


def bench_selfcheck() -> list[Row]:
    """Time the check of a model against its plain forward pass."""
    from tests.benchmarks import selfcheck

    return selfcheck.rows()


def bench_score_gpu() -> Iterator[Row]:
    """The same on a GPU with a model of a billion parameters."""
    from tests.benchmarks import ray_score, scoring

    yield from scoring.gpu_rows()
    yield from ray_score.gpu_rows()


def bench_recaption() -> list[Row]:
    """Compare recaptioning under Ray with vLLM alone."""
    from tests.benchmarks import ray_recaption

    return ray_recaption.rows()


def bench_evaluate() -> list[Row]:
    """Compare evaluation under Ray with vLLM alone, and two actors with one."""
    from tests.benchmarks import ray_evaluate

    return ray_evaluate.rows()


def bench_self_augment() -> list[Row]:
    """Run the VILA² loop with three seeds; an interrupted loop is resumed."""
    from tests.benchmarks import self_augment

    return [*self_augment.rows(), *self_augment.emoji_rows()]


def bench_prune() -> list[Row]:
    """Remove layers after training, with and without healing; an interrupted study is resumed."""
    from tests.benchmarks import pruning

    return pruning.rows()


def bench_prune_smollm2() -> list[Row]:
    """Remove layers of SmolLM2-135M, chosen in three ways; an interrupted study is resumed."""
    from tests.benchmarks import pruning_smollm2

    return pruning_smollm2.rows()


def bench_prune_smollm2_trained() -> list[Row]:
    """Remove layers of SmolLM2-135M after training; an interrupted study is resumed."""
    from tests.benchmarks import pruning_smollm2

    return pruning_smollm2.trained_rows()


def bench_visual_region() -> list[Row]:
    """Compare choices of layers to train; an interrupted sweep is resumed."""
    from tests.benchmarks import visual_region

    return visual_region.rows()


def bench_several_images() -> list[Row]:
    """Teach tasks on several images, with three seeds; an interrupted study is resumed."""
    from tests.benchmarks import several_images

    return several_images.rows()


def bench_crg() -> Iterator[Row]:
    """Time guidance by regions, and measure what it does."""
    from tests.benchmarks import guided

    yield from guided.rows()


def bench_merge() -> Iterator[Row]:
    """Mix models with every method, and with mergekit."""
    from tests.benchmarks import merge

    return merge.rows()


def bench_soup_search() -> Iterator[Row]:
    """Score candidates of soups in place, and by writing and loading each."""
    from tests.benchmarks import soup_search

    return soup_search.rows()


def bench_soup_study() -> Iterator[Row]:
    """Search soups of models that were tuned on different skills; an interrupted study goes on."""
    from tests.benchmarks import soup_study

    return soup_study.rows()


def bench_stream() -> list[Row]:
    """Measure what packing saves, and how long resuming takes far into the data."""
    from tests.benchmarks import streaming

    return streaming.rows()


def bench_noise_detection() -> list[Row]:
    """Measure how well scores detect noise: area under the curve by kind of noise."""
    from tests.benchmarks import noise_detection

    return noise_detection.rows()


def bench_io() -> list[Row]:
    """Compare reading, decoding and writing with a plain loop and with Ray Data."""
    from tests.benchmarks import throughput

    return throughput.measure()


def bench_ledger() -> list[Row]:
    """Restart a run of a hundred thousand and of a million units, on disk and on S3."""
    from tests.benchmarks import ledger

    return ledger.rows()


def bench_planning() -> list[Row]:
    """Plan a hundred thousand shards."""
    from tests.benchmarks import planning

    return planning.rows()


def bench_filter() -> list[Row]:
    """Filter a hundred million scores."""
    from tests.benchmarks import filtering

    return filtering.rows()


def bench_decode() -> list[Row]:
    """Compare decoding at reduced size with decoding at full size."""
    from tests.benchmarks import decode

    return decode.measure()


def bench_tilings() -> Iterable[Row]:
    """Count tokens of tilings, and time them beside the processors of transformers."""
    from tests.benchmarks import tilings

    return tilings.measure()


def bench_dedup() -> list[Row]:
    """Measure recall, false positives, and the cost of ten million images."""
    from tests.benchmarks import dedup

    return dedup.measure()


def bench_dedup_kinds() -> Iterable[Row]:
    """Measure how many of a hundred thousand different pictures are dropped, kind by kind."""
    from tests.benchmarks import dedup_by_kind

    return dedup_by_kind.measure()


def bench_decontaminate() -> Iterable[Row]:
    """Find what is of a benchmark: recall by edit, and what is found wrongly."""
    from tests.benchmarks import decontaminate

    return decontaminate.rows()


def bench_train() -> list[Row]:
    """Compare the training loop with a hand-written one, and layer selections with all layers."""
    from tests.benchmarks import training

    return training.measure()


def bench_train_gpu() -> list[Row]:
    """Compare layer selections of a model of a billion parameters on a GPU; measure MFU."""
    from tests.benchmarks import training

    return training.gpu_rows()


AREAS: dict[str, Callable[[], Iterable[Row]]] = {
    "score": bench_score,
    "selfcheck": bench_selfcheck,
    "recaption": bench_recaption,
    "evaluate": bench_evaluate,
    "noise_detection": bench_noise_detection,
    "self_augment": bench_self_augment,
    "visual_region": bench_visual_region,
    "prune": bench_prune,
    "prune_smollm2": bench_prune_smollm2,
    "prune_smollm2_trained": bench_prune_smollm2_trained,
    "several_images": bench_several_images,
    "crg": bench_crg,
    "merge": bench_merge,
    "soup_search": bench_soup_search,
    "soup_study": bench_soup_study,
    "stream": bench_stream,
    "filter": bench_filter,
    "io": bench_io,
    "planning": bench_planning,
    "ledger": bench_ledger,
    "decode": bench_decode,
    "tilings": bench_tilings,
    "dedup": bench_dedup,
    "dedup_kinds": bench_dedup_kinds,
    "decontaminate": bench_decontaminate,
    "train": bench_train,
    "quickstart": bench_quickstart,
}

GPU_AREAS: dict[str, Callable[[], Iterable[Row]]] = {
    "score_gpu": bench_score_gpu,
    "train_gpu": bench_train_gpu,
}
"""Areas that need a GPU."""


def has_gpu() -> bool:
    """Look for a GPU in a subprocess: importing torch here would inflate measured memory."""
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def main() -> None:
    """Measure the areas named on the command line, or all that this machine supports."""
    measures = AREAS | GPU_AREAS
    named = sys.argv[1:]
    if unknown := set(named) - measures.keys():
        sys.exit(f"no areas {', '.join(sorted(unknown))}; there are {', '.join(measures)}")
    if not has_gpu():
        if needing := [area for area in named if area in GPU_AREAS]:
            sys.exit(f"{', '.join(needing)}: needs a GPU, and torch finds none here")
        sys.stdout.write(f"no GPU here, so not measured: {', '.join(GPU_AREAS)}\n")
        measures = AREAS
    for area in named or measures:
        rows = []
        for figure in measures[area]():
            # Print at once: a later figure may fail.
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
    tables.fill()


if __name__ == "__main__":
    main()
