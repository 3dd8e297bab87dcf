"""`assemble` as a verb: its recipes, what it records, and what other verbs make of its models."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.every_verb import run_verb

from consomme.base.errors import CheckpointError
from consomme.base.recipe import load_recipe, recipe_problems
from consomme.models.weights import open_vlm
from consomme.ops.verify import verify
from consomme.pipelines.assemble.recipe import AssembleRecipe
from consomme.pipelines.assemble.run import run
from consomme.storage.model_folder import model_folder
from consomme.storage.stores.open import open_store
from consomme.storage.stores.store import join_url

RECIPES = Path(__file__).parents[3] / "recipes" / "assemble"
NANO = "package://models/nano"
SMALL = {
    "language_shape": {"family": "qwen2", "width": 64, "layers": 4, "heads": 2, "ffn": 96},
    "tokenizer": NANO,
}


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("nano", "LlavaForConditionalGeneration"),
        ("cross_attention", "ConsommeVlmForConditionalGeneration"),
    ],
)
def test_the_shipped_recipes_assemble_and_run_once(name: str, made: str, tmp_path: Path) -> None:
    recipe = load_recipe(AssembleRecipe, RECIPES / f"{name}.yaml", [f"root={tmp_path}"])
    manifest = run(recipe)
    assert manifest.decisions["class"] == made
    assert bool(manifest.decisions["not_standard_because"]) == made.startswith("Consomme")
    assert manifest.counts["vision_encoder"] == 1_363_680
    model, _ = open_vlm(f"{manifest.url}/model")
    nano, _ = open_vlm(Path(__file__).parents[3] / "platform/consomme/models/nano")
    ours = (model.model if hasattr(model, "model") else model).vision_tower.state_dict()
    theirs = nano.model.vision_tower.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert run(recipe).is_found


@pytest.mark.slow
def test_parts_and_result_in_a_bucket(s3_root: str, tmp_path: Path) -> None:
    store = open_store(s3_root)
    for file in Path(model_folder(NANO)).iterdir():
        if file.is_file():
            store.write(f"nano/{file.name}", file.read_bytes())
    nano = join_url(s3_root, "nano")
    parts = {**SMALL, "vision_encoder": nano, "tokenizer": nano}
    made = run_verb("assemble", name="there", root=s3_root, **parts)
    assert verify(made.url).problems == ()
    here = run_verb("assemble", name="there", root=str(tmp_path), vision_encoder=NANO, **SMALL)
    assert made.fingerprint == here.fingerprint, "the same parts, wherever they lie"
    weights = "model/model.safetensors"
    found = open_store(made.url).read(weights)
    assert found == Path(here.url, weights).read_bytes()
    model, _ = open_vlm(model_folder(made.url))
    assert model.num_parameters() > 1_363_680
    assert run_verb("assemble", name="there", root=s3_root, **parts).is_found


def test_a_model_grows_in_a_run(tmp_path: Path) -> None:
    made = run_verb("assemble", name="grown", root=str(tmp_path), model=NANO, image_px=96)
    assert verify(made.url).problems == ()
    assert made.counts["image_tokens"] == 64
    model, processor = open_vlm(f"{made.url}/model")
    assert model.config.vision_config.image_size == 96
    assert dict(processor.image_processor.size) == {"height": 96, "width": 96}
    assert run_verb(
        "assemble", name="grown", root=str(tmp_path), model=model_folder(NANO), image_px=96
    ).is_found
    other = run_verb("assemble", name="grown", root=str(tmp_path), model=NANO, image_px=72)
    assert other.fingerprint != made.fingerprint


def test_the_seed_decides_what_is_random(tmp_path: Path) -> None:
    connectors = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        made = run_verb(
            "assemble", name=name, root=str(tmp_path), vision_encoder=NANO, seed=seed, **SMALL
        )
        model, _ = open_vlm(f"{made.url}/model")
        connectors.append(
            [p for n, p in model.named_parameters() if "vision_tower" not in n and p.ndim > 1]
        )
    a, b, c = connectors
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(a, c, strict=True))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({**SMALL}, "vision_encoder: found neither of vision_encoder and vision_shape"),
        ({"vision_encoder": "a", "vision_shape": {}, **SMALL}, "found both of vision_encoder"),
        ({"vision_encoder": "a"}, "language_model: found neither"),
        ({"vision_encoder": "a", "language_shape": {}}, "tokenizer: expected a model's name"),
        (
            {"vision_encoder": "a", "split": True, "connector": {"name": "average"}, **SMALL},
            "split: no class of transformers",
        ),
        ({"vision_encoder": "a", "vision_layer": -3, **SMALL}, "vision_layer: found -3"),
        ({"vision_encoder": "a", "connector": {"name": "qformer"}, **SMALL}, "connector"),
        (
            {
                "vision_encoder": "a",
                "split": True,
                "connector": {"name": "perceiver"},
                "tiling": {"name": "catty"},
                **SMALL,
            },
            "split, tiling: found both",
        ),
    ],
)
def test_wrong_recipes_are_told(values: dict[str, Any], said: str) -> None:
    problems = recipe_problems(AssembleRecipe, {"name": "x", **values})
    assert any(said in problem for problem in problems), problems


def test_parts_are_taken_out_of_vlms(tmp_path: Path, debug_vlm: Path) -> None:
    made = run_verb(
        "assemble",
        name="x",
        root=str(tmp_path),
        vision_encoder=str(debug_vlm),
        language_model=NANO,
        connector={"name": "average"},
        dtype="float32",
    )
    assert made.counts["image_tokens"] == 4
    model, _ = open_vlm(f"{made.url}/model")
    nano, words = open_vlm(Path(__file__).parents[3] / "platform/consomme/models/nano")
    ids = torch.tensor([words.tokenizer("what color is the circle?")["input_ids"]])
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, nano(input_ids=ids).logits)
    # And out of our own class again.
    again = run_verb(
        "assemble",
        name="again",
        root=str(tmp_path),
        vision_encoder=made.url,
        language_model=made.url,
    )
    llava, _ = open_vlm(f"{again.url}/model")
    with torch.no_grad():
        assert torch.equal(llava(input_ids=ids).logits, nano(input_ids=ids).logits)
    with pytest.raises(CheckpointError, match="expected CLIP, SigLIP or SigLIP 2"):
        run_verb("assemble", name="y", root=str(tmp_path), vision_encoder=_llama(tmp_path), **SMALL)


def _llama(tmp_path: Path) -> str:
    from tests.support.assembled import language

    part = language()
    part.model.save_pretrained(tmp_path / "llama")
    part.tokenizer.save_pretrained(tmp_path / "llama")
    return str(tmp_path / "llama")


LATENTS = {"name": "perceiver", "latents": 6, "heads": 2, "head_dim": 16, "kv_heads": 1}
ASSEMBLIES: dict[str, dict[str, Any]] = {
    "both": {
        "vision_encoder": NANO, "ocr_encoder": NANO, "connector": LATENTS,
        "fusion": {"name": "cross_attention", "every": 2},
    },
    "native": {
        "vision_shape": {"family": "siglip2", "width": 48, "layers": 2, "heads": 2, "ffn": 64},
        "connector": {"name": "pixel_shuffle", "layers": 2},
    },
    "llava": {"vision_encoder": NANO},
    "onevision": {"vision_encoder": NANO, "split": True},
    "tiled": {
        "vision_encoder": NANO, "connector": {"name": "average"},
        "tiling": {"name": "catty", "tile_px": 60, "max_tiles": 2},
    },
    "idefics2": {
        "vision_shape": {"width": 48, "layers": 2, "heads": 2, "ffn": 64}, "connector": LATENTS,
    },
    "idefics3": {
        "vision_shape": {"width": 48, "layers": 2, "heads": 2, "ffn": 64},
        "connector": {"name": "pixel_shuffle"},
    },
}  # fmt: skip


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.parametrize("kind", ASSEMBLIES)
def test_every_verb_takes_what_was_assembled(kind: str, root: str, pairs: Any) -> None:
    data = f"{pairs.url}/data"
    start = run_verb("assemble", name="start", root=root, **ASSEMBLIES[kind], **SMALL).url
    rejects = {"max_reject_fraction": 0.2}
    learned = {
        "data": [{"inputs": [data]}],
        "num_steps": 6,
        "global_batch": 8,
        "export_dtype": "float32",
        **rejects,
    }
    states = {"projector": {"state": "full"}, "language_model": {"state": "frozen"}}
    aligned = run_verb(
        "train", name="aligned", root=root, model=start, lr=0.01, **learned, **states
    )
    tuned = [
        run_verb("train", name=f"tuned-{seed}", root=root, model=aligned.url, seed=seed, **learned)
        for seed in (0, 1)
    ]
    before, _ = open_vlm(f"{start}/model")
    after, _ = open_vlm(f"{aligned.url}/model")
    moved = {
        name
        for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(old, new)
    }
    assert moved
    assert all(re.search(r"connector|cross_blocks|projector|newline", name) for name in moved)
    asked = {"name": "scene_questions", "num": 2}
    soup = run_verb(
        "soup",
        name="mixed",
        root=root,
        ingredients={"a": tuned[0].url, "b": tuned[1].url},
        benchmark=asked,
    )
    answers = run_verb(
        "evaluate",
        name="answers",
        root=root,
        models={"start": start, "soup": f"{soup.url}/uniform"},
        benchmarks=[{"name": "scene_captions", "num": 2}],
    )
    assert len(answers.metrics) >= 2
    scores = run_verb("score", name="by", root=root, inputs=[data], model=aligned.url, **rejects)
    assert scores.counts["samples"] == pairs.counts["samples"] - scores.counts["rejected"]
    assert scores.counts["rejected"] == 2
    half = {"name": "highest_fraction", "column": "image_gain", "fraction": 0.1}
    view = run_verb("filter", name="some", root=root, scores=scores.url, keep=half).url
    written = run_verb(
        "recaption",
        name="written",
        root=root,
        view=view,
        model=f"{soup.url}/uniform",
        engine={"name": "transformers"},
        max_tokens=8,
        **rejects,
    )
    # What random weights write is no caption, so few texts stay.
    assert written.counts["asked"] > 0
