"""Three tasks on several images, taught to the nano VLM: with the images, and without.

For each task and each of three seeds, runs `recipes/train/TASK.yaml` on what
`recipes/prepare/series.yaml` writes, then the benchmarks of `recipes/evaluate/series.yaml` for this
task.

    python -m tests.benchmarks.run several_images

All runs are under `runs/several-images`; an interrupted study is resumed.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
RUNS = ROOT / "runs" / "several-images"
START = "package://models/nano"
SEEDS = (1, 2, 3)

TASKS = {"which": 50_000, "changes": 100_000, "documents": 150_000}
"""Task -> first seed of its training data."""

SHOWN = {
    "own": "",
    "blank": "_blank",
    "others": "_shuffled_items",
    "order": "_shuffled_order",
}
"""What is shown -> the end of the benchmark's name in tables."""

LABELS = {
    "which": "which of three images holds it",
    "changes": "what changed between two",
    "documents": "the last text of a document",
}
COLUMNS = {
    "start": "not tuned",
    "own": "**tuned**",
    "blank": "grey images",
    "others": "another question's images",
    "order": "own images, other order",
    "fixed": "best fixed answers",
}

ACCURACY, LOW, HIGH = (f"accuracy{end}_fraction" for end in ("", "_low", "_high"))
FIXED = "accuracy_of_fixed_answers_fraction"

Metrics = Mapping[str, float]


def rows(tasks: Sequence[str] = tuple(TASKS), seeds: Sequence[int] = SEEDS) -> list[dict[str, Any]]:
    """Run missing trainings; return mean and standard deviation over seeds, with intervals."""
    from consomme.base.telemetry import configure_logging

    configure_logging()
    made = []
    # Seed by seed, so that an interrupted study has something of each task.
    found = {(task, seed): _tuned(task, seed) for seed in seeds for task in tasks}
    for task in tasks:
        start = _evaluate(task, "start", START)
        # The label of the benchmark ends with its options; controls append to it.
        labels = {key.partition("/")[0] for key in start if key.startswith(f"scene_{task}")}
        own = min(labels, key=len)
        made.append(_row(task, "start", [start], own))
        fixed = start[f"{own}/{FIXED}"]
        how = "the most frequent answer to each kind of question, right by chance"
        made.append(_figure(task, "fixed", fixed, 0.0, how))
        tuned = [found[task, seed] for seed in seeds]
        made += [_row(task, shown, tuned, own + end) for shown, end in SHOWN.items()]
        kinds = sorted(
            name.removeprefix(f"{own}/accuracy_").removesuffix("_fraction")
            for name in start
            if name.startswith(f"{own}/accuracy_") and name.partition("/")[2] not in
            (ACCURACY, LOW, HIGH, FIXED)
        )  # fmt: skip
        for kind in kinds:
            values = [one[f"{own}/accuracy_{kind}_fraction"] for one in tuned]
            made.append(_means(task, f"kind_{kind}", values, [f"{v:.3f}" for v in values]))
    return made


def _row(task: str, shown: str, found: Sequence[Metrics], name: str) -> dict[str, Any]:
    values = [one[f"{name}/{ACCURACY}"] for one in found]
    intervals = [
        f"{value:.3f} [{one[f'{name}/{LOW}']:.3f}, {one[f'{name}/{HIGH}']:.3f}]"
        for value, one in zip(values, found, strict=True)
    ]
    return _means(task, shown, values, intervals)


def _means(task: str, name: str, values: Sequence[float], shown: Sequence[str]) -> dict[str, Any]:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    what = f"mean of {len(values)} seeds" if len(values) > 1 else "one model"
    return _figure(task, name, statistics.fmean(values), spread, f"{what}: {', '.join(shown)}")


def _figure(task: str, name: str, value: float, spread: float, how: str) -> dict[str, Any]:
    return {
        "key": f"several_images.{task}.{name}",
        "value": round(value, 4),
        "spread": round(spread, 4),
        "unit": "fraction",
        "baseline": f"several_images.{task}.blank, the same model with grey images",
        "how": how,
    }


def _tuned(task: str, seed: int) -> Metrics:
    from consomme.base.recipe import load_recipe
    from consomme.pipelines.prepare import run as prepare
    from consomme.pipelines.prepare.recipe import PrepareRecipe
    from consomme.pipelines.train import run as train
    from consomme.pipelines.train.recipe import TrainRecipe

    source = [f"name={task}", f"source.name=scene_{task}", f"source.first_seed={TASKS[task]}"]
    path = RECIPES / "prepare" / "series.yaml"
    data = prepare.run(load_recipe(PrepareRecipe, path, [*source, f"root={RUNS}"]))
    words = [f"root={RUNS}", f"seed={seed}", f"data.0.inputs=[{data.url}/data]"]
    path = RECIPES / "train" / f"{task}.yaml"
    trained = train.run(load_recipe(TrainRecipe, path, words))
    return _evaluate(task, f"{task}-{seed}", trained.url)


def _evaluate(task: str, name: str, model: str) -> Metrics:
    """Return the metrics of a model on the benchmarks of a task, without the model's label."""
    from consomme.base.recipe import load_recipe
    from consomme.pipelines.evaluate import run as evaluate
    from consomme.pipelines.evaluate.recipe import EvaluateRecipe

    path = RECIPES / "evaluate" / "series.yaml"
    whole = load_recipe(EvaluateRecipe, path, [])
    nodes = [node for node in whole.benchmarks if node["name"] == f"scene_{task}"]
    recipe = EvaluateRecipe(
        name=name, models={"model": model}, benchmarks=tuple(nodes), root=str(RUNS), num_actors=1
    )
    prefix = "evaluate/model/"
    found = evaluate.run(recipe).metrics
    return {key.removeprefix(prefix): value for key, value in found.items()}


def table(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Make the tables from the rows of the JSON: by what is shown, and by kind of question."""
    cells: dict[str, dict[str, str]] = {}
    for figure in found:
        _, task, name = figure["key"].split(".")
        shown = f"{figure['value']:.3f}"
        if figure["spread"]:
            shown += f" ± {figure['spread']:.3f}"
        cells.setdefault(task, {})[name] = shown
    text = [
        f"| task | {' | '.join(COLUMNS.values())} |",
        "| --- |" + " --- |" * len(COLUMNS),
    ]
    for task, values in cells.items():
        text.append(f"| {LABELS[task]} | {' | '.join(values[name] for name in COLUMNS)} |")
    text += ["", "| task | tuned, by kind of question |", "| --- | --- |"]
    for task, values in cells.items():
        kinds = [
            f"{name.removeprefix('kind_')} {shown}"
            for name, shown in values.items()
            if name.startswith("kind_")
        ]
        text.append(f"| {LABELS[task]} | {'; '.join(kinds)} |")
    return text
