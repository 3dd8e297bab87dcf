"""The whole matrix of failures: every kind, at random moments, on local storage and on S3.

    python -m tests.chaos.matrix [seed=1] [number=20] [kinds=driver,worker,…] [storages=local,s3]
                                 [keep=true]

Prints the number of kills and what was lost, doubled or different, and writes the figures to
`tests/benchmarks/results/chaos.json`; `keep=true` adds to the existing cells. Takes
more than an hour on two cores, most of it Ray starting up.
"""

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos import harness
from tests.chaos.cluster import SmallCluster
from tests.chaos.harness import Job, Tally
from tests.support.faulty_proxy import FaultyProxy
from tests.support.s3_server import BUCKET, S3Server, seaweedfs

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "chaos.json"
NUM_SHARDS = 16
STORM = {
    "slow_down": 0.04,
    "error": 0.02,
    "conflict": 0.02,
    "reset": 0.03,
    "stall": 0.005,
    "delay": 0.05,
    "cut": 0.02,
    "drop_answer": 0.03,
}
"""Share of requests each fault hits: about one request in five goes wrong."""


@dataclass
class Arena:
    """One storage with its input, an undisturbed run, and fresh places for disturbed ones."""

    name: str
    folder: Path
    base: str
    environment: Mapping[str, str]
    tally: Tally
    seconds: float = 0.0
    expected: dict[str, bytes] = field(default_factory=dict)
    samples: Counter[str] = field(default_factory=Counter)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def shards(self) -> str:
        return f"{self.base}/shards"

    def job(self, environment: Mapping[str, str] | None = None, **options: object) -> Job:
        number = next(self.numbers)
        place = f"run-{number}"
        # In turn: actors that read for themselves, and tasks that read ahead.
        options = {"num_readers": 2 * (number % 2)} | options
        variables = {**self.environment, **(environment or {})}
        work = harness.job(
            self.folder / place, f"{self.base}/{place}/root", self.shards, variables, **options
        )
        return work

    def judge(self, root: str) -> None:
        harness.judge(self.tally, root, self.expected, self.samples)
        print(
            f"  {self.name}: {self.tally.kills.total()} kills, {self.tally.runs} runs,"
            f" lost {self.tally.lost}, doubled {self.tally.doubled},"
            f" differing {self.tally.differing}",
            flush=True,
        )


def arena(
    name: str,
    folder: Path,
    base: str,
    environment: Mapping[str, str],
    num_shards: int = NUM_SHARDS,
) -> Arena:
    made = Arena(name, folder / name, base, environment, Tally())
    harness.write_shards(made.shards, num_shards)
    made.samples = harness.rows_in(made.shards)
    calm = made.job()
    began = time.monotonic()
    calm.finish()
    made.seconds = time.monotonic() - began
    made.expected = harness.snapshot(calm.root)
    print(f"{name}: undisturbed {made.seconds:.0f} s, {sum(made.samples.values())} samples")
    return made


Kind = Callable[[Arena, int, random.Random], None]


def driver(place: Arena, number: int, rng: random.Random) -> None:
    signal_driver(place, number, rng, "driver SIGKILL", signal.SIGKILL)


def interrupt(place: Arena, number: int, rng: random.Random) -> None:
    signal_driver(place, number, rng, "Ctrl-C", signal.SIGINT)


def signal_driver(
    place: Arena, number: int, rng: random.Random, kind: str, which: signal.Signals
) -> None:
    def jobs() -> tuple[Job, str]:
        work = place.job()
        return work, work.root

    harness.disturb_driver(
        jobs,
        place.tally,
        place.judge,
        kind=kind,
        number=number,
        span_s=place.seconds,
        rng=rng,
        signals=which,
    )


def worker(place: Arena, number: int, rng: random.Random) -> None:
    def jobs() -> tuple[Job, str]:
        work = place.job(unit_seconds=0.1)
        return work, work.root

    harness.disturb_workers(jobs, place.tally, place.judge, number=number, pause_s=2.0, rng=rng)


def node(place: Arena, number: int, rng: random.Random) -> None:
    """SIGKILL a worker node; a fresh one joins. The run must end well by itself."""
    done = 0
    while done < number:
        with alive(SmallCluster()) as cluster:
            work = place.job(on(cluster), unit_seconds=0.3)
            process = work.start()
            began = time.monotonic()
            while process.poll() is None:
                time.sleep(rng.uniform(1, 5))
                if process.poll() is None and done < number:
                    cluster.lose_worker(rng.randrange(2))
                    place.tally.kills["node removal"] += 1
                    done += 1
                if time.monotonic() - began > 300:
                    harness.end_group(process)
                    raise AssertionError(f"node removal: the run hung:\n{work.tail()}")
            assert process.returncode == 0, work.tail()
        place.judge(work.root)


def head(place: Arena, number: int, rng: random.Random) -> None:
    """SIGKILL the head with everything on it; the command is run again on a new cluster."""
    work, done = None, 0
    while done < number:
        work = work or place.job(unit_seconds=0.2)
        with alive(SmallCluster()) as cluster:
            process = started(work, on(cluster))
            time.sleep(rng.uniform(0, place.seconds + 5))
            was_running = process.poll() is None
            cluster.lose_head()
            if was_running:
                place.tally.kills["head restart"] += 1
                done += 1
                try:
                    code = process.wait(6)
                except subprocess.TimeoutExpired:
                    # On Kubernetes the driver lives in the head's pod and goes with it.
                    harness.end_group(process)
                    code = -9
                place.tally.saw_exit("head restart", code)
                if code == 1:
                    print(work.tail(), flush=True)
                # It may have been just about to end.
                was_running = code != 0
        if not was_running or done == number:
            with alive(SmallCluster()) as cluster:
                assert started(work, on(cluster)).wait(240) == 0, work.tail()
            place.judge(work.root)
            work = None


def storm(place: Arena, number: int, rng: random.Random) -> None:
    """S3 that throttles, stalls, resets, cuts bodies and loses answers, all the time."""
    seen = 0
    while seen < number:
        target = place.environment["AWS_ENDPOINT_URL"]
        with FaultyProxy(target, STORM, rng.randrange(2**31)) as proxy:
            work = place.job({"AWS_ENDPOINT_URL": proxy.url})
            work.finish(400)
            faults = sum(number for kind, number in proxy.counts.items() if kind in STORM)
            place.tally.kills["S3 fault"] += faults
            seen += faults
        place.judge(work.root)


def disk(place: Arena, number: int, rng: random.Random) -> None:
    """A disk that is full at a random moment; then there is room and the command is run again."""
    done = 0
    while done < number:
        work = place.job()
        mount = Path(work.root)
        mount.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(mount)], check=True)
        try:
            for _ in range(5):
                process = work.start()
                time.sleep(rng.uniform(0, place.seconds))
                if process.poll() is None and done < number:
                    fill(mount)
                    code = process.wait(200)
                    if code == 0:
                        break
                    place.tally.kills["disk full"] += 1
                    place.tally.saw_exit("disk full", code)
                    done += 1
                (mount / "filler").unlink(missing_ok=True)
                if process.wait(200) == 0:
                    break
            (mount / "filler").unlink(missing_ok=True)
            work.finish()
            place.judge(work.root)
        finally:
            subprocess.run(["umount", "-l", str(mount)], check=True)


def fill(mount: Path) -> None:
    """Take all the space there is."""
    with (mount / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def on(cluster: SmallCluster) -> dict[str, str]:
    return {"RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "disabled"}


def started(work: Job, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    return Job(work.recipe, {**work.environment, **environment}, work.log, work.root).start()


@contextlib.contextmanager
def alive(cluster: SmallCluster) -> Iterator[SmallCluster]:
    try:
        yield cluster
    finally:
        cluster.end()


KINDS: dict[str, Kind] = {
    "driver": driver,
    "interrupt": interrupt,
    "worker": worker,
    "node": node,
    "head": head,
    "storm": storm,
    "disk": disk,
}
ONLY = {"storm": "s3", "disk": "local"}
"""Kinds that make sense on one storage only."""


@contextlib.contextmanager
def storages(names: list[str], folder: Path) -> Iterator[dict[str, tuple[str, dict[str, str]]]]:
    found: dict[str, tuple[str, dict[str, str]]] = {}
    with contextlib.ExitStack() as stack:
        if "local" in names:
            found["local"] = (str(folder / "local"), {})
        if "s3" in names:
            server: S3Server = stack.enter_context(seaweedfs())
            variables = server.env()
            os.environ.update(variables)
            found["s3"] = (f"s3://{BUCKET}/chaos", variables)
        yield found


def main(arguments: list[str]) -> int:
    options = {"seed": "1", "number": "20", "kinds": ",".join(KINDS), "storages": "local,s3"}
    options |= {"keep": "false"} | dict(argument.split("=", 1) for argument in arguments)
    seed, number = int(options["seed"]), int(options["number"])
    os.environ["RAY_AUTH_MODE"] = "disabled"
    folder = harness.new_folder("consomme-chaos-")
    cells: dict[str, dict[str, Any]] = {}
    if options["keep"] == "true":
        cells = json.loads(RESULTS.read_text())["cells"]
    with storages(options["storages"].split(","), folder) as bases:
        places = [arena(name, folder, *bases[name]) for name in bases]
        for kind in options["kinds"].split(","):
            for place in places:
                if ONLY.get(kind, place.name) != place.name:
                    continue
                print(f"{place.name}: {kind}, seed {seed}", flush=True)
                place.tally = Tally()
                began = time.monotonic()
                KINDS[kind](place, number, random.Random(f"{seed}-{place.name}-{kind}"))
                cells[f"{kind} on {place.name}"] = {
                    **json.loads(harness.report(place.tally, seed)),
                    "seconds": round(time.monotonic() - began),
                }
                write_results(cells)
    shutil.rmtree(folder, ignore_errors=True)
    return any(cell[bad] for cell in cells.values() for bad in ("lost", "doubled", "differing"))


def write_results(cells: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the figures, and every cell of the matrix beside them."""
    counts = {name: sum(cell["kills"].values()) for name, cell in cells.items()}
    how = ", ".join(f"{name} {number}" for name, number in sorted(counts.items()))
    runs = sum(cell["runs"] for cell in cells.values())
    rows = [("chaos.kills", sum(counts.values()), "kills", f"{runs} runs: {how}")] + [
        (key, sum(cell[name] for cell in cells.values()), unit, "over all of them")
        for key, name, unit in (
            ("chaos.lost", "lost", "samples"),
            ("chaos.doubled", "doubled", "samples"),
            ("chaos.differing_bytes", "differing", "files"),
        )
    ]
    harness.write_results(RESULTS, rows, cells=cells)
    print(f"{sum(counts.values())} kills so far; figures in {RESULTS.name}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
