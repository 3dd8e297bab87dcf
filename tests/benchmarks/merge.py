"""Mixing models against mergekit, in turn in one run: time, memory, and exactness.

Each side is a process of its own, started by its own command: `consomme soup RECIPE` and
`mergekit-yaml`. mergekit lives in an environment of its own, which is made when it is missing; set
MERGEKIT_BIN to the folder of one that exists. Models are random, with the shapes of SmolLM2-135M,
stored as bfloat16: a base, and four that differ from it a little. What both write is compared with
the method's formula in float64.

    python -m tests.benchmarks.run merge
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MERGEKIT = "mergekit==0.1.5"
ROUNDS = 3

SMALL = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
    "tie_word_embeddings": True,
}  # fmt: skip
LARGE = {
    "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
    "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000,
    "tie_word_embeddings": False,
}  # fmt: skip
"""The shapes of SmolLM2-135M and of TinyLlama-1.1B."""

METHODS: Mapping[str, tuple[dict[str, Any], str, dict[str, Any], dict[str, Any]]] = {
    "average": ({"name": "average"}, "linear", {}, {"weight": 1.0}),
    "task_arithmetic": (
        {"name": "task_arithmetic", "scale": 0.7},
        "task_arithmetic", {"normalize": False}, {"weight": 0.7 / 4},
    ),
    "ties": (
        {"name": "ties", "density": 0.3, "scale": 0.9},
        "ties", {"normalize": True, "lambda": 0.9}, {"weight": 0.25, "density": 0.3},
    ),
    "dare": (
        {"name": "dare", "density": 0.5, "signs": True},
        "dare_ties", {"normalize": True}, {"weight": 0.25, "density": 0.5},
    ),
    "della": (
        {"name": "della", "density": 0.5, "window": 0.2},
        "della", {"normalize": True}, {"weight": 0.25, "density": 0.5, "epsilon": 0.1},
    ),
    "slerp": ({"name": "slerp"}, "slerp", {"t": 0.5}, {}),
    "model_stock": ({"name": "model_stock"}, "model_stock", {}, {}),
}  # fmt: skip
"""Method -> node of ours, merge_method of mergekit, its parameters, and those of each model."""

WITHOUT_BASE = ("average", "slerp")
RANDOM = ("dare", "della")
"""Methods whose results are drawn, so that no formula says what they are."""


@dataclass(frozen=True)
class Cost:
    """What a process took."""

    seconds: float
    anonymous_mb: float
    """Largest resident memory that no file backs."""


def make_models(folder: Path, shape: Mapping[str, Any], count: int) -> None:
    """Write a base and models that differ from it."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
        "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, **shape,
    }  # fmt: skip
    base = {
        name: (0.02 * torch.randn(size, generator=generator)).bfloat16()
        for name, size in tensor_shapes(shape).items()
    }
    for k in range(count + 1):
        model = folder / f"m{k}"
        model.mkdir(parents=True)
        (model / "config.json").write_text(json.dumps(config))
        tensors = base
        if k:
            tensors = {
                name: (t.float() + 2e-3 * torch.randn(t.shape, generator=generator)).bfloat16()
                for name, t in base.items()
            }
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def tensor_shapes(shape: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a Llama."""
    hidden, inner, vocab = (shape[k] for k in ("hidden_size", "intermediate_size", "vocab_size"))
    keys = hidden // shape["num_attention_heads"] * shape["num_key_value_heads"]
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for k in range(shape["num_hidden_layers"]):
        layer = f"model.layers.{k}"
        found |= {
            f"{layer}.self_attn.q_proj.weight": (hidden, hidden),
            f"{layer}.self_attn.k_proj.weight": (keys, hidden),
            f"{layer}.self_attn.v_proj.weight": (keys, hidden),
            f"{layer}.self_attn.o_proj.weight": (hidden, hidden),
            f"{layer}.mlp.gate_proj.weight": (inner, hidden),
            f"{layer}.mlp.up_proj.weight": (inner, hidden),
            f"{layer}.mlp.down_proj.weight": (hidden, inner),
            f"{layer}.input_layernorm.weight": (hidden,),
            f"{layer}.post_attention_layernorm.weight": (hidden,),
        }
    found["model.norm.weight"] = (hidden,)
    if not shape["tie_word_embeddings"]:
        found["lm_head.weight"] = (vocab, hidden)
    return found


def ours(folder: Path, method: str, count: int, root: Path) -> tuple[list[str], Path]:
    """Return our command, and where it writes the model."""
    recipe: dict[str, Any] = {
        "name": method,
        "ingredients": {f"m{k}": str(folder / f"m{k}") for k in models_of(method, count)},
        "method": METHODS[method][0],
        "root": str(root),
    }
    if method not in WITHOUT_BASE:
        recipe["base"] = str(folder / "m0")
    path = root / "recipe.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(recipe))
    return [sys.executable, "-m", "consomme.cli", "soup", str(path)], root


def theirs(folder: Path, method: str, count: int, root: Path, tool: Path) -> tuple[list[str], Path]:
    """Return mergekit's command, and where it writes the model."""
    _, name, parameters, of_model = METHODS[method]
    models = [
        {"model": str(folder / f"m{k}"), "parameters": scaled(of_model, count)}
        for k in models_of(method, count)
    ]
    config: dict[str, Any] = {"merge_method": name, "models": models, "dtype": "bfloat16"}
    config["parameters"] = parameters
    if method == "slerp":
        config["base_model"] = str(folder / "m1")
    elif method not in WITHOUT_BASE:
        config["base_model"] = str(folder / "m0")
    path = root / "config.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(config))
    return [str(tool / "mergekit-yaml"), str(path), str(root / "out")], root / "out"


def scaled(of_model: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Return the parameters of each of so many models; they are written for four."""
    changed = {k: v * 4 / count if k == "weight" and v != 1.0 else v for k, v in of_model.items()}
    return changed


def models_of(method: str, count: int) -> Sequence[int]:
    """Return the numbers of the models that are mixed."""
    return (1, 2) if method == "slerp" else range(1, count + 1)


def run(command: Sequence[str], log: Path) -> Cost:
    """Run a command, and watch its memory."""
    began = time.monotonic()
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    peak = 0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            try:
                text = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                return
            line = next((one for one in text.splitlines() if one.startswith("RssAnon")), "0 0 kB")
            peak = max(peak, int(line.split()[1]))
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    seconds = time.monotonic() - began
    watcher.join()
    if code:
        raise RuntimeError(f"{' '.join(command)} ended with {code}: {log.read_text()[-2000:]}")
    return Cost(seconds, peak / 1000)


def off(folder: Path, method: str, count: int, written: Path) -> float:
    """Return the largest difference from the method's formula in float64."""
    import numpy as np
    from safetensors import safe_open
    from tests.soup.test_mixing import FORMULAS

    formula = FORMULAS[method][0]
    numbers = models_of(method, count)
    files = [folder / f"m{k}" / "model.safetensors" for k in (0, *numbers)]
    shares = [1 / len(numbers)] * len(numbers)
    largest = 0.0
    for file in sorted(written.rglob("*.safetensors")):
        with safe_open(file, "pt") as mixed:
            for name in mixed.keys():
                base, *models = (_array(path, name) for path in files)
                found = mixed.get_tensor(name).double().numpy()
                expected = formula(models, base, shares)
                largest = max(largest, float(np.abs(found - expected).max()))
    return largest


def _array(path: Path, name: str) -> Any:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.get_tensor(name).double().numpy()


def mergekit_folder(scratch: Path) -> Path:
    """Return the folder of mergekit's commands; installs it if there is none."""
    if named := os.environ.get("MERGEKIT_BIN"):
        return Path(named)
    venv = scratch / "mergekit"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    python = str(venv / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", MERGEKIT], check=True)
    return venv / "bin"


def rows(rounds: int = ROUNDS) -> Iterator[dict[str, Any]]:
    """Measure all methods on four small models, and averages of three large ones."""
    with tempfile.TemporaryDirectory() as scratch:
        tool = mergekit_folder(Path(scratch))
        for size, shape, count, methods in (
            ("135m", SMALL, 4, tuple(METHODS)),
            ("1100m", LARGE, 3, ("average", "task_arithmetic")),
        ):
            folder = Path(scratch, size)
            make_models(folder, shape, count)
            for method in methods:
                yield from _compared(folder, size, method, count, rounds, tool)


def _compared(
    folder: Path, size: str, method: str, count: int, rounds: int, tool: Path
) -> list[dict[str, Any]]:
    costs: dict[str, list[Cost]] = {"ours": [], "mergekit": []}
    wrong: dict[str, float] = {}
    for number in range(rounds):
        for side in costs:
            with tempfile.TemporaryDirectory(dir=folder) as place:
                root = Path(place, "run")
                if side == "ours":
                    command, written = ours(folder, method, count, root)
                else:
                    command, written = theirs(folder, method, count, root, tool)
                costs[side].append(run(command, Path(place, "log")))
                if not number and method not in RANDOM and size == "135m":
                    wrong[side] = off(folder, method, count, written)
    seconds = {side: statistics.median(c.seconds for c in some) for side, some in costs.items()}
    memory = {side: max(c.anonymous_mb for c in some) for side, some in costs.items()}
    how = f"{len(models_of(method, count))} models, {size}, median of {rounds} rounds in turn"
    exact = ""
    if wrong:
        exact = "; largest difference from float64 " + ", ".join(
            f"{side} {value:.2e}" for side, value in wrong.items()
        )
    return [
        {
            "key": f"merge.vs_mergekit_time.{method}_{size}",
            "value": round(seconds["mergekit"] / seconds["ours"], 2),
            "unit": "times",
            "baseline": f"mergekit, {METHODS[method][1]}: {seconds['mergekit']:.1f} s",
            "how": f"{how}: {seconds['ours']:.1f} s{exact}",
        },
        {
            "key": f"merge.vs_mergekit_memory.{method}_{size}",
            "value": round(memory["ours"] / memory["mergekit"], 3),
            "unit": "ratio",
            "baseline": f"mergekit, {METHODS[method][1]}: {memory['mergekit']:.0f} MB anonymous",
            "how": f"{how}: {memory['ours']:.0f} MB",
        },
    ]
