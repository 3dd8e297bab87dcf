"""CPU time and memory of planning a LLaVA file of 500 MB, against `json.load` of the same file.

python -m tests.benchmarks.llava_json FILE plan|load    # one process each; started by `rows`
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

MEGABYTES = 500


def write(path: Path, megabytes: int) -> int:
    """Write conversations of some rounds about pictures that do not exist; return how many."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 9))) for _ in range(3000)]
    number = size = 0
    with path.open("w") as file:
        file.write("[")
        while size < megabytes * 10**6:
            turns = [
                {
                    "from": ("human", "gpt")[k % 2],
                    "value": "<image>\n" * (not k) + " ".join(rng.choices(words, k=30)),
                }
                for k in range(6)
            ]
            image = f"coco/train2017/{number:012d}.jpg"
            record = {"id": f"{number:09d}", "image": image, "conversations": turns}
            size += file.write("," * bool(number) + json.dumps(record))
            number += 1
        file.write("]")
    return number


def measure(path: Path, what: str) -> dict[str, float]:
    """Plan the file, or load it; report CPU time and the growth of peak memory."""
    from consomme.storage.shards import Shard
    from consomme.storage.units import plan_shard

    shard = Shard(url=str(path), size=path.stat().st_size)
    before = _peak_mb()
    began = time.process_time()
    if what == "plan":
        found = sum(unit.count for unit in plan_shard(shard))
    else:
        with path.open() as file:
            found = len(json.load(file))
    cpu_s = time.process_time() - began
    return {"cpu_s": cpu_s, "mb": _peak_mb() - before, "records": found}


def _peak_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]


def rows(megabytes: int = MEGABYTES) -> list[dict[str, Any]]:
    """Measure both, each in a process of its own."""
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "llava.json"
        number = write(path, megabytes)
        for what in ("plan", "load"):
            done = subprocess.run(
                [sys.executable, "-m", "tests.benchmarks.llava_json", str(path), what],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            found[what] = json.loads(done.stdout.splitlines()[-1])
    plan, load = found["plan"], found["load"]
    assert plan["records"] == load["records"] == number
    how = (
        f"{number:,} conversations, {megabytes} MB: {plan['cpu_s']:.1f} CPU seconds for the plan,"
        f" {load['cpu_s']:.1f} for json.load"
    )

    def row(key: str, value: float, unit: str, text: str) -> dict[str, Any]:
        return {"key": key, "value": round(value, 2), "unit": unit, "baseline": "", "how": text}

    return [
        row("planning.llava_json_ratio", plan["cpu_s"] / load["cpu_s"], "x", how),
        row("planning.llava_json_mb", plan["mb"], "MB",
            f"memory of planning it; of json.load {load['mb']:.0f}"),
    ]  # fmt: skip


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(Path(sys.argv[1]), sys.argv[2])) + "\n")
