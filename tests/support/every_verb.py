"""One small run of every verb, and damage of every kind to their files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consomme.base.recipe import check_recipe
from consomme.pipelines.verbs import VERBS, recipe_class, resolve

if TYPE_CHECKING:
    from consomme.base.manifest import Manifest

NANO = "package://models/nano"
SCENES = {"name": "scenes", "num": 24, "style": "outline"}
SOME_REJECTS = {"max_reject_fraction": 0.2}
ANSWERS = {"name": "scene_captions", "num": 2}
TRAIN = {
    "model": NANO,
    "num_steps": 4,
    "global_batch": 4,
    "checkpoint_every": 2,
    "export_dtype": "float32",
}
BUILT: dict[str, Any] = {
    "vision_encoder": NANO,
    "language_shape": {"width": 32, "layers": 2, "heads": 2, "ffn": 48},
    "tokenizer": NANO,
}
TIMES = ("curve.json", "gauges.json", "metrics.jsonl", "plan.json", "progress.json")
"""Files with times, which differ in every run."""


def run_verb(verb: str, **values: Any) -> Manifest:
    """Run a recipe, or find its finished run."""
    manifest: Manifest = resolve(VERBS[verb].run)(check_recipe(recipe_class(verb), values))
    return manifest


def run_every_verb(root: str) -> dict[str, Manifest]:
    """Run every verb once, or find the finished runs; by the names of the runs."""
    made: dict[str, Manifest] = {}

    def do(verb: str, name: str, **values: Any) -> str:
        made[name] = run_verb(verb, name=name, root=root, **values)
        return made[name].url

    noisy = {"noise_fraction": 0.5, "bad_images": 1, "rows_per_shard": 12}
    data = [do("prepare", "pairs", source=SCENES, **noisy) + "/data"]
    units = {"inputs": data, "unit_rows": 6, **SOME_REJECTS}
    scores = do("score", "scores", model=NANO, labels=["noise"], **units)
    tags = do("tag", "tags", taggers=[{"name": "text"}], **units)
    half = {"name": "highest_fraction", "column": "image_gain", "fraction": 0.5}
    joined = {"columns_from": {"tags": tags}, "materialize": True}
    view = do("filter", "half", scores=scores, keep=half, **joined)
    do("dedup", "copies", scores=scores, best_by="image_gain", **units)
    one = do("train", "one", data=[{"view": view}], **TRAIN)
    held_out = {"evaluation": {"data": [{"inputs": data}], "max_samples": 4}}
    all_data = {"data": [{"inputs": data}], "lr": 0.001, **held_out, **SOME_REJECTS}
    two = do("train", "two", **TRAIN, **all_data)
    writer = {"engine": {"name": "transformers"}, "max_tokens": 8}
    do("recaption", "written", view=view, model=one, **writer, **SOME_REJECTS)
    asked = {"name": "scene_questions", "style": "outline", "num": 2}
    soup = do("soup", "mixed", ingredients={"one": one, "two": two}, benchmark=asked)
    models = {"one": one, "mixed": f"{soup}/greedy"}
    do("evaluate", "answers", models=models, benchmarks=[ANSWERS])
    rates = {"lr": {"name": "choice", "values": [0.0005, 0.001]}}
    trial = {"name": "trial", "data": [{"view": view}], **TRAIN}
    sweep = do("sweep", "rates", train=trial, space=rates, benchmarks=[ANSWERS])
    do("soup", "of-all-rates", ingredients=sweep)
    do("assemble", "built", **BUILT)
    shorter = {"n_layers": [0, 1], "data": [{"inputs": data}], "num_samples": 4}
    do("prune", "shorter", model=one, **shorter)
    few = {"source": {**SCENES, "num": 12}}
    some = {"scores": "@loop-scores", "keep": {"name": "random_fraction", "fraction": 0.5}}
    two_models = {"a": "@loop-model", "b": "@loop-later"}
    learned = {**TRAIN, "data": [{"view": "@loop-view"}]}
    fewer = {"n_layers": 1, "data": [{"inputs": ["@loop-pairs/data"]}], "num_samples": 4}
    stages = [
        ("loop-pairs", "prepare", few),
        ("loop-scores", "score", {"inputs": ["@loop-pairs/data"], "model": NANO, "unit_rows": 6}),
        ("loop-view", "filter", some),
        ("loop-model", "train", learned),
        ("loop-later", "train", {**learned, "model": "@loop-model"}),
        ("loop-texts", "recaption", {"view": "@loop-view", "model": "@loop-model", **writer}),
        ("loop-copies", "dedup", {"view": "@loop-view"}),
        ("loop-mixed", "soup", {"ingredients": two_models, "benchmark": asked}),
        ("loop-shorter", "prune", {"model": "@loop-mixed", **fewer}),
        ("loop-built", "assemble", BUILT),
        ("loop-answers", "evaluate", {"models": {"a": "@loop-mixed"}, "benchmarks": [ANSWERS]}),
    ]
    nodes = [{"name": name, "verb": verb, "recipe": recipe} for name, verb, recipe in stages]
    do("loop", "loop", stages=nodes)
    return made


def flip_a_bit(data: bytes) -> bytes:
    """Change one bit in the middle; an empty file gets a byte."""
    if not data:
        return b"?"
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGES: Mapping[str, Callable[[bytes], bytes | None]] = {
    "flipped": flip_a_bit,
    "cut": lambda data: data[: len(data) // 2],
    "removed": lambda data: None,
}
"""What becomes of the bytes of a file; None removes it."""


def files_of(run: Path) -> dict[str, Path]:
    """Files of a run folder by path in it."""
    return {str(p.relative_to(run)): p for p in sorted(run.rglob("*")) if p.is_file()}


def content_of(run: Path) -> dict[str, bytes]:
    """Bytes of what a run computed, without what says when and where it did."""
    return {
        path: file.read_bytes()
        for path, file in files_of(run).items()
        if path not in (*TIMES, "manifest.json")
        and not path.startswith(("attempts/", "checkpoints/"))
    }


@contextlib.contextmanager
def damaged(file: Path, damage: Callable[[bytes], bytes | None]) -> Iterator[None]:
    """Damage a file while the block runs; then put it back as it was."""
    data, status = file.read_bytes(), file.stat()
    changed = damage(data)
    if changed is None:
        file.unlink()
    else:
        file.write_bytes(changed)
    yield
    file.write_bytes(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
