"""Kill a training worker, its batch server or the driver at random steps, or press Ctrl-C.

    python -m tests.chaos.training [number=3] [seed=1] [ranks=1] \
        [kinds=worker,feed,driver,interrupt]

A disturbed run is compared with an undisturbed one: loss, gradient norm and tokens of every step,
and the model, byte by byte. With `ranks=2` the model is sharded by fsdp2. Writes
`tests/benchmarks/results/train_chaos.json`. About a minute per kill on two cores, most of it Ray
starting up again.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from tests.chaos import harness

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "train_chaos.json"
NUM_STEPS = 80
TITLES = {"worker": "ray::RayTrainWorker", "feed": "ray::BatchServer"}


def titled(pid: int, title: str) -> list[int]:
    """Return the descendants of a process that have this title."""
    return [child for child in harness.descendants(pid) if harness.command_of(child) == title]


def outcome(root: Path) -> tuple[list[tuple[float, ...]], dict[str, bytes]]:
    """Return the metrics of every step, and the files of the model."""
    keys = ("step", "loss", "grad_norm", "num_tokens", "num_positions", "lr")
    (run,) = [path.parent for path in root.glob("train/*/manifest.json")]
    model = {p.name: p.read_bytes() for p in sorted((run / "model").iterdir())}
    return [tuple(step[key] for key in keys) for step in harness.curve(root)], model


def hit(process: subprocess.Popen[bytes], kind: str, rng: random.Random) -> bool:
    """Send the signal; False if there is no such process."""
    if kind == "driver":
        # A private Ray ends with the driver, and its workers with it.
        return harness.kill(process.pid, signal.SIGKILL)
    if kind == "interrupt":
        return harness.kill(process.pid, signal.SIGINT)
    targets = titled(process.pid, TITLES[kind])
    return bool(targets) and harness.kill(rng.choice(targets), signal.SIGKILL)


def disturbed(runs: harness.Runs, kind: str, number: int, rng: random.Random) -> tuple[int, Path]:
    """Disturb one run at most `number` times; returns how often it was, and its root."""
    root, done, min_steps = runs.fresh(), 0, 0
    process = runs.start(root)
    moment = rng.randrange(5, NUM_STEPS // 2)
    began = time.monotonic()
    while process.poll() is None or process.returncode != 0:
        if process.poll() is not None:
            harness.end_group(process)
            process = runs.start(root)
        assert time.monotonic() - began < 1500, f"{kind}: the run hung; see {root}.log"
        time.sleep(0.1)
        steps = len(harness.curve(root))
        if done < number and steps >= max(moment, min_steps) and steps < NUM_STEPS:
            # The curve is written about every two seconds, so this makes the step random.
            time.sleep(rng.uniform(0, 2))
            if process.poll() is None and hit(process, kind, rng):
                done += 1
                # Ray Train retries twice by itself; the next kill waits for progress.
                min_steps = steps + 1
                moment = rng.randrange(min(steps + 1, NUM_STEPS - 2), NUM_STEPS - 1)
    harness.end_group(process)
    return done, root


def main(arguments: list[str]) -> int:
    options = {"number": "3", "kinds": "worker,feed,driver,interrupt", "seed": "1", "ranks": "1"}
    options |= dict(argument.split("=", 1) for argument in arguments)
    folder = harness.new_folder("consomme-training-")
    harness.write_shards(str(folder / "shards"), 16)
    num_ranks = int(options["ranks"])
    recipe = harness.train_recipe(
        f"{folder}/shards",
        num_steps=NUM_STEPS,
        micro_batch=8,
        checkpoint_every=10,
        num_workers=num_ranks,
        cpus_per_worker=1 / num_ranks,
        parallelism="{name: ddp}" if num_ranks == 1 else "{name: fsdp2}",
        max_upscale=1.2,
        neftune_alpha=5,
    )
    runs = harness.Runs("train", recipe, folder)
    calm = runs.fresh()
    assert runs.start(calm).wait(900) == 0, calm
    expected = outcome(calm)
    assert len(expected[0]) == NUM_STEPS
    kills: Counter[str] = Counter()
    steps = files = num_runs = 0
    for kind in options["kinds"].split(","):
        rng = random.Random(f"{options['seed']}-{kind}")
        while kills[kind] < int(options["number"]):
            done, root = disturbed(runs, kind, min(2, int(options["number"]) - kills[kind]), rng)
            kills[kind] += done
            num_runs += 1
            found = outcome(root)
            steps += sum(a != b for a, b in zip(found[0], expected[0], strict=True))
            files += sum(
                found[1].get(p) != expected[1].get(p) for p in found[1].keys() | expected[1].keys()
            )
            sys.stdout.write(
                f"{kind}: {kills[kind]} in {num_runs} runs; {steps} steps, {files} files differ\n"
            )
            sys.stdout.flush()
    ranks = f"{num_ranks} rank{'s' * (num_ranks > 1)}"
    rows = [
        (f"train_chaos.kills_{ranks[0]}", sum(kills.values()), "kills", json.dumps(dict(kills))),
        (f"train_chaos.differing_steps_{ranks[0]}", steps, "steps", f"{num_runs} runs, {ranks}"),
        (f"train_chaos.differing_files_{ranks[0]}", files, "files", f"{num_runs} runs, {ranks}"),
    ]
    harness.write_results(RESULTS, rows)
    return int(steps + files > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
