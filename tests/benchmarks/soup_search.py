"""Candidates of a soup per minute: mixed in place by actors, against write, load, evaluate.

The usual way is a process that writes the mixed folder, loads it and evaluates it: here with our
own mixing, engine and questions, without Ray, one on each core at a time. Beside it,
processes that stay and open each written folder. Ours is the whole command with Ray's start.
Ingredients are the nano model with noise; all candidates are different.

    python -m tests.benchmarks.run soup_search
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, repeat
from pathlib import Path
from typing import Any

NUM_INGREDIENTS = 6
NUM_CANDIDATES = 48
NUM_NAIVE = 6
ENGINES: dict[str, dict[str, Any]] = {
    "transformers": {"name": "transformers", "dtype": "float32"},
    "vllm": {"name": "vllm", "dtype": "float32", "kv_cache_gb": 0.25, "max_model_len": 1024},
}
SCENES = {"100": 12, "400": 48}
"""Questions, about, of so many scenes."""


def make_ingredients(folder: Path) -> dict[str, str]:
    """Write copies of the nano model with noise on all weights."""
    import torch
    from safetensors.torch import load_file, save_file

    from consomme.storage.model_folder import model_folder

    nano = Path(model_folder("package://models/nano"))
    found = {}
    for k in range(NUM_INGREDIENTS):
        model = folder / f"m{k}"
        model.mkdir(parents=True)
        for path in nano.iterdir():
            (model / path.name).write_bytes(path.read_bytes())
        tensors = load_file(model / "model.safetensors")
        generator = torch.Generator().manual_seed(k)
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator) * tensor.float().std()
                # From a little to so much that a model is of no use.
                tensors[name] = (tensor.float() + 0.04 * (1 + k) * noise).to(tensor.dtype)
        save_file(tensors, model / "model.safetensors", {"format": "pt"})
        found[f"m{k}"] = str(model)
    return found


def benchmark(num_scenes: int) -> dict[str, Any]:
    """Return the node of the questions."""
    return {"name": "scene_questions", "num": num_scenes, "first_seed": 700_000}


def naive(models: Sequence[str], num_scenes: int, folder: Path, engine: str) -> float:
    """Write an average, load it, and return its score."""
    import torch

    from consomme.evaluate.benchmarks import BENCHMARKS
    from consomme.pipelines.evaluate.in_memory import InMemoryAnswerer
    from consomme.soup.ingredients import open_ingredient
    from consomme.soup.mixing import ModelMix
    from consomme.soup.writing import write_soup
    from consomme.storage.ledger.run_folder import RunFolder

    torch.set_num_threads(1)
    write_soup(folder / "soup", ModelMix.of([open_ingredient(one) for one in models]))
    answerer = InMemoryAnswerer(
        str(folder / "soup"), model_hash="soup", template={}, run=RunFolder.at(str(folder)),
        engine=ENGINES[engine],
    )  # fmt: skip
    built = BENCHMARKS.build(benchmark(num_scenes))
    return next(iter(built.measure(answerer.answer(built).texts).values()))


def ours(
    models: dict[str, str], num_scenes: int, root: Path, **options: Any
) -> tuple[float, dict[str, Any]]:
    """Run the command; returns its seconds and its manifest."""
    recipe = {
        "name": "search", "root": str(root), "ingredients": models,
        "benchmark": benchmark(num_scenes),
        "searches": [{"name": "random", "num": NUM_CANDIDATES}], **options,
    }  # fmt: skip
    path = root / "recipe.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(recipe))
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "consomme.cli", "soup", str(path)], check=True)
    seconds = time.monotonic() - began
    (manifest,) = root.glob("soup/*/manifest.json")
    return seconds, json.loads(manifest.read_text())


def rows() -> Iterator[dict[str, Any]]:
    """Measure each way, in turn, on the same machine."""
    num_cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as scratch:
        models = make_ingredients(Path(scratch, "models"))
        folders = list(models.values())
        picked = list(combinations(folders, 3))[:NUM_NAIVE]
        for questions, num_scenes in SCENES.items():
            began = time.monotonic()
            with ThreadPoolExecutor(num_cores) as pool:
                list(pool.map(_process, picked, repeat(num_scenes)))
            each = (time.monotonic() - began) / len(picked)
            began = time.monotonic()
            _process(picked, num_scenes)
            reloaded = (time.monotonic() - began) / len(picked) / num_cores
            seconds, _ = ours(models, num_scenes, Path(scratch, questions))
            if questions == "100":
                yield _in_vllm(models, picked, num_scenes, Path(scratch, "vllm"))
            stop = {"early_stop": {"level": 0.01, "first_questions": 16}}
            stopping, manifest = ours(models, num_scenes, Path(scratch, f"s{questions}"), **stop)
            rate = NUM_CANDIDATES / seconds * 60
            how = (
                f"{NUM_CANDIDATES} candidates, {NUM_INGREDIENTS} nano models, {num_scenes} scenes,"
                f" {num_cores} actors, Ray's start included: {rate:.1f} a minute"
            )
            process = f"a process for each, {num_cores} at a time: {60 / each:.1f} a minute"
            kept = f"a process that stays, on each core: {60 / reloaded:.1f} a minute"
            saved = manifest["decisions"]["early_stop"]
            per_candidate = seconds / NUM_CANDIDATES
            yield _row(
                f"candidates_vs_naive.q{questions}", each / per_candidate, "times", process, how
            )
            yield _row(
                f"candidates_vs_reload.q{questions}", reloaded / per_candidate, "times", kept, how
            )
            stopped_rate = NUM_CANDIDATES / stopping * 60
            yield _row(
                f"candidates_vs_naive_with_early_stop.q{questions}",
                each / (stopping / NUM_CANDIDATES), "times", process,
                f"the same with early_stop, level 0.01: {stopped_rate:.1f} a minute",
            )  # fmt: skip
            yield _row(
                f"questions_saved_fraction.q{questions}",
                saved["saved_questions"] / saved["questions"], "fraction", "all questions asked",
                f"early_stop, level 0.01: {saved['stopped_candidates']} of {saved['candidates']}"
                " candidates stopped",
            )  # fmt: skip
            if questions == "100":
                # Two more searches in a new run: what they share with the first is in the cache.
                searches = [{"name": "greedy"}, {"name": "beam"}, {"name": "exhaustive"}]
                again = Path(scratch, questions)
                for old in again.glob("soup/*"):
                    old.rename(Path(scratch, "old"))
                _, manifest = ours(models, num_scenes, again, searches=searches)
                scored = {
                    tuple(step["members"])
                    for one in manifest["decisions"]["searches"].values()
                    for step in one["trace"]
                }
                asked = sum(len(one["trace"]) for one in manifest["decisions"]["searches"].values())
                new = manifest["counts"]["evaluations"]
                yield _row(
                    "evaluations_saved_by_cache_fraction", 1 - new / asked, "fraction",
                    "each search scores its own candidates",
                    f"greedy, beam and exhaustive after random: {asked} scores of {len(scored)}"
                    f" candidates, {new} new evaluations",
                )  # fmt: skip


def _in_vllm(
    models: dict[str, str], picked: Sequence[Any], num_scenes: int, root: Path
) -> dict[str, Any]:
    """Measure vLLM: an engine for each candidate, against weights exchanged in place."""
    num_cores = os.cpu_count() or 1
    began = time.monotonic()
    with ThreadPoolExecutor(num_cores) as pool:
        list(pool.map(_process, picked, repeat(num_scenes), repeat("vllm")))
    each = (time.monotonic() - began) / len(picked)
    seconds, _ = ours(models, num_scenes, root, engine=ENGINES["vllm"], num_actors=num_cores)
    return _row(
        "candidates_vs_naive_in_vllm.q100", each * NUM_CANDIDATES / seconds, "times",
        f"a process with an engine for each, {num_cores} at a time: {60 / each:.1f} a minute",
        f"{NUM_CANDIDATES} candidates exchanged in place, {num_cores} actors, Ray's start and the"
        f" check of the exchange included: {NUM_CANDIDATES / seconds * 60:.1f} a minute",
    )  # fmt: skip


def _process(picked: Any, num_scenes: int, engine: str = "transformers") -> None:
    """Score candidates in a process of their own, one after the other."""
    some = [picked] if isinstance(picked[0], str) else picked
    command = [sys.executable, "-m", "tests.benchmarks.soup_search", str(num_scenes)]
    subprocess.run([*command, json.dumps(some), engine], check=True)


def _row(key: str, value: float, unit: str, baseline: str, how: str) -> dict[str, Any]:
    return {
        "key": f"soup.{key}", "value": round(value, 3), "unit": unit, "baseline": baseline,
        "how": how,
    }  # fmt: skip


if __name__ == "__main__":
    for candidate in json.loads(sys.argv[2]):
        with tempfile.TemporaryDirectory() as scratch_folder:
            naive(candidate, int(sys.argv[1]), Path(scratch_folder), sys.argv[3])
