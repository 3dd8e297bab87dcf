"""Layers removed after training: the nano VLM, three seeds, with and without healing.

The nano VLM learns to read words and to see outlines, as in the visual region study: in a quarter
of its layers (the region), or in all of them. Then 0 to 6 layers are removed: after training in the
region never those of the region. Healing is the same training once more, a quarter as long, in all
layers that are left.

    python -m tests.benchmarks.run prune

All runs are under `runs/pruning`; an interrupted study is resumed.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "runs" / "pruning"
START = "package://models/nano"

SEEDS = (1, 2, 3)
COUNTS = tuple(range(7))
HEALED = (2, 4, 6)

TRAINING = {
    "region": {"layers": {"name": "sparse_uniform", "fraction": 0.25}, "lr": 0.001},
    "all": {"layers": {"name": "all"}, "lr": 0.0005},
}
"""Learning rates are the best ones of the visual region study."""

BENCHMARKS = [
    {"name": "scene_ocr", "num": 80},
    {"name": "scene_questions", "style": "outline", "num": 40},
]
"""What is taught; the figure is the mean of both accuracies."""

NUM_CALIBRATION = 32

Rows = list[dict[str, Any]]


def rows() -> Rows:
    """Run what is missing; return mean and spread over seeds."""
    from consomme.base.telemetry import configure_logging
    from consomme.execution.session import ray_session

    configure_logging()
    with ray_session():
        return nano_rows()


def verb(verb_name: str, /, **values: Any) -> Any:
    """Run a recipe, or find its finished run."""
    from consomme.base.recipe import check_recipe
    from consomme.pipelines.verbs import VERBS, recipe_class, resolve

    recipe = check_recipe(recipe_class(verb_name), {"root": str(RUNS), **values})
    return resolve(VERBS[verb_name].run)(recipe)


def nano_rows() -> Rows:
    """Prune the nano VLM after both kinds of training."""
    data = [{"inputs": [f"{one.url}/data" for one in prepared()]}]
    taught: dict[tuple[str, str, int], list[float]] = {}
    costs: dict[int, list[Mapping[str, Any]]] = {}
    for seed in SEEDS:
        for arm, how in TRAINING.items():
            trained = train(f"{arm}-{seed}", START, data, seed=seed, num_steps=80, **how)
            pruned = verb(
                "prune",
                name=f"{arm}-{seed}",
                model=trained.url,
                data=data,
                num_samples=NUM_CALIBRATION,
                n_layers=list(COUNTS),
                choose={"name": "lowest"},
                benchmarks=BENCHMARKS,
                **({"protect_run": trained.url} if arm == "region" else {}),
            )
            for row in pruned.decisions["models"]:
                taught.setdefault((arm, "pruned", row["n"]), []).append(score(row["figures"]))
                costs.setdefault(row["n"], []).append(row["cost"])
            for count in HEALED:
                start = f"{pruned.url}/removed-{count}/model"
                healed = train(
                    f"{arm}-{seed}-healed-{count}", start, data, seed=seed, num_steps=20, lr=0.0005
                )
                found = verb(
                    "evaluate",
                    name=f"{arm}-{seed}-healed-{count}",
                    models={"m": healed.url},
                    benchmarks=BENCHMARKS,
                )
                figures = found.decisions["results"]["m"]
                taught.setdefault((arm, "healed", count), []).append(score(figures))
    made = []
    for (arm, state, count), values in taught.items():
        made.append(
            measured(f"prune.nano.{arm}.{state}_{count}", values, "fraction",
                     f"prune.nano.{arm}.pruned_0: {statistics.fmean(taught[arm, 'pruned', 0]):.4f}")
        )  # fmt: skip
    return made + cost_rows("prune.nano", costs)


def train(name: str, model: str, data: Any, **values: Any) -> Any:
    """Train the projector and some layers."""
    return verb(
        "train",
        **{
            "name": name,
            "model": model,
            "data": data,
            "global_batch": 16,
            "checkpoint_every": 80,
            "embeddings": {"state": "frozen"},
            "head": {"state": "frozen"},
            **values,
        },
    )


def prepared() -> list[Any]:
    """Questions about words and about outlines, as in the visual region study."""
    sources = {
        "words": {"name": "scene_ocr", "num": 1000, "num_turns": 1, "narrate_fraction": 0.0},
        "outlines": {"name": "scene_talk", "style": "outline", "num": 1000, "num_turns": 1},
    }
    return [verb("prepare", name=name, source=source) for name, source in sources.items()]


def score(figures: Mapping[str, Mapping[str, float]]) -> float:
    """Mean accuracy of what was taught."""
    return statistics.fmean(one["accuracy_fraction"] for one in figures.values())


def cost_rows(key: str, costs: Mapping[int, Sequence[Mapping[str, Any]]]) -> Rows:
    """Time, weights and cache by number of removed layers, relative to none."""
    made = []
    for name in ("token_s", "weight_bytes", "cache_bytes"):
        whole = statistics.fmean(one[name] for one in costs[0])
        for count, found in costs.items():
            ratios = [one[name] / whole for one in found]
            made.append(
                measured(f"{key}.{name}_ratio_{count}", ratios, "ratio", "no layer removed")
            )
    return made


def measured(key: str, values: Sequence[float], unit: str, baseline: str) -> dict[str, Any]:
    """Return one figure."""
    each = ", ".join(f"{value:.4g}" for value in values)
    return {
        "key": key,
        "value": round(statistics.fmean(values), 4),
        "spread": round(statistics.stdev(values), 4) if len(values) > 1 else 0.0,
        "unit": unit,
        "baseline": baseline,
        "how": f"mean of {len(values)}: {each}" if len(values) > 1 else "one model",
    }


def nano_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of the table of the nano VLM, a line per number of removed layers.

    Args:
        rows: Of the results.
    """
    found = {row["key"]: row for row in rows}

    def cell(key: str, digits: int = 3) -> str:
        row = found.get(f"prune.nano.{key}")
        return f"{row['value']:.{digits}f} ± {row['spread']:.{digits}f}" if row else ""

    text = [
        "| removed of 12 | region trained | … and healed | all trained | … and healed |"
        " time per token | weights | cache |",
        "| --- |" + " --- |" * 7,
    ]
    for count in COUNTS:
        quality = [
            cell(f"{arm}.{state}_{count}") for arm in TRAINING for state in ("pruned", "healed")
        ]
        costs = [
            cell(f"{name}_ratio_{count}", 2) for name in ("token_s", "weight_bytes", "cache_bytes")
        ]
        text.append(f"| {count} | {' | '.join([*quality, *costs])} |")
    return text
