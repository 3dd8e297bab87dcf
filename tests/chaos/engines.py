"""Kill or stop what writes texts, in the middle of a run: the engine, its actor, the driver.

    python -m tests.chaos.engines [number=3] [kinds=engine,hang,actor,driver] [seed=1]
                                  [verbs=recaption,evaluate]

The engine is vLLM in a process of its own, as on a GPU. A disturbed run is compared with an
undisturbed one, file by file. Writes `tests/benchmarks/results/engine_chaos.json`. Some minutes per
kill on two cores, most of it vLLM starting up.
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

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "engine_chaos.json"
STALL_S = 15
ENGINE = "VLLM::EngineCore"
ACTOR = "ray::MapWorker"
RECIPES = {
    "recaption": """
name: captions
root: {root}
inputs: [{data}]
model: package://models/nano
unit_rows: 32
max_tokens: 48
max_reject_fraction: 0.2
engine: {{name: vllm, own_process: true, stall_s: {stall_s}, max_num_seqs: 8, kv_cache_gb: 0.25}}
""",
    "evaluate": """
name: answers
root: {root}
models: {{nano: package://models/nano}}
unit_items: 16
benchmarks:
- {{name: scene_captions, num: 640, max_tokens: 48}}
- {{name: scene_ocr, num: 32}}
engine: {{name: vllm, dtype: float32, own_process: true, stall_s: {stall_s}, max_num_seqs: 8,
  kv_cache_gb: 0.25}}
""",
}


def named(pid: int, name: str) -> list[int]:
    """Processes below one that are called so."""
    found = []
    for child in harness.descendants(pid):
        try:
            title = Path(f"/proc/{child}/comm").read_text() + harness.command_of(child)
        except OSError:
            continue
        if name in title:
            found.append(child)
    return found


def commits(root: Path) -> int:
    return len(list(root.glob("*/*/commits/*/*.json")))


def snapshot(root: Path) -> dict[str, bytes]:
    (run,) = [path.parent for path in root.glob("*/*/manifest.json")]
    return {
        str(path.relative_to(run)): path.read_bytes()
        for part in ("commits", "data", "rejects", "plan", "answers.parquet", "export")
        for path in sorted([run / part, *(run / part).rglob("*")])
        if path.is_file()
    }


def hit(process: subprocess.Popen[bytes], kind: str) -> bool:
    """Do it, if there is whom to do it to."""
    if kind == "driver":
        return harness.kill(process.pid, signal.SIGKILL)
    name, number = {
        "engine": (ENGINE, signal.SIGKILL),
        "hang": (ENGINE, signal.SIGSTOP),
        "actor": (ACTOR, signal.SIGKILL),
    }[kind]
    targets = named(process.pid, name)
    return bool(targets) and harness.kill(targets[0], number)


def disturbed(runs: harness.Runs, kind: str, number: int, rng: random.Random) -> tuple[int, Path]:
    """One run, disturbed at most `number` times; returns how often, and where it is."""
    root, done = runs.fresh(), 0
    process = runs.start(root)
    seen = -1
    began = time.monotonic()
    while process.poll() is None or process.returncode != 0:
        if process.poll() is not None:
            process = runs.start(root)
        assert time.monotonic() - began < 900, f"{kind}: the run hung; see {root}.log"
        time.sleep(0.2)
        # Once per span in which units are finished, so that the run gets on between two blows.
        if commits(root) > seen and commits(root) and done < number:
            time.sleep(rng.uniform(0, 1.5))
            if process.poll() is None and hit(process, kind):
                done += 1
                seen = commits(root) + 1
    return done, root


def measure(
    verb: str, kinds: list[str], number: int, seed: str, folder: Path
) -> tuple[Counter[str], int, int]:
    """Disturb runs of a verb; returns blows by kind, files that differ, and runs."""
    if verb == "recaption":
        harness.write_shards(str(folder / "shards"), 16)
    data = folder / "shards" / "tar"
    recipe = RECIPES[verb].format(root="{root}", data=data, stall_s=STALL_S)
    runs = harness.Runs(verb, recipe, folder)
    calm = runs.fresh()
    assert runs.start(calm).wait(900) == 0, calm
    expected = snapshot(calm)
    kills: Counter[str] = Counter()
    differing = num_runs = 0
    for kind in kinds:
        rng = random.Random(f"{seed}-{kind}")
        while kills[kind] < number:
            done, root = disturbed(runs, kind, number - kills[kind], rng)
            kills[kind] += done
            num_runs += 1
            found = snapshot(root)
            differing += sum(
                found.get(p) != expected.get(p) for p in found.keys() | expected.keys()
            )
            sys.stdout.write(
                f"{verb}, {kind}: {kills[kind]} in {num_runs} runs, {differing} files differ\n"
            )
            sys.stdout.flush()
    return kills, differing, num_runs


def main(arguments: list[str]) -> int:
    options = {"number": "3", "kinds": "engine,hang,actor,driver", "seed": "1"}
    options |= {"verbs": ",".join(RECIPES)}
    options |= dict(argument.split("=", 1) for argument in arguments)
    kills: Counter[str] = Counter()
    differing = num_runs = 0
    for verb in options["verbs"].split(","):
        folder = harness.new_folder(f"consomme-engines-{verb}-")
        found = measure(
            verb, options["kinds"].split(","), int(options["number"]), options["seed"], folder
        )
        kills += found[0]
        differing += found[1]
        num_runs += found[2]
    rows = [
        ("engine_chaos.kills", sum(kills.values()), "kills", json.dumps(dict(kills))),
        ("engine_chaos.differing_bytes", differing, "files", f"{num_runs} runs"),
    ]
    harness.write_results(RESULTS, rows)
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
