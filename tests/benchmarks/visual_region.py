"""Which layers to train, how many and on how much data: the visual region's study at nano scale.

Sweeps of `recipes/sweep/visual_region.yaml`, each over three seeds: strategies and numbers of
layers; all layers at a rate of their own; strategies that need a model tuned before; shares of the
data.

The rates are those of a pilot with another seed, one training each, by the mean of words read and
questions on outlines: all layers had 0.613 at 5e-4, 0.592 at 1e-3, 0.523 at 2e-3; a quarter of
them, sparse and uniform, had 0.575 at 1e-3, 0.571 at 2e-3, 0.501 at 4e-3.

    python tests/benchmarks/run.py visual_region

All runs lie under `runs/visual-region`; what was interrupted goes on.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "sweep" / "visual_region.yaml"
RUNS = ROOT / "runs" / "visual-region"
START = "package://models/nano"

ALL = {"name": "all"}
QUARTER = {"name": "sparse_uniform", "fraction": 0.25}
ALL_RATE = 0.0005
"""Best for all layers; what is in the recipe is best for a quarter of them."""

AFTER_TUNING = ("parameter_change", "parameter_angle")
FRACTIONS = (0.25, 0.1)
NUM_TEXTS = 300

FIGURES = {
    "words": "evaluate/model/scene_ocr_filled/accuracy_fraction",
    "outlines": "evaluate/model/scene_questions_outline/accuracy_fraction",
    "questions_before": "evaluate/model/scene_questions_filled/accuracy_fraction",
    "names_before": "evaluate/model/emoji_names_noto/accuracy_fraction",
    "step_s": "train/step_s",
    "peak_mb": "train/peak_bytes",
    "optimizer_mb": "optimizer_bytes",
}
"""Figure -> metric of a trial."""

UNITS = {
    "taught": "fraction",
    "of_all": "fraction",
    "words": "fraction",
    "outlines": "fraction",
    "questions_before": "fraction",
    "names_before": "fraction",
    "text_nats": "nats per token",
    "step_s": "s",
    "peak_mb": "MB",
    "optimizer_mb": "MB",
}

COLUMNS = {
    "words": "words read",
    "outlines": "questions on outlines",
    "of_all": "both, share of all layers'",
    "questions_before": "known before: questions",
    "names_before": "known before: names",
    "text_nats": "text only, nats per token",
    "step_s": "s per step",
    "peak_mb": "peak MB",
    "optimizer_mb": "optimizer MB",
}
"""Columns of the README's table."""

ARMS = {
    "start": "not trained",
    "all": "**all 12**",
    "all_same_rate": "all 12, at the rate of the others",
    "sparse_uniform": "**3, sparse and uniform**",
    "sparse_uniform_low_rate": "3, sparse and uniform, at the rate of all 12",
    "bottom": "3, bottom",
    "mid_bottom": "3, lower middle",
    "mid_top": "3, upper middle",
    "top": "3, top",
    "hybrid": "3, bottom and top",
    "image_attention": "3, most attention to the picture",
    "block_influence": "3, highest Block Influence",
    "multimodal_block_influence": "3, highest multimodal Block Influence",
    "parameter_change": "3, that changed most when all were tuned",
    "parameter_angle": "3, that turned most when all were tuned",
    "rotating": "3, others every 10 steps",
    "layers_1": "1, sparse and uniform",
    "layers_2": "2",
    "layers_4": "4",
    "layers_6": "6",
    "all_25": "all 12, a quarter of the data",
    "sparse_uniform_25": "3, a quarter of the data",
    "all_10": "all 12, a tenth of the data",
    "sparse_uniform_10": "3, a tenth of the data",
}
"""Row -> how the README calls it."""

Found = dict[str, float]


def rows() -> list[dict[str, Any]]:
    """Run what is not done, and gather means and spreads over seeds."""
    from consomme.base.telemetry import configure_logging

    configure_logging()
    by_arm: dict[str, list[Found]] = {}
    for arm, found in _trials():
        by_arm.setdefault(arm, []).append(found)
    whole = statistics.fmean(found["taught"] for found in by_arm["all"])
    made = []
    for arm in ARMS:
        for found in by_arm[arm]:
            found["of_all"] = found["taught"] / whole
        for name, unit in UNITS.items():
            values = [found[name] for found in by_arm[arm] if name in found]
            if not values:
                continue
            each = ", ".join(f"{value:.4g}" for value in values)
            made.append(
                {
                    "key": f"visual_region.{arm}.{name}",
                    "value": round(statistics.fmean(values), 4),
                    "spread": round(statistics.stdev(values), 4) if len(values) > 1 else 0.0,
                    "unit": unit,
                    "baseline": "visual_region.all, every layer trained",
                    "how": f"mean of {len(values)}: {each}" if len(values) > 1 else each,
                }
            )
    return made


def _trials() -> Iterator[tuple[str, Found]]:
    """Every trial, as the row it belongs to and its figures; the start is one of them."""
    from consomme.base.recipe import load_recipe
    from consomme.pipelines import evaluate, sweep

    data = json.dumps([{"inputs": _data()}])
    settings = [f"root={RUNS}", f"train.data={data}"]
    recipe = load_recipe(sweep.SweepRecipe, RECIPE, settings)
    seeds = recipe.space["seed"]
    judge = evaluate.EvaluateRecipe(
        name="start", models={"model": START}, benchmarks=recipe.benchmarks, root=str(RUNS)
    )
    yield "start", _figures(evaluate.run(judge).metrics, START)
    for arm, found in _of(sweep.run(recipe)):
        yield "all_same_rate" if arm == "all" else arm, found
    at_rate = [*settings, f"train.lr={ALL_RATE}"]
    quarter = _sweep("rate", at_rate, {"layers": _choice([QUARTER]), "seed": seeds})
    for _, found in _of(quarter):
        yield "sparse_uniform_low_rate", found
    fractions = _choice([1.0, *FRACTIONS])
    whole = _sweep(
        "all", at_rate, {"layers": _choice([ALL]), "data.0.fraction": fractions, "seed": seeds}
    )
    yield from _of(whole)
    for trial in whole.decisions["trials"]:
        if trial["keys"]["data.0.fraction"] == 1.0:
            seed = trial["keys"]["seed"]
            measures = [
                {"name": "by_score", "measure": m, "tuned": trial["train"], "fraction": 0.25}
                for m in AFTER_TUNING
            ]
            space = {"layers": _choice(measures), "seed": _choice([seed])}
            yield from _of(_sweep(f"after-tuning-{seed}", settings, space))
    space = {
        "layers": _choice([QUARTER]),
        "data.0.fraction": _choice(FRACTIONS),
        "seed": seeds,
    }
    yield from _of(_sweep("fractions", settings, space))


def _sweep(name: str, settings: Sequence[str], space: Mapping[str, Any]) -> Any:
    from consomme.base.recipe import load_recipe
    from consomme.pipelines import sweep

    words = [*settings, f"name={name}", f"space={json.dumps(space)}"]
    return sweep.run(load_recipe(sweep.SweepRecipe, RECIPE, words))


def _choice(values: Sequence[Any]) -> dict[str, Any]:
    return {"name": "choice", "values": list(values)}


def _data() -> list[str]:
    """Questions about words, and about outlines: one question to a picture."""
    from consomme.pipelines import prepare

    sources = {
        "words": {"name": "scene_ocr", "num": 1000, "num_turns": 1, "narrate_fraction": 0.0},
        "outlines": {"name": "scene_talk", "style": "outline", "num": 1000, "num_turns": 1},
    }
    made = [
        prepare.run(prepare.PrepareRecipe(name=name, root=str(RUNS), source=source))
        for name, source in sources.items()
    ]
    return [f"{one.url}/data" for one in made]


def _of(done: Any) -> Iterator[tuple[str, Found]]:
    for trial in done.decisions["trials"]:
        if trial["state"] != "done":
            raise RuntimeError(f"trial {trial['number']} is {trial['state']}: {trial['reason']}")
        yield arm_of(trial["keys"]), _figures(trial["metrics"], trial["train"])


def arm_of(keys: Mapping[str, Any]) -> str:
    """The row that a trial belongs to."""
    layers = keys["layers"]
    name = str(layers.get("where") or layers.get("measure") or layers["name"])
    if "count" in layers:
        name = f"layers_{layers['count']}"
    fraction = keys.get("data.0.fraction", 1.0)
    return name if fraction == 1.0 else f"{name}_{fraction * 100:.0f}"


def _figures(metrics: Mapping[str, float], model: str) -> Found:
    found = {
        name: metrics[metric] / (2**20 if name.endswith("_mb") else 1)
        for name, metric in FIGURES.items()
        if metric in metrics
    }
    found["taught"] = (found["words"] + found["outlines"]) / 2
    found["text_nats"] = text_nats(model)
    return found


def text_nats(model: str) -> float:
    """Mean nats per token that a model finds in held-out texts, no picture shown.

    Half of them are captions of scenes, half are names of emoji; the same for every model. What
    the model has by itself is kept beside it, so this is worked out once.
    """
    from consomme.curate.perplexity import token_nll
    from consomme.engines.questions import Score
    from consomme.engines.transformers_scorer import TransformersScorer
    from consomme.evaluate.cache import model_content_hash
    from consomme.pipelines.checkpoints import model_folder

    folder = model_folder(model)
    kept = RUNS / "text" / f"{model_content_hash(folder)}.json"
    if not kept.exists():
        found = TransformersScorer(folder, token_nll).score(_texts())
        scores = [one for one in found if isinstance(one, Score)]
        if len(scores) < len(found):
            raise RuntimeError(f"{model}: {len(found) - len(scores)} texts have no score")
        nats = sum(one.nll for one in scores) / sum(one.num_tokens for one in scores)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps({"nats": nats, "model": model}))
    return float(json.loads(kept.read_text())["nats"])


@cache
def _texts() -> list[Any]:
    from consomme.base.sample import Turn
    from consomme.datasets.sources import EmojiSource, SceneSource
    from consomme.engines.questions import Question

    scenes = list(SceneSource(num=NUM_TEXTS // 2, first_seed=600_000)())
    names = list(EmojiSource(styles=("noto",), every=12)())[: NUM_TEXTS // 2]
    pairs = [("describe the image.", one) for one in scenes]
    pairs += [("what emoji is this?", one) for one in names]
    return [
        Question(
            turns=(
                Turn(role="user", content=prompt),
                Turn(role="assistant", content=one.caption),
            ),
            image=None,
        )
        for prompt, one in pairs
    ]


def table(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """The README's table, from the rows of the JSON."""
    cells: dict[str, dict[str, str]] = {}
    for figure in found:
        _, arm, name = figure["key"].split(".")
        digits = 3 if UNITS[name] in ("fraction", "nats per token", "s") else 1
        shown = f"{figure['value']:,.{digits}f}"
        if figure["spread"]:
            shown += f" ± {figure['spread']:.{digits}f}"
        cells.setdefault(arm, {})[name] = shown
    return [
        f"| layers trained | {' | '.join(COLUMNS.values())} |",
        "| --- |" + " --- |" * len(COLUMNS),
        *(
            f"| {label} | {' | '.join(cells[arm].get(name, '') for name in COLUMNS)} |"
            for arm, label in ARMS.items()
            if arm in cells
        ),
    ]
