"""CLIP scores by the verb: equal to plain transformers, cached, found again, resumed."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.evaluate.test_file_kinds import in_text
from tests.support import image_models

from consomme.base.errors import CheckpointError, RecipeError
from consomme.evaluate.clip_score import ToCompare
from consomme.models.imports import import_transformers
from consomme.ops.verify import verify
from consomme.pipelines.evaluate import run as evaluate
from consomme.pipelines.evaluate.clip_scores import compare
from consomme.pipelines.evaluate.in_memory import check_needs_no_judge
from consomme.pipelines.evaluate.kept import read_answers
from consomme.pipelines.evaluate.recipe import EvaluateRecipe
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.model_folder import model_folder
from consomme.storage.stores.open import open_store

PREFIX = "A photo depicts "
COLORS = ("red", "blue", "green", "white", "black")


def png(color: str, width: int = 40) -> bytes:
    out = io.BytesIO()
    image = Image.new("RGB", (width, 32), color)
    image.paste((90, 160, 30), (5, 5, 20, 18))
    image.save(out, "PNG")
    return out.getvalue()


def cosine(folder: str, image: bytes, text: str) -> float:
    """As transformers has it, one pair at a time."""
    hf = import_transformers()
    model = hf.AutoModel.from_pretrained(folder)
    processor = hf.AutoProcessor.from_pretrained(folder)
    is_siglip = "siglip" in model.config.model_type
    inputs = processor(
        text=[PREFIX + text],
        images=[Image.open(io.BytesIO(image)).convert("RGB")],
        return_tensors="pt",
        truncation=True,
        padding="max_length" if is_siglip else True,
        max_length=12,
    )
    with torch.no_grad():
        out = model(**inputs)
    return float(torch.cosine_similarity(out.image_embeds, out.text_embeds))


@pytest.mark.parametrize("kind", ["clip", "siglip", "altclip"])
def test_cosines_are_those_of_plain_transformers(tmp_path: Path, kind: str) -> None:
    folder = str(image_models.dual_encoder(tmp_path, kind))
    texts = ["a red house with two dog", "blue tree", "the cat on a tree in the house of one dog"]
    some = [
        ToCompare(images=(png("red"),), caption=texts[0], references=(texts[1],)),
        ToCompare(images=(png("red"), png("blue", 64)), caption=texts[1]),
        ToCompare(images=(png("green", 90),), caption=texts[2]),
    ]
    found = [one for one in compare(folder, "float32", PREFIX, some) if one]
    one = [cosine(folder, image, texts[1]) for image in some[1].images]
    assert found[0]["image"] == pytest.approx(cosine(folder, png("red"), texts[0]), abs=1e-5)
    assert found[1]["image"] == pytest.approx(sum(one) / 2, abs=1e-5)
    assert found[1]["reference"] is None
    assert -1 <= found[0]["reference"] < 1
    assert [each["is_cut"] for each in found] == [False, False, True]
    # Who else is compared at the same time changes nothing.
    (alone,) = compare(folder, "float32", PREFIX, some[2:])
    assert alone
    assert alone["image"] == pytest.approx(found[2]["image"], abs=1e-6)


def recipe(folder: Path, encoder: Path, **more: Any) -> EvaluateRecipe:
    return EvaluateRecipe(
        name="clip",
        models={"nano": "package://models/nano"},
        benchmarks=(
            {
                "name": "caption",
                "file": str(folder / "pictures.jsonl"),
                "metric": "clip_score",
                "max_tokens": 8,
                "clip_score": {"model": str(encoder)},
                **more,
            },
        ),
        root=str(folder / "runs"),
        num_actors=1,
    )


@pytest.mark.ray
@pytest.mark.slow
def test_captions_are_compared_on_the_cluster(tmp_path: Path, lent_ray: None) -> None:
    encoder = image_models.dual_encoder(tmp_path / "clip", "clip")
    rows = [{"image": in_text(color)} for color in COLORS]
    file = tmp_path / "pictures.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first = evaluate.run(recipe(tmp_path, encoder))
    folder = RunFolder.at(first.url)
    answers = read_answers(folder.store).to_pylist()
    judged = [json.loads(row["judged"]) for row in answers]
    expected = [2.5 * max(one["image"], 0) for one in judged]
    assert first.metrics["evaluate/nano/pictures/clip_score"] == pytest.approx(sum(expected) / 5)
    assert [row["verdict"] for row in answers] == [max(one["image"], 0) for one in judged]
    assert any(row["answer"] for row in answers)
    assert verify(first.url).problems == ()
    # An encoder that is moved is the same; another one is another run, with the same captions.
    moved = encoder.rename(tmp_path / "moved")
    assert evaluate.run(recipe(tmp_path, moved)).is_found
    other = image_models.dual_encoder(tmp_path / "other", "siglip")
    again = evaluate.run(recipe(tmp_path, other))
    assert not again.is_found
    assert again.counts.get("units", 0) == 0
    assert read_answers(RunFolder.at(again.url).store)["answer"].to_pylist() == [
        row["answer"] for row in answers
    ]


def test_choosers_refuse_it(tmp_path: Path) -> None:
    (tmp_path / "pictures.jsonl").write_text(json.dumps({"image": in_text("red")}) + "\n")
    (node,) = recipe(tmp_path, tmp_path / "clip").benchmarks
    with pytest.raises(RecipeError, match=r"benchmark\.clip_score: found one"):
        check_needs_no_judge({"benchmark": node})


def test_another_kind_of_model_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    (tmp_path / "pictures.jsonl").write_text(json.dumps({"image": in_text("red")}) + "\n")
    nano = model_folder("package://models/nano")
    with pytest.raises(CheckpointError, match="found a llava model"):
        evaluate.open_run(recipe(tmp_path, Path(nano)))


@pytest.mark.ray
@pytest.mark.long
def test_everything_in_a_bucket(tmp_path: Path, one_ray: object, s3_root: str) -> None:
    store = open_store(s3_root)
    encoder = image_models.dual_encoder(tmp_path / "clip", "clip")
    for path in encoder.iterdir():
        store.write(f"clip/{path.name}", path.read_bytes())
    rows = "".join(json.dumps({"image": in_text(color)}) + "\n" for color in COLORS)
    store.write("pictures.jsonl", rows.encode())
    (tmp_path / "pictures.jsonl").write_text(rows)
    here = recipe(tmp_path, encoder)
    (node,) = here.benchmarks
    clip = {"model": f"{s3_root}/clip"}
    node = {**node, "file": f"{s3_root}/pictures.jsonl", "clip_score": clip}
    there = evaluate.run(replace(here, root=f"{s3_root}/runs", benchmarks=(node,)))
    assert verify(there.url).problems == ()
    name = "evaluate/nano/pictures/clip_score"
    assert there.metrics[name] == evaluate.run(here).metrics[name]
