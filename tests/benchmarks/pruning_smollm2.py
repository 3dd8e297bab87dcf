"""Layers removed from SmolLM2-135M: chosen in three ways, and after two kinds of training.

    python -m tests.benchmarks.run prune_smollm2 prune_smollm2_trained

`prune_smollm2`: SmolLM2 as it is loses 0 to 10 of its 30 layers, chosen in three ways. It is asked
for the likelihood of docstrings, and which words belong to names.

`prune_smollm2_trained`: it learns docstrings of Python's standard library, three seeds: in a
quarter of its layers (the region), or in all of them; and loses 0 to 10 layers one after the other,
after training in the region never those of the region. Healing is the same training once more,
shorter, in all layers that are left. It is asked for the likelihood of other docstrings.

All runs are under `runs/pruning-smollm2`; an interrupted study is resumed. SmolLM2 is made from its
package (`tests/support/smollm2.py`), or taken from the folder that the variable `SMOLLM2` names.
"""

from __future__ import annotations

import ast
import json
import os
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.benchmarks.pruning import Rows, cost_rows, measured, verb

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "runs" / "pruning-smollm2"

SEEDS = (1, 2, 3)
COUNTS = tuple(range(11))
HEALED = (4, 10)
CHOICES = ("contiguous", "greedy", "lowest")

TRAINING = {
    "region": {"layers": {"name": "sparse_uniform", "fraction": 0.25}, "lr": 3e-4},
    "all": {"layers": {"name": "all"}, "lr": 1e-4},
}
NUM_STEPS, HEALING_STEPS = 24, 8

MAX_CHARACTERS = 300
"""Of a docstring, so that a step takes few seconds on a CPU."""

NUM_TEXTS, NUM_TEXTS_TRAINED = 100, 40
"""Held-out docstrings for `choices`, and after training."""

NUM_CALIBRATION = 16
WHOLE = "the whole model: pruned_0"


def rows() -> Rows:
    """Remove layers of SmolLM2 as it is; return figures by choice."""
    with prepared_study() as (folder, texts):
        return choices(folder, texts)


def trained_rows(seeds: Sequence[int] = SEEDS) -> Rows:
    """Train, remove layers, heal, or find what was done; return mean and spread over seeds."""
    with prepared_study() as (folder, texts):
        return after_training(folder, texts, seeds)


@contextmanager
def prepared_study() -> Iterator[tuple[str, dict[str, Path]]]:
    """Start Ray; yield the folder of SmolLM2, and the texts by name."""
    from tests.support.smollm2 import make

    from consomme.base.telemetry import configure_logging
    from consomme.execution.session import ray_session

    configure_logging()
    folder = str(make(Path(os.environ.get("SMOLLM2", RUNS / "smollm2"))))
    texts = write_texts()
    with ray_session():
        yield folder, texts


def pruned(name: str, model: str, texts: Mapping[str, Path], choose: str, **values: Any) -> Any:
    """Remove 0 to 10 layers of a model, and ask each what is left."""
    return verb(
        "prune",
        root=str(RUNS),
        name=name,
        model=model,
        data=[{"inputs": [str(texts["train"])]}],
        num_samples=NUM_CALIBRATION,
        max_tokens=256,
        n_layers=list(COUNTS),
        choose={"name": choose},
        **values,
    )


def trained(name: str, model: str, texts: Mapping[str, Path], **values: Any) -> Any:
    """Train some layers on docstrings."""
    return verb(
        "train",
        root=str(RUNS),
        name=name,
        model=model,
        data=[{"inputs": [str(texts["train"])]}],
        projector={"state": "frozen"},
        embeddings={"state": "frozen"},
        head={"state": "frozen"},
        global_batch=8,
        micro_batch=8,
        precision="bfloat16",
        checkpoint_every=NUM_STEPS,
        **values,
    )


def choices(folder: str, texts: Mapping[str, Path]) -> Rows:
    """Prune SmolLM2 as it is by each way to choose layers."""
    asked = [
        {"name": "likelihood", "file": str(texts["held_out"])},
        {"name": "emoji_words", "every": 16},
    ]
    made: Rows = []
    costs: dict[int, list[Mapping[str, Any]]] = {}
    for choose in CHOICES:
        removed = pruned(choose, folder, texts, choose, benchmarks=asked)
        for row in removed.decisions["models"]:
            key = f"prune.smollm2.{choose}.pruned_{row['n']}"
            costs.setdefault(row["n"], []).append(row["cost"])
            words = row["figures"]["emoji_words"]["accuracy_fraction"]
            made.append(bits_row(key, [row["figures"]]))
            made.append(measured(f"{key}.words", [words], "fraction", WHOLE))
    return made + cost_rows("prune.smollm2", costs)


def after_training(folder: str, texts: Mapping[str, Path], seeds: Sequence[int]) -> Rows:
    """Prune and heal what was trained in the region, and what was trained in all layers."""
    asked = [{"name": "likelihood", "file": str(texts["held_out_trained"])}]
    taught: dict[str, list[Mapping[str, Any]]] = {}
    for seed in seeds:
        for arm, how in TRAINING.items():
            name = f"{arm}-{seed}"
            start = trained(name, folder, texts, seed=seed, num_steps=NUM_STEPS, **how)
            region = {"protect_run": start.url} if arm == "region" else {}
            removed = pruned(name, start.url, texts, "greedy", benchmarks=asked, **region)
            for row in removed.decisions["models"]:
                taught.setdefault(f"{arm}.pruned_{row['n']}", []).append(row["figures"])
            for count in HEALED:
                healed = trained(
                    f"{name}-healed-{count}",
                    f"{removed.url}/removed-{count}/model",
                    texts,
                    seed=seed,
                    num_steps=HEALING_STEPS,
                    lr=TRAINING["all"]["lr"],
                )
                found = verb(
                    "evaluate",
                    root=str(RUNS),
                    name=f"{name}-healed-{count}",
                    models={"m": healed.url},
                    benchmarks=asked,
                )
                figures = found.decisions["results"]["m"]
                taught.setdefault(f"{arm}.healed_{count}", []).append(figures)
    return [bits_row(f"prune.smollm2.{key}", figures) for key, figures in taught.items()]


def bits_row(key: str, models: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """The row of the figures of models, one per seed: how likely held-out docstrings are."""
    bits = [
        one["bits_per_character"]
        for figures in models
        for one in figures.values()
        if "bits_per_character" in one
    ]
    return measured(f"{key}.bits_per_character", bits, "bits", WHOLE)


def write_texts() -> dict[str, Path]:
    """Write docstrings of Python's standard library, half for training and half held out."""
    folder = RUNS / "texts"
    folder.mkdir(parents=True, exist_ok=True)
    names = ("train", "held_out", "held_out_trained")
    paths = {name: folder / f"{name}.jsonl" for name in names}
    if all(path.exists() for path in paths.values()):
        return paths
    found = list(dict.fromkeys(docstrings()))
    train, held_out = found[::2], found[1::2]
    said = [
        {"messages": [
            {"role": "user", "content": "Write a text."}, {"role": "assistant", "content": text}
        ]}
        for text in train
    ]  # fmt: skip
    paths["train"].write_text("".join(f"{json.dumps(one)}\n" for one in said))
    for name, num in (("held_out", NUM_TEXTS), ("held_out_trained", NUM_TEXTS_TRAINED)):
        some = held_out[:: max(1, len(held_out) // num)][:num]
        paths[name].write_text("".join(f"{json.dumps({'text': one})}\n" for one in some))
    return paths


def docstrings() -> Iterator[str]:
    """Yield docstrings of some length, in the order of their files."""
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(errors="replace"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                text = ast.get_docstring(node) or ""
                if 80 <= len(text) <= MAX_CHARACTERS and ">>>" not in text:
                    yield text


def choices_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of the table of ways to choose layers, a line per number of them.

    Args:
        rows: Of the results.
    """
    found = {row["key"]: row["value"] for row in rows}
    names = ["one block", "one after the other", "the lowest"]
    text = [f"| removed of 30 | {' | '.join(names)} | time per token | weights | cache |"]
    text.append("| --- |" + " --- |" * (len(names) + 3))
    for count in COUNTS:
        cells = []
        for choose in CHOICES:
            stem = f"prune.smollm2.{choose}.pruned_{count}"
            bits, words = found.get(f"{stem}.bits_per_character"), found.get(f"{stem}.words")
            cells.append("" if bits is None else f"{bits:.2f} bits, {words:.2f} words")
        for cost in ("token_s", "weight_bytes", "cache_bytes"):
            ratio = found.get(f"prune.smollm2.{cost}_ratio_{count}")
            cells.append("" if ratio is None else f"{ratio:.2f}")
        text.append(f"| {count} | {' | '.join(cells)} |")
    return text


def trained_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of the table of bits per character after training and healing.

    Args:
        rows: Of the results.
    """
    found = {row["key"]: row for row in rows}
    text = [
        "| removed of 30 | region trained | … and healed | all trained | … and healed |",
        "| --- |" + " --- |" * 4,
    ]
    for count in COUNTS:
        cells = []
        for arm in TRAINING:
            for state in ("pruned", "healed"):
                row = found.get(f"prune.smollm2.{arm}.{state}_{count}.bits_per_character")
                cells.append(f"{row['value']:.2f} ± {row['spread']:.2f}" if row else "")
        text.append(f"| {count} | {' | '.join(cells)} |")
    return text
