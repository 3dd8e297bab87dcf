"""Kill things at random moments and look what is left.

A disturbed run is compared with an undisturbed one file by file, and each sample of the input must
come out once, as a row or as a reject. Every random choice comes from one printed seed.
"""

import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Protocol

from consomme.base.sample import ImageFile
from consomme.datasets.scenes import caption, encode, make_scene, render
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.sidecar import read_columns
from consomme.storage.stores.open import open_store
from consomme.storage.units import plan_units, read_unit

DRIVER = Path(__file__).with_name("driver.py")
COMPARED = ("commits/", "data/", "rejects/", "plan/")


@dataclass
class Tally:
    """What happened over a matrix of deaths."""

    kills: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    lost: int = 0
    doubled: int = 0
    differing: int = 0
    exit_codes: dict[str, Counter[int]] = field(default_factory=dict)

    def saw_exit(self, kind: str, code: int) -> None:
        self.exit_codes.setdefault(kind, Counter())[code] += 1


def write_shards(url: str, num_shards: int, rows: int = 16) -> None:
    """Write tars and Parquet files of scenes with a sprinkling of bad rows."""
    from consomme.base.sample import Sample, caption_turns
    from consomme.storage.writers import parquet_bytes, tar_bytes

    store = open_store(url)
    for shard in range(num_shards):
        samples = []
        for row in range(rows):
            scene = make_scene(shard * rows + row)
            image, text = encode(render(scene)), caption(scene)
            number = shard * rows + row
            if number % 13 == 5:
                image = image[: len(image) // 2]
            if number % 17 == 3:
                image = b"<html>not found</html>"
            if number % 19 == 7:
                text = "  "
            samples.append(
                Sample(
                    sample_id=f"s{number:05d}",
                    images=(ImageFile(data=image, name=f"s{number:05d}.png"),),
                    turns=caption_turns(text),
                    source="data",
                    meta={},
                )
            )
        kind = "parquet" if shard % 4 == 3 else "tar"
        pack = parquet_bytes if kind == "parquet" else tar_bytes
        data = pack(samples, 8) if kind == "parquet" else tar_bytes(samples)
        # Parquet and tars must not share a folder: a folder holds one kind.
        store.write(f"{kind}/{shard:04d}.{kind}", data)


def recipe_text(root: str, shards: str, **options: object) -> str:
    lines = {"root": root, "inputs": f"[{shards}/tar, {shards}/parquet]", **options}
    return "".join(f"{key}: {value}\n" for key, value in lines.items())


def train_recipe(shards: str, **options: object) -> str:
    """A small training, with `{root}` where its place goes."""
    lines = {
        "name": "t",
        "root": "{root}",
        "model": "package://models/nano",
        "data": f"[{{inputs: [{shards}/tar]}}]",
        "global_batch": 8,
        "layers": "{name: sparse_uniform}",
        "max_reject_fraction": 0.2,
        **options,
    }
    return "".join(f"{key}: {value}\n" for key, value in lines.items())


def curve(root: Path) -> list[dict[str, float]]:
    """The steps of the one training below a root, as far as it got."""
    for path in root.glob("train/*/curve.json"):
        found: list[dict[str, float]] = json.loads(path.read_text())
        return found
    return []


@dataclass
class Job:
    """One command that is started again until it ends well."""

    recipe: Path
    environment: Mapping[str, str]
    log: Path
    root: str = ""
    program: Path = DRIVER

    def start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, str(self.program), str(self.recipe)],
                env=dict(self.environment),
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=hear_interrupts,
            )

    def finish(self, timeout_s: float = 240) -> None:
        """Run to the end, undisturbed."""
        process = self.start()
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            end_group(process)
            raise AssertionError(f"the run hung:\n{self.tail()}") from None
        assert code == 0, f"exit code {code}:\n{self.tail()}"

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]


def job(
    folder: Path,
    root: str,
    shards: str,
    environment: Mapping[str, str] | None = None,
    **options: object,
) -> Job:
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe_text(root, shards, **options))
    variables = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    return Job(recipe, {**variables, **(environment or {})}, folder / "log.txt", root)


@dataclass
class Runs:
    """Runs of one verb's recipe by the command itself, each in a place of its own."""

    verb: str
    recipe: str
    """With `{root}` where the place goes."""

    folder: Path
    number: int = 0

    def fresh(self) -> Path:
        self.number += 1
        return self.folder / f"run-{self.number}"

    def start(
        self, root: Path, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = root.with_suffix(".yaml")
        path.write_text(self.recipe.replace("{root}", str(root)))
        with root.with_suffix(".log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "consomme.cli", self.verb, str(path)],
                env={**os.environ, **(environment or {})},
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=hear_interrupts,
            )


def write_results(
    path: Path, rows: Sequence[tuple[str, float, str, str]], **beside: object
) -> None:
    """Write rows of key, value, unit and how; those of other keys stay."""
    keys = {key for key, *_ in rows}
    before = json.loads(path.read_text())["rows"] if path.exists() else []
    content = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU",
        "date": date.today().isoformat(),
        "rows": [row for row in before if row["key"] not in keys]
        + [
            {"key": key, "value": value, "unit": unit, "baseline": "undisturbed run", "how": how}
            for key, value, unit, how in rows
        ],
        **beside,
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def hear_interrupts() -> None:
    """Undo what a shell does to background jobs: they and their children do not hear SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL the process and what it started."""
    for pid in [*descendants(process.pid), process.pid]:
        kill(pid, signal.SIGKILL)
    process.wait(30)


def kill(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def descendants(pid: int) -> list[int]:
    """Processes below one, by /proc."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "stat").read_text()
            except OSError:
                continue
            parents.setdefault(int(text.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        children = parents.get(queue.pop(), [])
        found += children
        queue += children
    return found


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""


def workers_below(pid: int) -> list[int]:
    """Ray workers that do something, below a process."""
    # Agents are part of Ray's own node, not workers.
    return [
        child
        for child in descendants(pid)
        if command_of(child).startswith("ray::") and "Agent" not in command_of(child)
    ]


def run_url(root: str) -> str:
    """The one run below a root."""
    store = open_store(root)
    folders = {"/".join(file.path.split("/")[:2]) for file in store.list("pixels/")}
    (folder,) = folders
    return f"{root}/{folder}"


def snapshot(root: str) -> dict[str, bytes]:
    """Every byte of a finished run that must not depend on what happened to it."""
    store = open_store(run_url(root))
    paths = [file.path for file in store.list() if file.path.startswith(COMPARED)]
    return {path: store.read(path) for path in paths}


def rows_out(root: str) -> Counter[str]:
    """How often each sample came out, as a row or a reject."""
    url = run_url(root)
    seen = Counter(read_columns(url, [], kind="pixels")["sample_id"].to_pylist())
    seen.update(reject.sample_id for reject in RunFolder.at(url).rejects())
    return seen


def rows_in(shards: str) -> Counter[str]:
    """The samples of the input, good and bad."""
    seen: Counter[str] = Counter()
    for unit in plan_units([f"{shards}/tar", f"{shards}/parquet"], "data"):
        samples, rejects = read_unit(unit)
        seen.update(sample.sample_id for _, sample in samples)
        seen.update(reject.sample_id for _, reject in rejects)
    return seen


def judge(tally: Tally, root: str, expected: Mapping[str, bytes], samples: Counter[str]) -> None:
    """Compare a finished run with the undisturbed one and add up what differs."""
    seen = rows_out(root)
    tally.runs += 1
    tally.lost += sum((samples - seen).values())
    tally.doubled += sum((seen - samples).values())
    found = snapshot(root)
    for path in found.keys() | expected.keys():
        tally.differing += found.get(path) != expected.get(path)
    strays = [f.path for f in open_store(run_url(root)).list() if ".tmp" in f.path]
    assert not strays, strays


class Pollable(Protocol):
    """A process that can be asked whether it has ended."""

    def poll(self) -> int | None: ...


def wait_until(is_time: Callable[[], bool], process: Pollable, most_s: float) -> bool:
    """Wait for a moment; False if the process ended before it came."""
    deadline = time.monotonic() + most_s
    while not is_time():
        if process.poll() is not None or time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return process.poll() is None


def moments(rng: random.Random, span_s: float) -> Iterator[float]:
    """Endless random moments within a run."""
    while True:
        yield rng.uniform(0, span_s)


def disturb_driver(
    jobs: Callable[[], tuple[Job, str]],
    tally: Tally,
    judged: Callable[[str], None],
    *,
    kind: str,
    number: int,
    span_s: float,
    rng: random.Random,
    signals: int,
) -> None:
    """Send a signal to the driver at `number` random moments, over as many runs as it takes."""
    done = calm = 0
    while done < number:
        work, root = jobs()
        calm += 1
        assert calm < 10 * number, f"{kind}: {calm} runs and only {done} were hit"
        for moment in moments(rng, span_s):
            process = work.start()
            end = time.monotonic() + moment
            if not wait_until(lambda end=end: time.monotonic() > end, process, moment + 5):
                assert process.wait() == 0, work.tail()
                break
            kill(process.pid, signals)
            try:
                code = process.wait(60)
            except subprocess.TimeoutExpired:
                end_group(process)
                raise AssertionError(f"{kind}: the driver did not end:\n{work.tail()}") from None
            if code == 0:
                break
            tally.kills[kind] += 1
            tally.saw_exit(kind, code)
            done += 1
            if done >= number:
                work.finish()
                break
        judged(root)


def disturb_workers(
    jobs: Callable[[], tuple[Job, str]],
    tally: Tally,
    judged: Callable[[str], None],
    *,
    number: int,
    pause_s: float,
    rng: random.Random,
) -> None:
    """SIGKILL a random busy worker at random moments; the run must end well by itself."""
    done = 0
    while done < number:
        work, root = jobs()
        process = work.start()
        while process.poll() is None:
            time.sleep(rng.uniform(0.2, pause_s))
            workers = workers_below(process.pid)
            if workers and done < number and kill(rng.choice(workers), signal.SIGKILL):
                tally.kills["worker SIGKILL"] += 1
                done += 1
        assert process.returncode == 0, work.tail()
        judged(root)


def new_folder(prefix: str) -> Path:
    return Path(tempfile.mkdtemp(prefix=prefix))


def report(tally: Tally, seed: int) -> str:
    return json.dumps(
        {
            "seed": seed,
            "kills": dict(tally.kills),
            "runs": tally.runs,
            "lost": tally.lost,
            "doubled": tally.doubled,
            "differing": tally.differing,
            "exit_codes": {kind: dict(codes) for kind, codes in tally.exit_codes.items()},
        },
        indent=1,
    )
