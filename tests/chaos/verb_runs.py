"""Small runs of verbs that consist of many units, and what comes out of them.

Used by `tests.chaos.verbs`, which kills what does them.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tests.chaos import harness

from consomme.ops.verify import verify
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.model_folder import model_folder
from consomme.storage.sidecar import read_columns

NANO = "package://models/nano"
NUM_STEPS = 40
NUM_VARIANTS = 5
VARYING = (
    "manifest.json", "recipe.yaml", "progress.json", "gauges.json", "metrics.jsonl", "report.html",
)  # fmt: skip
"""Files of a run that hold times and places, or name both."""

STEP_KEYS = ("step", "loss", "grad_norm", "num_tokens", "num_positions", "lr")
"""What does not depend on time in a step of a training."""


@dataclass
class Outcome:
    """What a finished run made."""

    units: Counter[str] = field(default_factory=Counter)
    """How often each thing came out that has to come out once."""

    files: dict[str, bytes] = field(default_factory=dict)
    """Content by path; what times and places have no part in."""


@dataclass(frozen=True)
class Case:
    """How one verb is run and compared."""

    lines: Callable[[Path], dict[str, object]]
    """Of its recipe, for a folder of inputs."""

    units: Callable[[Path, Path], Iterator[str]]
    """Names of what a run made, of its root and its folder."""

    def recipe(self, inputs: Path) -> str:
        lines = {"name": "k", "root": "{root}", **self.lines(inputs)}
        return "".join(f"{key}: {value}\n" for key, value in lines.items())


def make_inputs(folder: Path) -> None:
    """Write shards, and models that differ a little from each other."""
    harness.write_shards(str(folder / "shards"), 16)
    nano = Path(model_folder(NANO))
    for number in range(NUM_VARIANTS):
        made = folder / f"model-{number}"
        shutil.copytree(nano, made)
        weights = load_file(made / "model.safetensors")
        generator = torch.Generator().manual_seed(number)
        for name, tensor in weights.items():
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
            weights[name] = (tensor + 0.01 * tensor.float().std(correction=0) * noise).to(
                tensor.dtype
            )
        save_file(weights, made / "model.safetensors", {"format": "pt"})


def outcome_of(verb: str, root: Path) -> Outcome:
    """Read what a finished run made; everything in it has to be as its manifest says."""
    (manifest_path,) = root.glob("*/*/manifest.json")
    run = manifest_path.parent
    problems = verify(str(run)).problems
    assert not problems, problems
    manifest = json.loads(manifest_path.read_text())
    files = {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not is_varying(path.relative_to(run) if run in path.parents else path)
    }
    if verb == "train":
        files |= {"curve.json": json.dumps(list(steps(root))).encode()}
    else:
        kept = {key: value for key, value in manifest["metrics"].items()}
        files |= {"decisions": json.dumps([manifest["decisions"], kept], sort_keys=True).encode()}
    return Outcome(Counter(CASES[verb].units(root, run)), files)


RESULTS = {
    "score": "score/*/commits/*/*.json",
    "recaption": "recaption/*/commits/*/*.json",
    "soup": "cache/answers/*/*.json",
    "evaluate": "evaluate/*/commits/*/*.json",
}
"""Files by which a run that is not finished shows how far it is."""


def num_results(verb: str, root: Path) -> int:
    """How much of its work a run has done."""
    return len(harness.curve(root)) if verb == "train" else len(list(root.glob(RESULTS[verb])))


def is_varying(path: Path) -> bool:
    """Whether a file of a run holds times, places or process ids."""
    first = path.parts[0]
    return str(path) in (*VARYING, "curve.json", "plan.json") or first in (
        "attempts",
        "checkpoints",
        "gauges",
        "inflight",
    )


def steps(root: Path) -> Iterator[list[float]]:
    for step in harness.curve(root):
        yield [step[key] for key in STEP_KEYS]


def samples(kind: str) -> Callable[[Path, Path], Iterator[str]]:
    """Ids of samples that came out as a row or as a reject."""

    def found(root: Path, run: Path) -> Iterator[str]:
        yield from read_columns(str(run), [], kind=kind)["sample_id"].to_pylist()
        yield from (reject.sample_id for reject in RunFolder.at(str(run)).rejects())

    return found


def trained(root: Path, run: Path) -> Iterator[str]:
    yield from (f"step {step[0]}" for step in steps(root))


def cached(folder: str) -> Callable[[Path, Path], Iterator[str]]:
    """Results that a run has stored below its root, one file each."""

    def found(root: Path, run: Path) -> Iterator[str]:
        yield from (path.name for path in (root / "cache" / folder).rglob("*.json"))

    return found


def variants(inputs: Path) -> dict[str, str]:
    return {f"m{number}": str(inputs / f"model-{number}") for number in range(NUM_VARIANTS)}


def flow(value: Any) -> str:
    """As YAML on one line, whose braces survive `str.replace`."""
    return json.dumps(value)


def inputs_of(folder: Path) -> str:
    return flow([f"{folder}/shards/tar", f"{folder}/shards/parquet"])


CASES = {
    "score": Case(
        lambda folder: {
            "inputs": inputs_of(folder),
            "model": NANO,
            "unit_rows": 4,
            "num_actors": 1,
            "max_reject_fraction": 0.5,
        },
        samples("scores"),
    ),
    "recaption": Case(
        lambda folder: {
            "inputs": inputs_of(folder),
            "model": NANO,
            "unit_rows": 8,
            "max_tokens": 24,
            "num_actors": 1,
            "max_reject_fraction": 0.5,
            "engine": flow({"name": "transformers"}),
        },
        samples("captions"),
    ),
    "train": Case(
        lambda folder: {
            "data": flow([{"inputs": [f"{folder}/shards/tar"]}]),
            "model": NANO,
            "num_steps": NUM_STEPS,
            "global_batch": 8,
            "micro_batch": 8,
            "checkpoint_every": 4,
            "layers": flow({"name": "sparse_uniform"}),
            "max_reject_fraction": 0.5,
        },
        trained,
    ),
    "soup": Case(
        lambda folder: {
            "ingredients": flow(variants(folder)),
            "num_actors": 1,
            "benchmark": flow({"name": "scene_questions", "num": 12}),
            "searches": flow([{"name": "uniform"}, {"name": "maximum"}, {"name": "greedy"}]),
        },
        cached("answers"),
    ),
    "evaluate": Case(
        lambda folder: {
            "num_actors": 1,
            "models": flow(variants(folder)),
            "benchmarks": flow([{"name": "scene_questions", "num": 12}]),
            "unit_items": 8,
        },
        cached("answers"),
    ),
}
