"""Cost of a restart with a million units in the ledger, on local disk and on S3.

    python -m tests.benchmarks.ledger STEP URL NUM_UNITS     # one step; started by run.py

The ledger is written with the code of a real run; 2,000 records are left unpacked, as after a
crash. Then a new process starts an attempt and computes which units are pending.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

LOOSE = 2000
ROWS = 1000


class CountingStore:
    """Store that counts requests by kind."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.requests = inner, Counter[str]()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)
        if name not in ("read", "write", "create", "delete", "exists", "size", "open"):
            return method

        def counted(*arguments: Any) -> Any:
            self.requests[name] += 1
            return method(*arguments)

        return counted

    def list(self, prefix: str = "", after: str = "") -> Iterator[Any]:
        """Count one request per thousand keys."""
        for number, file in enumerate(self.inner.list(prefix, after)):
            if number % 1000 == 0:
                self.requests["list"] += 1
            yield file

    def delete_many(self, paths: Any) -> None:
        """Count one request per thousand keys."""
        items = list(paths)
        self.requests["delete"] += -(-len(items) // 1000)
        self.inner.delete_many(items)


def make(url: str, num_units: int) -> None:
    """Write plan and ledger of a run that died just before its end."""
    from consomme.execution.planning import UNITS_PER_PART
    from consomme.storage.ledger import attempts
    from consomme.storage.ledger.commits import CommitRecord, OutputFile
    from consomme.storage.ledger.run_folder import RunFolder
    from consomme.storage.plan import Plan, Work, write_part
    from consomme.storage.unit import Unit

    run = RunFolder.at(url)
    run.create("name: simulated\n")

    def unit(number: int) -> Unit:
        return Unit(
            unit_id=f"web-shard-{number // 10:06d}-{number * 2654435761 % 2**32:08x}-{number:09d}",
            source="web",
            shard=f"s3://bucket/web/shard-{number // 10:06d}.tar",
            start=number % 10 * ROWS,
            count=ROWS,
            num_bytes=60 * 2**20,
            offset=number % 10 * 60 * 2**20,
        )

    parts = []
    for begin in range(0, num_units, UNITS_PER_PART):
        end = min(num_units, begin + UNITS_PER_PART)
        work = (Work(unit=unit(number)) for number in range(begin, end))
        parts.append(write_part(run.store, len(parts), work))
    Plan(parts=tuple(parts), num_shards=num_units // 10).save(run.store)
    attempt = run.start_attempt()

    def record(number: int) -> CommitRecord:
        one = unit(number)
        sha = f"{number * 0x9E3779B97F4A7C15 % 2**256:064x}"
        return CommitRecord(
            unit=one,
            files=(
                OutputFile(
                    kind="scores",
                    path=f"data/{one.unit_id}-{sha[:8]}.parquet",
                    num_bytes=30_000,
                    sha256=sha,
                ),
            ),
            counts={"samples": ROWS - 3, "rejected": 3, "rejected/image_truncated": 3},
            sums={"nll": number * 1.37, "num_tokens": 9000},
        )

    packed = num_units - LOOSE - num_units // 100
    for sequence, begin in enumerate(range(0, packed, 2000)):
        records = [record(number) for number in range(begin, min(packed, begin + 2000))]
        path = f"segments/{attempt:06d}/{sequence:06d}.parquet"
        run.store.write(path, attempts.pack(sorted(records, key=lambda r: r.unit_id)))
    for number in range(packed, packed + LOOSE):
        one = record(number)
        run.store.create(attempts.commit_path(attempt, one.unit_id), one.to_json())


def restart(url: str) -> dict[str, Any]:
    """Start an attempt and find the pending units, as `run_units` does."""
    import consomme.execution.pending  # noqa: F401 (imports are not part of a restart)
    from consomme.execution.pending import pending
    from consomme.storage.ledger.run_folder import RunFolder
    from consomme.storage.plan import Plan
    from consomme.storage.stores.open import open_store

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.monotonic()
    store = CountingStore(open_store(url))
    run = RunFolder(url, store)  # type: ignore[arg-type]
    plan = Plan.load(run.store)
    assert plan
    run.start_attempt()
    todo = pending(run, plan, 8)
    counts = run.total_counts()
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "seconds": seconds,
        "peak_mb": peak,
        "base_mb": before,
        "requests": sum(store.requests.values()),
        "by_kind": dict(store.requests),
        "left": todo.num_units,
        "rows_done": counts["samples"] + counts["rejected"],
    }


def measure(url: str, num_units: int) -> dict[str, Any]:
    """Write a ledger and restart from it, in two processes."""
    for step in ("make", "restart"):
        done = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.ledger", step, url, str(num_units)],
            check=True,
            capture_output=True,
            text=True,
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    expected = num_units // 100
    assert found["left"] == expected, (found, expected)
    return found


def rows() -> list[dict[str, Any]]:
    """Measure 100,000 and 1,000,000 units on disk, 100,000 on S3; extrapolate to ten million."""
    import os
    import shutil
    import tempfile

    from tests.support.s3_server import BUCKET, seaweedfs

    found: dict[str, dict[str, Any]] = {}
    for number in (100_000, 1_000_000):
        scratch = tempfile.mkdtemp()
        found[f"disk {number:,}"] = measure(f"{scratch}/run", number)
        shutil.rmtree(scratch)
    with seaweedfs() as server:
        before = dict(os.environ)
        os.environ.update(server.env())
        found["S3 100,000"] = measure(f"s3://{BUCKET}/ledger", 100_000)
        os.environ.clear()
        os.environ.update(before)
    small, large = found["disk 100,000"], found["disk 1,000,000"]
    how = "; ".join(
        f"{name} units: {one['seconds']:.1f} s, {one['requests']:,} requests,"
        f" {one['peak_mb']:.0f} MB ({one['base_mb']:.0f} before)"
        for name, one in found.items()
    )
    per_unit = {
        key: (large[key] - small[key]) / 900_000 for key in ("seconds", "requests", "peak_mb")
    }
    ten = {key: large[key] + per_unit[key] * 9_000_000 for key in per_unit}
    how_ten = "worked out from the two runs on disk, growth per unit held constant"

    def row(key: str, value: float, unit: str, text: str) -> dict[str, Any]:
        return {"key": key, "value": round(value, 2), "unit": unit, "baseline": "", "how": text}

    return [
        row("ledger.restart_s_1m", large["seconds"], "s", how),
        row("ledger.driver_mb_1m", large["peak_mb"], "MB", "peak of the whole driver process"),
        row("ledger.requests_1m", large["requests"], "requests", str(large["by_kind"])),
        row("ledger.restart_s_100k_s3", found["S3 100,000"]["seconds"], "s", "SeaweedFS beside it"),
        row("ledger.restart_s_10m", ten["seconds"], "s", how_ten),
        row("ledger.driver_mb_10m", ten["peak_mb"], "MB", how_ten),
        row("ledger.requests_10m", ten["requests"], "requests", how_ten),
    ]


if __name__ == "__main__":
    _, step, where, number = sys.argv
    if step == "make":
        make(where, int(number))
    else:
        sys.stdout.write(json.dumps(restart(where)) + "\n")
