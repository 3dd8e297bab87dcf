"""Time and memory of reading a Parquet row group of a million rows in units.

    python -m tests.benchmarks.row_group WHICH FILE    # one process each; started by planning.py

The ratio is processor time: all units in order, against the whole file as one unit. Memory is what
the process has at most while it reads units.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NUM_ROWS = 1_000_000
UNIT_ROWS = 1_024


def write(path: str) -> None:
    """Write one row group: small pictures, captions of eight words, and a column of scores."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghij", k=6)) for _ in range(5000)]
    columns = {
        "id": [f"row-{number}" for number in range(NUM_ROWS)],
        "image": pa.array([rng.randbytes(150) for _ in range(NUM_ROWS)], pa.binary()),
        "caption": [" ".join(rng.choices(words, k=8)) for _ in range(NUM_ROWS)],
        "score": [rng.random() for _ in range(NUM_ROWS)],
    }
    pq.write_table(pa.table(columns), path, row_group_size=NUM_ROWS)


def read(which: str, path: str) -> dict[str, float]:
    """Read the file as `units`, as one unit (`once`), or by Arrow into Python (`arrow`)."""
    import pyarrow.parquet as pq

    from consomme.storage.units import plan_units, read_unit

    def peak_mb() -> float:
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024

    base, began, num = peak_mb(), time.process_time(), 0
    if which == "arrow":
        for batch in pq.ParquetFile(path).iter_batches(use_threads=False):
            num += len(batch.to_pylist())
    else:
        rows, size = (UNIT_ROWS, 128 * 2**20) if which == "units" else (NUM_ROWS, 2**40)
        for unit in plan_units([path], "data", max_rows=rows, max_bytes=size):
            num += len(read_unit(unit)[0])
    assert num == NUM_ROWS, num
    return {"cpu_s": time.process_time() - began, "base_mb": base, "peak_mb": peak_mb()}


def rows() -> list[dict[str, Any]]:
    """Measure each way in a process of its own."""
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        path = f"{scratch}/million.parquet"
        write(path)
        size = Path(path).stat().st_size
        for which in ("once", "units", "arrow"):
            command = [sys.executable, "-m", "tests.benchmarks.row_group", which, path]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[which] = json.loads(done.stdout.splitlines()[-1])
    units, once, arrow = found["units"], found["once"], found["arrow"]
    how = (
        f"one row group of {NUM_ROWS:,} rows, {size / 2**20:.0f} MB: {units['cpu_s']:.0f} CPU"
        f" seconds in units of {UNIT_ROWS:,} rows, {once['cpu_s']:.0f} as one unit,"
        f" {arrow['cpu_s']:.1f} for Arrow's rows as Python values without samples"
    )

    def row(key: str, value: float, unit: str, text: str) -> dict[str, Any]:
        return {"key": key, "value": round(value, 2), "unit": unit, "baseline": "", "how": text}

    return [
        row("planning.row_group_1m_ratio", units["cpu_s"] / once["cpu_s"], "x", how),
        row("planning.row_group_1m_mb", units["peak_mb"] - units["base_mb"], "MB",
            f"memory of reading it in units; as one unit {once['peak_mb'] - once['base_mb']:.0f}"),
    ]  # fmt: skip


if __name__ == "__main__":
    _, chosen, file = sys.argv
    sys.stdout.write(json.dumps(read(chosen, file)) + "\n")
