"""Time and driver memory of planning 10,000 and 100,000 shards, and of large row groups.

    python -m tests.benchmarks.planning SHARDS RUN     # one process per size; started by run.py

The shards are tars of two samples, so the number of shards dominates: listing, reading tar headers
in tasks, writing the plan. On S3 there are 5,000 shards, on a server on the same machine.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

SIZES = (10_000, 100_000)
S3_SIZE = 5_000
SHARDS_PER_FOLDER = 1_000


def write_shards(url: str, num: int) -> None:
    """Write small tars, a thousand per folder."""
    from consomme.datasets.sources import SceneSource
    from consomme.storage.stores.open import open_store
    from consomme.storage.writers import tar_bytes

    data = tar_bytes(list(SceneSource(num=2)()))
    store = open_store(url)
    names = [f"{n // SHARDS_PER_FOLDER:04d}/{n:06d}.tar" for n in range(num)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: store.write(name, data), names))


def plan(shards_url: str, run_url: str) -> dict[str, Any]:
    """List and plan, as a verb does; report time and this process's peak memory."""
    from consomme.execution.planning import plan_shards
    from consomme.execution.session import ray_session
    from consomme.storage.ledger.run_folder import RunFolder
    from consomme.storage.shards import find_shards

    def peak_mb() -> float:
        # Not getrusage: its maximum includes the process that this one was forked from.
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024

    with ray_session():
        base = peak_mb()
        began = time.monotonic()
        shards = find_shards([shards_url])
        listed = time.monotonic()
        made = plan_shards(RunFolder.at(run_url), shards, 1024)
        planned = time.monotonic()
        found = {
            "list_s": listed - began,
            "plan_s": planned - listed,
            "base_mb": base,
            "peak_mb": peak_mb(),
            "units": made.num_units,
        }
    return found


def in_a_process(shards_url: str, run_url: str) -> dict[str, Any]:
    """Plan in a new process."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.planning", shards_url, run_url],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def rows() -> list[dict[str, Any]]:
    """Measure both sizes on disk and one size on S3."""
    from tests.benchmarks import llava_json, row_group
    from tests.support.s3_server import BUCKET, seaweedfs

    found = {}
    for num in SIZES:
        with tempfile.TemporaryDirectory() as scratch:
            write_shards(f"{scratch}/shards", num)
            found[num] = in_a_process(f"{scratch}/shards", f"{scratch}/run")
        assert found[num]["units"] == num, found
    with seaweedfs() as server:
        before = dict(os.environ)
        os.environ.update(server.env())
        write_shards(f"s3://{BUCKET}/shards", S3_SIZE)
        on_s3 = in_a_process(f"s3://{BUCKET}/shards", f"s3://{BUCKET}/run")
        os.environ.clear()
        os.environ.update(before)
    assert on_s3["units"] == S3_SIZE, on_s3
    small, large = (found[num] for num in SIZES)
    cores = os.cpu_count()
    how = "; ".join(
        f"{num:,} shards on {where}: listed in {one['list_s']:.1f} s, planned in"
        f" {one['plan_s']:.1f} s, driver {one['peak_mb']:.0f} MB ({one['base_mb']:.0f} before)"
        for num, where, one in ((SIZES[0], "disk", small), (SIZES[1], "disk", large), (
            S3_SIZE, "SeaweedFS", on_s3))
    )  # fmt: skip

    def row(key: str, value: float, unit: str, text: str) -> dict[str, Any]:
        return {"key": key, "value": round(value, 2), "unit": unit, "baseline": "", "how": text}

    grown = large["peak_mb"] - small["peak_mb"]
    return [
        row("planning.seconds_100k", large["list_s"] + large["plan_s"], "s", how),
        row("planning.driver_mb_100k", large["peak_mb"] - large["base_mb"], "MB",
            "peak of the driver above an idle one with Ray running"),
        row("planning.driver_bytes_per_shard", grown * 2**20 / (SIZES[1] - SIZES[0]), "B",
            "growth from 10,000 to 100,000 shards"),
        row("planning.shards_per_s_s3", S3_SIZE / on_s3["plan_s"], "shards/s",
            f"server, driver and tasks on {cores} cores"),
        *row_group.rows(),
        *llava_json.rows(),
    ]  # fmt: skip


if __name__ == "__main__":
    _, shards, run = sys.argv
    sys.stdout.write(json.dumps(plan(shards, run)) + "\n")
