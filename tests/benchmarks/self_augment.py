"""VILA²'s loop at nano scale, with controls, over several seeds.

    python tests/benchmarks/self_augment.py [seeds=3] [root=runs/self-augment] [key=value …]

Other keys are overrides of recipes/loop/self_augment.yaml. Each seed is a loop of its own; one that
was interrupted goes on. Writes `results/self_augment.json`.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "loop" / "self_augment.yaml"
RESULTS = Path(__file__).parent / "results" / "self_augment.json"
FIGURES = {
    "questions": "scene_questions_filled/accuracy_fraction",
    "true": "scene_captions_filled/true_claims_per_caption",
    "false": "scene_captions_filled/false_claims_per_caption",
    "text": "scene_ocr_filled/accuracy_fraction",
    "relations": "scene_spatial_filled/accuracy_fraction",
}


def make_base(folder: Path, seed: int) -> str:
    """Make the start of all trainings: the shipped vision encoder, everything else untrained."""
    from consomme.models.assembly import LlavaShape, build_llava, build_processor
    from consomme.models.weights import open_vlm, save_vlm
    from consomme.pipelines.checkpoints import model_folder

    if not (folder / "config.json").exists():
        nano, processor = open_vlm(model_folder("package://models/nano"))
        shape = LlavaShape(text_layers=4)
        model = build_llava(shape, processor.tokenizer, seed)
        weights = nano.model.vision_tower.state_dict()
        model.model.vision_tower.load_state_dict(weights)
        save_vlm(folder, model, build_processor(shape, processor.tokenizer))
    return str(folder)


def figures_of(metrics: dict[str, float]) -> dict[str, float]:
    return {name: metrics[f"evaluate/model/{key}"] for name, key in FIGURES.items()}


def run_seed(root: Path, seed: int, overrides: list[str]) -> dict[str, Any]:
    """Run one loop and gather its figures by what was trained on."""
    from consomme.base.recipe import load_recipe
    from consomme.pipelines import loop
    from consomme.storage.ledger import load_manifest

    base = make_base(root / f"base-{seed}", seed)
    words = [f"name=seed-{seed}", f"root={root}/seed-{seed}", f"values.base={base}"]
    recipe = load_recipe(loop.LoopRecipe, RECIPE, [*words, f"values.seed={seed}", *overrides])
    done = loop.run(recipe)
    parents = {m.name: m for m in (load_manifest(p.url) for p in done.parents)}
    found = {
        name.removeprefix("evaluate-"): figures_of(dict(manifest.metrics))
        for name, manifest in parents.items()
        if manifest.verb == "evaluate"
    }
    for name, manifest in parents.items():
        if name.startswith("recaption-"):
            number = name.removeprefix("recaption-")
            found[number] |= {
                f"caption_{what}": manifest.metrics[f"recaption/{key}"]
                for what, key in (
                    ("true", "after_true_claims"),
                    ("false", "after_false_claims"),
                    ("words", "words_per_caption"),
                )
            }
            before = {
                f"caption_{w}": manifest.metrics[f"recaption/before_{w}_claims"]
                for w in ("true", "false")
            }
            found["0"] |= before | {"caption_words": manifest.metrics["recaption/words_before"]}
    return found


def main(arguments: list[str]) -> None:
    options = {"seeds": "3", "root": "runs/self-augment"}
    options |= dict(a.split("=", 1) for a in arguments if a.split("=", 1)[0] in options)
    overrides = [a for a in arguments if a.split("=", 1)[0] not in options]
    began = time.monotonic()
    runs = [
        run_seed(Path(options["root"]).absolute(), seed, overrides)
        for seed in range(1, int(options["seeds"]) + 1)
    ]
    rows = []
    for arm in runs[0]:
        for name in runs[0][arm]:
            values = [run[arm][name] for run in runs]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            rows.append(
                {
                    "key": f"self_augment.{arm}.{name}",
                    "value": round(statistics.mean(values), 4),
                    "unit": "fraction"
                    if name in ("questions", "text", "relations")
                    else "per caption",
                    "baseline": "the start is arm 0",
                    "how": f"mean of {len(values)} seeds, spread {spread:.4f}",
                    "values": values,
                }
            )
    content = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU",
        "date": date.today().isoformat(),
        "seconds": round(time.monotonic() - began),
        "overrides": overrides,
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    for row in rows:
        sys.stdout.write(f"{row['key']:45} {row['value']:8.4f}  {row['how']}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
