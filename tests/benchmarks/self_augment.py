"""VILA²'s loop at nano scale, with controls and specialists, over three seeds.

The first and the last round are also tuned three times as long, to separate the effects of tuning
and of pre-training.

    python -m tests.benchmarks.run self_augment
    python -m tests.benchmarks.self_augment path/to/base [SEED]     # only write a base model

Each seed is a separate loop under `runs/self-augment`; an interrupted loop is resumed.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "loop" / "self_augment.yaml"
SEEDS = (1, 2, 3)
FIGURES = {
    "questions": "scene_questions_filled/accuracy_fraction",
    "true": "scene_captions_filled/true_claims_per_caption",
    "false": "scene_captions_filled/false_claims_per_caption",
    "text": "scene_ocr_filled/accuracy_fraction",
    "relations": "scene_spatial_filled/accuracy_fraction",
}
"""Metrics of the trained models, on scenes that no training contains."""

WRITTEN = {
    "caption_true": "recaption/after_true_claims",
    "caption_false": "recaption/after_false_claims",
    "caption_words": "recaption/words_per_caption",
}
"""Metrics of the captions that a round is trained on."""

WEB = {
    "caption_true": "recaption/before_true_claims",
    "caption_false": "recaption/before_false_claims",
    "caption_words": "recaption/words_before",
}
"""The same metrics of the web captions of round 0, from the first recaption run."""

FRACTIONS = ("questions", "text", "relations")


def make_base(folder: Path, seed: int) -> str:
    """Write the start of all trainings: the shipped vision encoder, everything else untrained."""
    from consomme.models.assembly import LlavaShape, build_llava, build_processor
    from consomme.models.weights import open_vlm, save_vlm
    from consomme.storage.model_folder import model_folder

    if not (folder / "config.json").exists():
        nano, processor = open_vlm(model_folder("package://models/nano"))
        shape = LlavaShape(text_layers=4)
        model = build_llava(shape, processor.tokenizer, seed)
        weights = nano.model.vision_tower.state_dict()
        model.model.vision_tower.load_state_dict(weights)
        save_vlm(folder, model, build_processor(shape, processor.tokenizer))
    return str(folder)


def rows(root: Path = ROOT / "runs" / "self-augment") -> list[dict[str, Any]]:
    """Run the loop for every seed; return mean and standard deviation per arm and metric."""
    runs = [_run_seed(root, seed) for seed in SEEDS]
    found = []
    for arm in runs[0]:
        for name in runs[0][arm]:
            values = [run[arm][name] for run in runs]
            spread = statistics.stdev(values)
            each = ", ".join(f"{value:.3f}" for value in values)
            found.append(
                {
                    "key": f"self_augment.{arm}.{name}",
                    "value": round(statistics.mean(values), 4),
                    "spread": round(spread, 4),
                    "unit": "fraction" if name in FRACTIONS else "per caption",
                    "baseline": "self_augment.0, trained on the web's captions",
                    "how": f"mean of {len(values)} seeds: {each}",
                }
            )
    return found


def emoji_rows(root: Path = ROOT / "runs" / "self-augment-emoji") -> list[dict[str, Any]]:
    """Run the emoji loop with one seed; return the share of right names per arm."""
    from consomme.base.recipe import load_recipe
    from consomme.pipelines.loop import run as loop
    from consomme.pipelines.loop.recipe import LoopRecipe
    from consomme.storage.ledger.run_folder import load_manifest

    recipe = load_recipe(LoopRecipe, RECIPE.with_name("self_augment_emoji.yaml"), [f"root={root}"])
    parents = [load_manifest(parent.url) for parent in loop.run(recipe).parents]
    return [
        {
            "key": f"self_augment.emoji.{arm if arm != 'model' else one.name.split('-')[1]}",
            "value": round(value, 4),
            "spread": 0.0,
            "unit": "fraction",
            "baseline": "self_augment.emoji.start, the nano VLM as it is shipped",
            "how": "names right, word for word, of every second emoji; one seed",
        }
        for one in parents
        if one.verb == "evaluate"
        for _, arm, _, name in [key.split("/") for key in one.metrics if key.count("/") == 3]
        if name == "accuracy_fraction"
        for value in [one.metrics[f"evaluate/{arm}/emoji_names_twemoji/accuracy_fraction"]]
    ]


def _run_seed(root: Path, seed: int) -> dict[str, dict[str, float]]:
    """Run one loop; return the figures by arm: a round, a control, or a specialist."""
    from consomme.base.recipe import load_recipe
    from consomme.pipelines.loop import run as loop
    from consomme.pipelines.loop.recipe import LoopRecipe
    from consomme.storage.ledger.run_folder import load_manifest

    base = make_base(root / f"base-{seed}", seed)
    words = [f"name=seed-{seed}", f"root={root}/seed-{seed}", f"values.base={base}"]
    recipe = load_recipe(LoopRecipe, RECIPE, [*words, f"values.seed={seed}"])
    done = loop.run(recipe)
    manifests = {m.name: m for m in (load_manifest(parent.url) for parent in done.parents)}
    found: dict[str, dict[str, float]] = {}
    for name, manifest in manifests.items():
        verb, _, arm = name.partition("-")
        if verb == "evaluate":
            found.setdefault(arm, {}).update(_pick(manifest.metrics, FIGURES, "evaluate/model/"))
        elif verb == "recaption":
            found.setdefault(arm, {}).update(_pick(manifest.metrics, WRITTEN))
    for arm in ("0", "3"):
        found[f"{arm}_tuned_longer"] = _tune_longer(manifests, arm)
    found["0"] |= _pick(manifests["recaption-1"].metrics, WEB)
    after = manifests["evaluate-specialists"].metrics
    for arm in ("reader", "relater"):
        found[arm] = _pick(after, FIGURES, f"evaluate/{arm}/")
    return found


def _tune_longer(manifests: dict[str, Any], arm: str) -> dict[str, float]:
    """Repeat the instruction tuning of an arm with three times the steps, and evaluate it."""
    from consomme.base.recipe import load_recipe
    from consomme.pipelines.evaluate import run as evaluate
    from consomme.pipelines.evaluate.recipe import EvaluateRecipe
    from consomme.pipelines.train import run as train
    from consomme.pipelines.train.recipe import TrainRecipe

    def again(schema: Any, stage: str, *words: str) -> Any:
        url = manifests[f"{stage}-{arm}"].url
        return load_recipe(schema, Path(url, "recipe.yaml"), [f"name={stage}-{arm}-longer", *words])

    steps = 3 * manifests[f"tune-{arm}"].recipe["num_steps"]
    tuned = train.run(again(TrainRecipe, "tune", f"num_steps={steps}"))
    judge = again(EvaluateRecipe, "evaluate", f"models.model={tuned.url}")
    return _pick(evaluate.run(judge).metrics, FIGURES, "evaluate/model/")


def _pick(metrics: Any, names: dict[str, str], prefix: str = "") -> dict[str, float]:
    return {short: float(metrics[prefix + name]) for short, name in names.items()}


if __name__ == "__main__":
    make_base(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1)
