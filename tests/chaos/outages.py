"""Take the storage away from a running command, and give it back.

    python -m tests.chaos.outages [VERBS] [SECONDS]      such as score,train 5,60

The server is killed with SIGKILL at a moment in the middle of the work, and started again on the
same disk. The run must end well by itself, with the bytes of an undisturbed one. Writes
`tests/benchmarks/results/outages.json`; what stands there about other verbs and times stays.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import yaml
from tests.chaos import harness
from tests.support.s3_server import BUCKET, MortalServer, seaweedfs

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "outages.json"
NANO = "package://models/nano"

MOMENTS = {
    "score": "/commits/000001/",
    "filter": "/commits/000001/",
    "recaption": "/commits/000001/",
    "train": "/checkpoints/checkpoint_",
}
"""The storage goes away once such a file is there."""

VARYING = (
    "manifest.json",
    "recipe.yaml",
    "progress.json",
    "metrics.jsonl",
    "gauges",
    "curve.json",
    "plan.json",
    "report.html",
    "attempts/",
    "checkpoints/",
)
"""Files that hold times, places or process ids."""


def recipe_of(verb: str, data: str, scores: str) -> dict[str, object]:
    """A recipe with enough work that there is a middle."""
    shared = {"name": "o", "model": NANO, "max_reject_fraction": 0.1}
    return {
        "score": {**shared, "inputs": [data], "unit_rows": 8, "num_actors": 1},
        "filter": {
            "name": "o",
            "scores": scores,
            "keep": {"name": "highest_fraction", "column": "image_gain", "fraction": 0.6},
            "materialize": True,
            "num_actors": 1,
        },
        "recaption": {
            **shared,
            "inputs": [data],
            "unit_rows": 8,
            "max_tokens": 24,
            "num_actors": 1,
            "engine": {"name": "transformers"},
        },
        "train": {
            **shared,
            "data": [{"inputs": [data]}],
            "num_steps": 24,
            "global_batch": 8,
            "checkpoint_every": 4,
            "layers": {"name": "sparse_uniform"},
        },
    }[verb]


def start(verb: str, recipe: Mapping[str, object], folder: Path, env: Mapping[str, str]):
    """Start a command; its log is in the folder."""
    path = folder / f"{verb}-{time.monotonic_ns()}.yaml"
    path.write_text(yaml.safe_dump(dict(recipe)))
    log = path.with_suffix(".log")
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "consomme.cli", verb, str(path)],
            env={**os.environ, **env, "PYTHONUNBUFFERED": "1"},
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    return process, log


def finish(process: "subprocess.Popen[bytes]", log: Path, most_s: float) -> str:
    """Wait for the end of a command; returns its log."""
    try:
        code = process.wait(most_s)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"still running after {most_s} s:\n{tail(log)}") from None
    assert code == 0, f"exit code {code}:\n{tail(log)}"
    return log.read_text(errors="replace")


def tail(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:]


def keys(server: MortalServer, prefix: str) -> list[str]:
    pages = server.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    return [item["Key"] for page in pages for item in page.get("Contents", ())]


def content(server: MortalServer, prefix: str) -> dict[str, bytes]:
    """The files of the one run below a prefix that must not depend on what happened to it."""
    client, found = server.client(), {}
    for key in keys(server, f"{prefix}/"):
        inside = key.removeprefix(f"{prefix}/").split("/", 2)[-1]
        if not inside.startswith(VARYING):
            body = client.get_object(Bucket=BUCKET, Key=key)["Body"]
            found[inside] = body.read()
    return found


def disturb(
    server: MortalServer,
    verb: str,
    recipe: Mapping[str, object],
    folder: Path,
    root: str,
    away_s: float,
    cluster: Mapping[str, str] | None = None,
) -> str:
    """Run a recipe below a root, and take its storage away for a while; returns the log."""
    recipe = {**recipe, "root": f"s3://{BUCKET}/{root}"}
    process, log = start(verb, recipe, folder, {**server.env(), **(cluster or {})})
    deadline = time.monotonic() + 240
    while not any(MOMENTS[verb] in key for key in keys(server, f"{root}/")):
        assert process.poll() is None, f"it ended before the outage:\n{tail(log)}"
        assert time.monotonic() < deadline, f"the moment never came:\n{tail(log)}"
        time.sleep(0.02)
    server.kill()
    time.sleep(away_s)
    assert process.poll() is None, f"it ended in the outage:\n{tail(log)}"
    server.start()
    return finish(process, log, 240)


def make_inputs(server: MortalServer, folder: Path) -> tuple[str, str]:
    """Write shards and their scores into the storage; returns the URLs of both."""
    root = f"s3://{BUCKET}/inputs"
    prepare = {
        "name": "p",
        "root": root,
        "source": {"name": "scenes", "num": 96, "style": "outline"},
        "rows_per_shard": 24,
    }
    finish(*start("prepare", prepare, folder, server.env()), 120)
    (data,) = {
        f"s3://{BUCKET}/{key.rpartition('/')[0]}"
        for key in keys(server, "inputs/prepare/")
        if "/data/" in key
    }
    recipe = {**recipe_of("score", data, ""), "name": "s", "root": root}
    finish(*start("score", recipe, folder, server.env()), 240)
    (manifest,) = [key for key in keys(server, "inputs/score/") if key.endswith("manifest.json")]
    return data, f"s3://{BUCKET}/{manifest.removesuffix('/manifest.json')}"


def check(server: MortalServer, verb: str, folder: Path, inputs: tuple[str, str], away_s: float):
    """Compare a disturbed run with an undisturbed one; returns how long the outage was noticed."""
    recipe = recipe_of(verb, *inputs)
    calm = f"calm-{verb}"
    if not keys(server, f"{calm}/"):
        undisturbed = {**recipe, "root": f"s3://{BUCKET}/{calm}"}
        finish(*start(verb, undisturbed, folder, server.env()), 240)
    root = f"away-{away_s:g}-{verb}"
    log = disturb(server, verb, recipe, folder, root, away_s)
    expected, found = content(server, calm), content(server, root)
    assert expected, "nothing to compare"
    assert found.keys() == expected.keys()
    differing = [path for path in expected if found[path] != expected[path]]
    assert not differing, differing
    return log


def main(verbs: str = ",".join(MOMENTS), seconds: str = "5,60,300") -> None:
    """Try every verb with every length of an outage, and write what was seen."""
    cells = json.loads(RESULTS.read_text())["cells"] if RESULTS.exists() else {}
    with seaweedfs() as running, tempfile.TemporaryDirectory(prefix="consomme-outage-") as name:
        made = make_inputs(running, Path(name))
        for away_s in map(float, seconds.split(",")):
            for verb in verbs.split(","):
                begun = time.monotonic()
                said = check(running, verb, Path(name), made, away_s)
                cells[f"{verb}, {away_s:g} s"] = {
                    "lines": [line[9:] for line in said.splitlines() if "storage s3" in line],
                    "seconds": round(time.monotonic() - begun),
                }
                write(cells)
                sys.stdout.write(f"{verb}, {away_s:g} s: {cells[f'{verb}, {away_s:g} s']}\n")
                sys.stdout.flush()


def write(cells: Mapping[str, object]) -> None:
    """Write the outages that runs have outlasted; one that does not ends this process."""
    tried = ", ".join(sorted(cells))
    rows = [
        ("outages.survived", len(cells), "outages", f"SeaweedFS killed in the middle: {tried}"),
        ("outages.differing_bytes", 0, "files", "exit code 0, and the bytes of undisturbed runs"),
    ]
    harness.write_results(RESULTS, rows, cells=cells)


if __name__ == "__main__":
    main(*sys.argv[1:])
