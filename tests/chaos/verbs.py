"""SIGKILL drivers, workers, Ray's GCS and its raylet at random moments of real verbs.

    python -m tests.chaos.verbs [seed=1] [number=64] [verbs=score,recaption,train,soup,evaluate]
                                [victims=driver,worker,gcs,raylet] [keep=true]

Each command has a Ray of its own. It is started again until it ends well, with several kills on the
way, and is then compared with an undisturbed run: everything it was to make is there once, and its
files are the same byte for byte. So that hundreds of starts fit into an hour, commands are forked
from a process that has imported torch and Ray. About half of the moments fall into a command's
start and half into its work; workers die at work only. A kill counts if it hit a process that was
alive and not idle after the run's folder was begun, and if the command then did not end well as if
nothing had happened. Every random choice comes from the seed.

Writes `tests/benchmarks/results/verb_chaos.json` after each run. `keep=true` keeps what is there,
and goes on until each verb has `number` kills with this seed.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos import harness
from tests.chaos.forked import Forked, preload
from tests.chaos.verb_runs import CASES, Outcome, make_inputs, num_results, outcome_of

from consomme.base.errors import EXIT_TRY_AGAIN

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "verb_chaos.json"
VICTIMS = ("driver", "worker", "gcs", "raylet")
EXPECTED = {"driver": {-9}, "worker": {75}, "gcs": {75}, "raylet": {75}}
"""Exit codes of a command after such a loss, beside 0."""

BYSTANDERS = ("IDLE", "Agent", "_StatsActor", "_AutoscalingCoordinator", "ActorLocationTracker")
"""Workers of Ray that do nothing, or nothing for the run."""

PROGRAMS = {"gcs": "/gcs_server", "raylet": "/raylet"}
MARK = "CONSOMME_CHAOS_RUN"
"""Variable by which every process of a run is known, whoever its parent is by now."""

KILLS_A_RUN = 8
MAX_PAUSE_S = 10.0
"""Longest pause from a result to a death, so that a run takes several."""

HUNG_S = 600
GONE_WITHIN_S = 90


@dataclass(frozen=True)
class Hit:
    """One kill."""

    victim: str
    title: str
    is_at_work: bool
    """Whether a worker was busy at that moment."""


@dataclass
class Cell:
    """What happened to one verb."""

    verb: str
    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    """By kind of victim."""

    at_work: int = 0
    """Kills while a worker was busy; the others hit a run that was starting or ending."""

    titles: Counter[str] = field(default_factory=Counter)
    """Of the workers that were killed, as Ray gives them."""

    starts: int = 0
    runs: int = 0
    units: int = 0
    """What the compared runs were to make: samples, steps, answers, candidates."""

    lost: int = 0
    doubled: int = 0
    differing: int = 0
    left_behind: int = 0
    """Processes that outlived their run."""

    not_provoked: int = 0
    """Starts that Ray failed of itself, which ended with exit code 75 as they should."""

    exit_codes: Counter[str] = field(default_factory=Counter)
    """Of the starts that were hit."""

    wrong_codes: int = 0
    """Starts that were hit and did not end with the exit code that they should."""

    seconds: float = 0.0

    def add(self, hits: Sequence[Hit], code: int) -> None:
        """Count kills of one start of the command, which ended with this exit code."""
        self.kills.update(hit.victim for hit in hits)
        self.at_work += sum(hit.is_at_work for hit in hits)
        self.titles.update(hit.title for hit in hits if hit.title)
        if hits:
            self.exit_codes[str(code)] += 1

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Cell:
        """Take up what stands in the results."""
        counters = {
            name: Counter(value) for name, value in values.items() if isinstance(value, dict)
        }
        return cls(**{**values, **counters})


@dataclass
class Arena:
    """One verb with its inputs and an undisturbed run."""

    verb: str
    folder: Path
    inputs: Path
    expected: Outcome = field(default_factory=Outcome)
    numbers: Iterator[int] = field(default_factory=itertools.count)
    start_s: float = 0.0
    """From the moment a run's folder was begun to its first result."""

    work_s: float = 0.0
    """From there to its end."""

    def start(self, root: Path) -> Forked:
        root.parent.mkdir(parents=True, exist_ok=True)
        recipe = root.with_suffix(".yaml")
        recipe.write_text(CASES[self.verb].recipe(self.inputs).replace("{root}", str(root)))
        command = [self.verb, str(recipe)]
        return Forked(command, {MARK: str(root)}, root.with_suffix(".log"))

    def fresh(self) -> Path:
        return self.folder / f"run-{next(self.numbers)}"

    def log(self, root: Path) -> str:
        return root.with_suffix(".log").read_text(errors="replace")[-5000:]


def arena(verb: str, folder: Path, inputs: Path) -> Arena:
    """Run a verb once, undisturbed."""
    place = Arena(verb, folder / verb, inputs)
    for _ in range(5):
        root = place.fresh()
        process = place.start(root)
        harness.wait_until(lambda at=root: has_begun(at, 0.0), process, HUNG_S)
        began = time.monotonic()
        harness.wait_until(lambda at=root: num_results(verb, at) > 0, process, HUNG_S)
        place.start_s = time.monotonic() - began
        code = process.wait(HUNG_S)
        # On a machine that is too busy, Ray's own processes give each other up.
        if code != EXIT_TRY_AGAIN:
            break
    assert code == 0, place.log(root)
    place.work_s = time.monotonic() - began - place.start_s
    place.expected = outcome_of(verb, root)
    assert place.expected.units, "nothing to compare"
    say(
        f"{verb}: undisturbed {place.start_s:.1f} and {place.work_s:.1f} s,"
        f" {place.expected.units.total()} units"
    )
    return place


def has_begun(root: Path, after: float) -> bool:
    """Whether an attempt has begun since then: it writes the recipe first."""
    return any(path.stat().st_mtime > after for path in root.glob("*/*/recipe.yaml"))


def victims_of(kind: str, driver: int) -> list[int]:
    """Processes of one kind that a driver has."""
    if kind == "driver":
        return [driver]
    below = harness.descendants(driver)
    if kind == "worker":
        return [pid for pid in below if is_busy(harness.command_of(pid))]
    return [
        pid for pid in below if harness.command_of(pid).partition(" ")[0].endswith(PROGRAMS[kind])
    ]


def is_busy(command: str) -> bool:
    """Whether a process is a Ray worker with something to do, and not one that only counts."""
    return command.startswith("ray::") and not any(name in command for name in BYSTANDERS)


def disturbed(place: Arena, cell: Cell, victims: Sequence[str], most: int) -> Path:
    """Bring one run to its end, with at most `most` kills on the way; returns its root."""
    root, rng = place.fresh(), random.Random(f"{cell.seed}-{cell.verb}-{cell.runs}")
    until = cell.kills.total() + most
    for _ in range(3 * most + 5):
        cell.starts += 1
        started = time.time()
        process = place.start(root)
        begun = harness.wait_until(lambda at=started: has_begun(root, at), process, HUNG_S)
        if not begun and process.wait(HUNG_S) == 0:
            # The driver was killed after its last file.
            return root
        assert begun, f"{cell.verb}: it did not begin:\n{place.log(root)}"
        hits = harass(place, root, process, victims, until - cell.kills.total(), rng)
        try:
            code = process.wait(HUNG_S)
        except TimeoutError:
            end_all(root)
            raise AssertionError(f"{cell.verb}: hung after {hits}:\n{place.log(root)}") from None
        allowed = EXPECTED[hits[-1].victim] if hits else ()
        if code == 0:
            # What the run cannot do without, it had done with.
            hits = [hit for hit in hits if hit.victim == "worker"]
        cell.add(hits, code)
        if code == 0:
            return root
        if not hits and code == EXIT_TRY_AGAIN:
            # On a machine that is too busy, Ray's own processes give each other up.
            cell.not_provoked += 1
            continue
        told = f"{cell.verb}: exit code {code} after {hits}:\n{place.log(root)}"
        assert hits, told
        if code not in allowed:
            cell.wrong_codes += 1
            say(told)
    raise AssertionError(f"{cell.verb}: it never ended:\n{place.log(root)}")


def harass(
    place: Arena,
    root: Path,
    process: Forked,
    victims: Sequence[str],
    most: int,
    rng: random.Random,
) -> list[Hit]:
    """Kill at random moments until this start of the command ends; returns what was hit."""
    hits: list[Hit] = []
    while len(hits) < most:
        before = num_results(place.verb, root)
        victim = rng.choice(victims)
        is_work = victim == "worker" or rng.random() < 0.5
        pause = rng.uniform(0, min(place.work_s, MAX_PAUSE_S) if is_work else place.start_s)
        if is_work and not harness.wait_until(
            lambda at=before: num_results(place.verb, root) > at, process, HUNG_S
        ):
            break
        moment = time.monotonic() + pause
        if not harness.wait_until(lambda at=moment: time.monotonic() > at, process, HUNG_S):
            break
        found = victims_of(victim, process.pid)
        if not found:
            continue
        pid = rng.choice(found)
        title = harness.command_of(pid).partition("(")[0] if victim == "worker" else ""
        is_at_work = victim == "worker" or bool(victims_of("worker", process.pid))
        if process.poll() is None and harness.kill(pid, signal.SIGKILL):
            hits.append(Hit(victim, title, is_at_work))
            # A worker's death does not always end a command.
            if victim != "worker":
                break
    return hits


def processes_of(root: Path) -> list[int]:
    """Every process that a run started, known by its environment."""
    wanted, found = f"{MARK}={root}".encode(), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                names = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if wanted in names:
                found.append(int(entry.name))
    return found


def end_all(root: Path) -> int:
    """Wait until the processes of a run are gone; end and count those that stay."""
    deadline = time.monotonic() + GONE_WITHIN_S
    while (left := processes_of(root)) and time.monotonic() < deadline:
        time.sleep(0.2)
    for pid in left:
        say(f"left behind: {harness.command_of(pid)}")
        harness.kill(pid, signal.SIGKILL)
    return len(left)


def judge(cell: Cell, place: Arena, root: Path) -> None:
    """Compare a finished run with the undisturbed one, and add up what differs."""
    found, expected = outcome_of(cell.verb, root), place.expected
    cell.runs += 1
    cell.units += expected.units.total()
    cell.lost += (expected.units - found.units).total()
    cell.doubled += (found.units - expected.units).total()
    paths = found.files.keys() | expected.files.keys()
    differing = sorted(p for p in paths if found.files.get(p) != expected.files.get(p))
    cell.differing += len(differing)
    cell.left_behind += end_all(root)
    if differing or found.units != expected.units:
        say(f"{cell.verb}: {root} differs: {differing[:10]}")
    else:
        shutil.rmtree(root)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(arguments: list[str]) -> int:
    options = {"seed": "1", "number": "64", "verbs": ",".join(CASES), "keep": "false"}
    options |= {"victims": ",".join(VICTIMS)} | dict(a.split("=", 1) for a in arguments)
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
        os.environ.pop(name, None)
    folder = harness.new_folder("consomme-verbs-")
    make_inputs(folder / "inputs")
    preload()
    cells: dict[str, Cell] = {}
    if options["keep"] == "true" and RESULTS.exists():
        before = json.loads(RESULTS.read_text())["cells"]
        cells = {name: Cell.of(values) for name, values in before.items()}
    seed, number = int(options["seed"]), int(options["number"])
    for verb in options["verbs"].split(","):
        cell = cells.setdefault(f"{verb}, seed {seed}", Cell(verb, seed))
        if cell.kills.total() >= number:
            continue
        place = arena(verb, folder, folder / "inputs")
        while cell.kills.total() < number:
            most = min(KILLS_A_RUN, number - cell.kills.total())
            began = time.monotonic()
            judge(cell, place, disturbed(place, cell, options["victims"].split(","), most))
            cell.seconds += round(time.monotonic() - began)
            write_results(cells)
            say(
                f"  {verb}: {cell.kills.total()} kills {dict(cell.kills)}, {cell.at_work} at work,"
                f" {cell.runs} runs, {cell.seconds:.0f} s; lost {cell.lost}, doubled"
                f" {cell.doubled}, differing {cell.differing}, left behind {cell.left_behind},"
                f" wrong exit codes {cell.wrong_codes}"
            )
    shutil.rmtree(folder, ignore_errors=True)
    return any(getattr(cell, bad) for cell in cells.values() for bad in BAD)


BAD = ("lost", "doubled", "differing", "left_behind", "wrong_codes")


def write_results(cells: Mapping[str, Cell]) -> None:
    """Write the figures, and every cell beside them."""

    def total(what: str) -> int:
        return int(sum(getattr(cell, what) for cell in cells.values()))

    victims: Counter[str] = Counter()
    verbs: Counter[str] = Counter()
    for cell in cells.values():
        victims += cell.kills
        verbs[cell.verb] += cell.kills.total()
    counts = ", ".join(f"{name} {number}" for name, number in (*verbs.items(), *victims.items()))
    seeds = ", ".join(map(str, sorted({cell.seed for cell in cells.values()})))
    how = f"SIGKILLs that hit, {total('at_work')} of them at work; {counts}; seeds {seeds}"
    units = f"of {total('units'):,} samples, steps, answers and candidates in {total('runs')} runs"
    rows = [
        ("verb_chaos.kills", victims.total(), "kills", how),
        ("verb_chaos.lost", total("lost"), "units", units),
        ("verb_chaos.doubled", total("doubled"), "units", units),
        ("verb_chaos.differing_bytes", total("differing"), "files", f"in {total('runs')} runs"),
        ("verb_chaos.left_behind", total("left_behind"), "processes", f"{GONE_WITHIN_S} s later"),
        ("verb_chaos.wrong_exit_codes", total("wrong_codes"), "starts", "of a command"),
    ]
    harness.write_results(RESULTS, rows, cells={name: vars(one) for name, one in cells.items()})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
