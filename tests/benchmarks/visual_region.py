"""Which layers to train, how many and on how much data: the visual region study at nano scale.

Runs sweeps of `recipes/sweep/visual_region.yaml`, each over three seeds: selections and numbers of
layers; all layers at their own learning rate, and none; selections that need a tuned model; shares
of the data.

Learning rates come from a pilot with another seed and one training each, by the mean of words read
and questions on outlines: all layers scored 0.613 at 5e-4, 0.592 at 1e-3, 0.523 at 2e-3; a quarter
of them, sparse and uniform, scored 0.575 at 1e-3, 0.571 at 2e-3, 0.501 at 4e-3.

    python -m tests.benchmarks.run visual_region

All runs are under `runs/visual-region`; an interrupted study is resumed.
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
"""Best learning rate for all layers; the recipe's rate is best for a quarter of them."""

AFTER_TUNING = ("parameter_change", "parameter_angle")
FRACTIONS = (0.25, 0.1)
TIMED_STEPS = 15
NUM_TEXTS = 300

FIGURES = {
    "words": "evaluate/model/scene_ocr_filled/accuracy_fraction",
    "outlines": "evaluate/model/scene_questions_outline/accuracy_fraction",
    "questions_before": "evaluate/model/scene_questions_filled/accuracy_fraction",
    "names_before": "evaluate/model/emoji_names_noto/accuracy_fraction",
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
"""Columns of the table."""

ARMS = {
    "start": "not trained",
    "projector": "none: the projector only",
    "all": "**all 12**",
    "all_same_rate": "all 12, at the rate of the others",
    "sparse_uniform": "**3, sparse and uniform**",
    "sparse_uniform_low_rate": "3, sparse and uniform, at the rate of all 12",
    "bottom": "3, bottom",
    "mid_bottom": "3, lower middle",
    "mid_top": "3, upper middle",
    "top": "3, top",
    "hybrid": "3, bottom and top",
    "image_attention": "3, most attention to the image",
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
"""Arm -> its label in the table."""

HOW = dict.fromkeys(UNITS, "the nano VLM as it is shipped") | {
    "step_s": f"median of {TIMED_STEPS} steps of 16 samples in one process with one thread, all"
    " choices of layers in turn; in the study two trainings share the machine",
}
"""`how` of figures that are not means over seeds."""

Figures = dict[str, float]
Arm = tuple[str, Figures, list[int]]
"""Name of the arm, its figures, and the trained layers."""


def rows() -> list[dict[str, Any]]:
    """Run missing trials; return mean and standard deviation over seeds."""
    from consomme.base.telemetry import configure_logging

    configure_logging()
    by_arm: dict[str, list[Figures]] = {}
    layers: dict[str, list[int]] = {}
    for arm, found, chosen in _trials():
        by_arm.setdefault(arm, []).append(found)
        layers.setdefault(arm, chosen)
    for arm, seconds in step_seconds(layers).items():
        by_arm[arm][0]["step_s"] = seconds
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
                    "how": f"mean of {len(values)}: {each}" if len(values) > 1 else HOW[name],
                }
            )
    return made


def _trials() -> Iterator[Arm]:
    """Yield every trial with its arm and figures, the start model first."""
    from consomme.base.recipe import load_recipe
    from consomme.pipelines.evaluate import run as evaluate
    from consomme.pipelines.evaluate.recipe import EvaluateRecipe
    from consomme.pipelines.sweep import run as sweep
    from consomme.pipelines.sweep.recipe import SweepRecipe

    data = json.dumps([{"inputs": _data()}])
    settings = [f"root={RUNS}", f"train.data={data}"]
    recipe = load_recipe(SweepRecipe, RECIPE, settings)
    seeds = recipe.space["seed"]
    judge = EvaluateRecipe(
        name="start", models={"model": START}, benchmarks=recipe.benchmarks, root=str(RUNS)
    )
    yield "start", _figures(evaluate.run(judge).metrics, START), []
    for arm, *rest in _of(sweep.run(recipe)):
        yield "all_same_rate" if arm == "all" else arm, *rest
    at_rate = [*settings, f"train.lr={ALL_RATE}"]
    quarter = _sweep("rate", at_rate, {"layers": _choice([QUARTER]), "seed": seeds})
    for _, *rest in _of(quarter):
        yield "sparse_uniform_low_rate", *rest
    frozen = [*settings, "train.language_model={state: frozen}"]
    for _, found, _ in _of(_sweep("projector", frozen, {"seed": seeds})):
        yield "projector", found, []
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
    from consomme.pipelines.sweep import run as sweep
    from consomme.pipelines.sweep.recipe import SweepRecipe

    words = [*settings, f"name={name}", f"space={json.dumps(space)}"]
    return sweep.run(load_recipe(SweepRecipe, RECIPE, words))


def _choice(values: Sequence[Any]) -> dict[str, Any]:
    return {"name": "choice", "values": list(values)}


def _data() -> list[str]:
    """Prepare questions about words and about outlines, one per picture; return the shards."""
    from consomme.pipelines.prepare import run as prepare
    from consomme.pipelines.prepare.recipe import PrepareRecipe

    sources = {
        "words": {"name": "scene_ocr", "num": 1000, "num_turns": 1, "narrate_fraction": 0.0},
        "outlines": {"name": "scene_talk", "style": "outline", "num": 1000, "num_turns": 1},
    }
    made = [
        prepare.run(PrepareRecipe(name=name, root=str(RUNS), source=source))
        for name, source in sources.items()
    ]
    return [f"{one.url}/data" for one in made]


def _of(done: Any) -> Iterator[Arm]:
    from consomme.storage.ledger.run_folder import load_manifest
    from consomme.train.layers import LAYER_SELECTORS

    for trial in done.decisions["trials"]:
        if trial["state"] != "done":
            raise RuntimeError(f"trial {trial['number']} is {trial['state']}: {trial['reason']}")
        decided = load_manifest(trial["train"]).decisions
        selector = LAYER_SELECTORS.build(trial["keys"].get("layers", ALL))
        layers = decided["layers"]
        if selector.is_rotating:
            layers = list(selector(decided["num_layers"]))
        yield arm_of(trial["keys"]), _figures(trial["metrics"], trial["train"]), layers


def arm_of(keys: Mapping[str, Any]) -> str:
    """Return the arm that a trial belongs to."""
    layers = keys.get("layers", ALL)
    name = str(layers.get("where") or layers.get("measure") or layers["name"])
    if "count" in layers:
        name = f"layers_{layers['count']}"
    fraction = keys.get("data.0.fraction", 1.0)
    return name if fraction == 1.0 else f"{name}_{fraction * 100:.0f}"


def _figures(metrics: Mapping[str, float], model: str) -> Figures:
    found = {
        name: metrics[metric] / (2**20 if name.endswith("_mb") else 1)
        for name, metric in FIGURES.items()
        if metric in metrics
    }
    found["taught"] = (found["words"] + found["outlines"]) / 2
    found["text_nats"] = text_nats(model)
    return found


def text_nats(model: str) -> float:
    """Return a model's mean nats per token on held-out texts without pictures.

    Half of the texts are captions of scenes, half are names of emoji, the same for every model.
    Results are cached by the model's content hash.
    """
    from consomme.curate.perplexity import token_nll
    from consomme.engines.scoring.requests import Score
    from consomme.engines.scoring.transformers import TransformersScorer
    from consomme.storage.model_folder import model_content_hash, model_folder

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
    from consomme.engines.scoring.requests import ScoringRequest

    scenes = list(SceneSource(num=NUM_TEXTS // 2, first_seed=600_000)())
    names = list(EmojiSource(styles=("noto",), every=12)())[: NUM_TEXTS // 2]
    pairs = [("describe the image.", one) for one in scenes]
    pairs += [("what emoji is this?", one) for one in names]
    return [
        ScoringRequest(
            turns=(
                Turn(role="user", content=prompt),
                Turn(role="assistant", content=one.caption),
            ),
            images=(),
        )
        for prompt, one in pairs
    ]


def step_seconds(layers: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Return the median step time by arm; selections take turns on the same samples."""
    import torch

    from consomme.models.batches import Batcher
    from consomme.models.chat import ChatEncoder
    from consomme.models.weights import open_model
    from consomme.storage.model_folder import model_folder
    from consomme.train.loop import ScheduleConfig, StepReport, fit
    from consomme.train.parallel.registry import PARALLELISMS
    from consomme.train.parallel.strategy import ShardedModel
    from consomme.train.parts import FROZEN, FULL, Trainability
    from consomme.train.trainable import set_trainable

    torch.set_num_threads(1)
    parts = Trainability(
        vision_encoder=FROZEN, projector=FULL, language_model=FULL, embeddings=FROZEN, head=FROZEN
    )
    choices = {tuple(chosen) for chosen in layers.values() if chosen}
    models: dict[tuple[int, ...], ShardedModel] = {}
    for chosen in sorted(choices):
        model, processor = open_model(model_folder(START))
        groups = set_trainable(model, parts, chosen, lr=1e-6).groups
        sharded = PARALLELISMS.build({"name": "ddp"})(model, groups, torch.device("cpu"))
        models[chosen] = sharded
    chat = ChatEncoder(model.config, processor)
    batcher = Batcher(model, chat.tokenizer)
    batch = batcher.collate([chat.encode(turns, [image]) for turns, image in _some(16)])
    reports: dict[tuple[int, ...], list[StepReport]] = {chosen: [] for chosen in models}
    schedule = ScheduleConfig(num_steps=TIMED_STEPS + 2)
    for step in range(schedule.num_steps):
        for chosen, sharded in models.items():
            after = reports[chosen].append
            fit(sharded, lambda _: [batch], schedule, start=step, stop=step + 1, after_step=after)
    # The first two steps allocate optimizer state and warm up memory.
    seconds = {
        chosen: statistics.median(report.seconds for report in found[2:])
        for chosen, found in reports.items()
    }
    return {arm: seconds[tuple(chosen)] for arm, chosen in layers.items() if chosen}


def _some(num: int) -> list[Any]:
    """Return turns and pictures of some training samples, half of each kind."""
    from consomme.datasets.sources import OcrSource, TalkSource
    from consomme.vision.decode import decode

    sources = (
        OcrSource(num=num // 2, num_turns=1, narrate_fraction=0.0),
        TalkSource(num=num // 2, num_turns=1, style="outline"),
    )
    return [(one.turns, decode(one.images[0].data)) for source in sources for one in source()]


def table(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Make the table from the rows of the JSON."""
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
