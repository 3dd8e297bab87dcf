"""Time and memory of filtering a hundred million scores.

    python -m tests.benchmarks.filtering SCORES ROOT     # one process; started by run.py

The score files are simulated: log-normal perplexities with many ties, and random hashes; sample ids
are left out, because a filter does not read them. Ten million rows are also measured in units of
1,024 rows, as in a real run, because opening many small files costs more.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

NUM_ROWS, LARGE_UNIT = 100_000_000, 100_000
SMALL_ROWS, SMALL_UNIT = 10_000_000, 1_024


def write_scores(root: str, num_rows: int, unit_rows: int) -> str:
    """Write a simulated finished score run and return its URL."""
    from consomme.execution.runs import Run
    from consomme.pipelines.score.recipe import ScoreRecipe
    from consomme.storage.sidecar import table_bytes
    from consomme.storage.unit import Unit

    opened = Run.open(
        "score", ScoreRecipe(name="simulated", root=root, inputs=("x",), model="none"), None
    )
    opened.start()
    folder, number = opened.folder, opened.folder.start_attempt()
    rng = np.random.default_rng(0)
    fresh = []
    for k, start in enumerate(range(0, num_rows, unit_rows)):
        count = min(unit_rows, num_rows - start)
        # Rounded, so that the cut falls on ties.
        perplexity = np.exp(rng.normal(3, 1, count).astype(np.float32)).round(2)
        table = pa.table(
            {
                "row": pa.array(np.arange(count), pa.int32()),
                "id_hash": pa.array(rng.integers(0, 2**64, count, np.uint64)),
                "perplexity": pa.array(perplexity),
            }
        )
        unit = Unit(
            unit_id=f"web-{k:08d}",
            source="web",
            shard=f"s3://bucket/{k // 10:06d}.tar",
            start=start,
            count=count,
            num_bytes=count * 60_000,
        )
        file = folder.write_output(unit, "scores", table_bytes(table), "parquet")
        fresh.append(folder.commit(number, unit, [file], {"samples": count}))
        if len(fresh) == 2000:
            folder.pack_commits(number, k // 2000, fresh)
            fresh = []
    folder.close(number)
    return opened.finish(counts={"samples": num_rows}).url


def choose(scores: str, root: str) -> dict[str, Any]:
    """Run the filter in this process; report time and peak memory."""
    from consomme.pipelines.filter import run as filter_
    from consomme.pipelines.filter.recipe import FilterRecipe

    began = time.monotonic()
    done = filter_.run(FilterRecipe(
        name="lowest", root=root, scores=scores, keep={"name": "lowest_fraction"}
    ))  # fmt: skip
    seconds = time.monotonic() - began
    status = Path("/proc/self/status").read_text()
    return {
        "seconds": seconds,
        "peak_mb": int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024,
        "kept": done.counts["kept"],
        "ties": done.decisions["tie_count"],
    }


def rows() -> list[dict[str, Any]]:
    """Measure both sizes, each in its own process."""
    found = {}
    for num_rows, unit_rows in ((NUM_ROWS, LARGE_UNIT), (SMALL_ROWS, SMALL_UNIT)):
        with tempfile.TemporaryDirectory() as scratch:
            scores = write_scores(scratch, num_rows, unit_rows)
            done = subprocess.run(
                [sys.executable, "-m", "tests.benchmarks.filtering", scores, scratch],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
        found[num_rows] = json.loads(done.stdout.splitlines()[-1])
        assert found[num_rows]["kept"] == num_rows // 5, found
    how = "; ".join(
        f"{n:,} scores in units of {size:,}: {found[n]['seconds']:.1f} s,"
        f" {found[n]['peak_mb']:.0f} MB, {found[n]['ties']:,} tied on the cut"
        for n, size in ((NUM_ROWS, LARGE_UNIT), (SMALL_ROWS, SMALL_UNIT))
    )

    def row(key: str, value: float, unit: str, text: str) -> dict[str, Any]:
        return {"key": key, "value": round(value, 2), "unit": unit, "baseline": "", "how": text}

    return [
        row("filter.seconds_100m", found[NUM_ROWS]["seconds"], "s", how),
        row("filter.peak_mb_100m", found[NUM_ROWS]["peak_mb"], "MB", "peak of the whole process"),
        row("filter.seconds_10m_small_units", found[SMALL_ROWS]["seconds"], "s", "9,766 files"),
    ]


if __name__ == "__main__":
    _, where, root = sys.argv
    sys.stdout.write(json.dumps(choose(where, root)) + "\n")
