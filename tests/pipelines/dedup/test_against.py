"""Decontamination: what is of a benchmark is found, named and left out; nothing else is."""

import base64
import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps
from tests.support.dedup_runs import deduped, hashed, kept, written

from consomme.base.errors import RecipeError
from consomme.base.manifest import Manifest
from consomme.base.sample import ImageFile, Sample, Turn, caption_turns
from consomme.datasets import scenes
from consomme.ops.verify import verify
from consomme.pipelines.dedup import report as report_dedup
from consomme.pipelines.dedup import run as dedup
from consomme.pipelines.dedup.against import read_contaminated
from consomme.pipelines.dedup.preview import preview
from consomme.pipelines.dedup.recipe import DedupRecipe
from consomme.storage.ledger.run_folder import RunFolder

NUM_ASKED = 12
"""Scenes of the benchmark; the data have forty others."""

THINGS = ("kettle", "ladder", "pigeon", "violin", "candle", "bucket", "anchor", "pillow", "turnip",
          "walnut", "magnet", "saddle")  # fmt: skip


def question(number: int) -> str:
    thing = THINGS[number]
    return f"Somebody put a {thing} beside the {thing} that we saw: which colour has that {thing}?"


def picture(seed: int) -> Image.Image:
    return scenes.render(scenes.make_scene(seed)).convert("RGB")


def encoded(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def benchmark(folder: Path) -> dict[str, Any]:
    rows = ["index\tquestion\tA\tB\tanswer\timage"]
    for k in range(NUM_ASKED):
        text = base64.b64encode(encoded(picture(k))).decode()
        rows.append(f"{k}\t{question(k)}\tred\tblue\tA\t{text}")
    path = folder / "asked.tsv"
    path.write_text("\n".join(rows) + "\n")
    return {"name": "multiple_choice", "file": str(path)}


def sample(name: str, *images: bytes, text: str = "") -> Sample:
    return Sample(
        sample_id=name,
        images=tuple(ImageFile(data=one, name=f"{name}.{k}.png") for k, one in enumerate(images)),
        turns=caption_turns(text or f"caption of {name}") if images else (
            Turn(role="user", content=text or "What is it?"), Turn(role="assistant", content="It.")
        ),
        source="data",
    )  # fmt: skip


EDITS: Mapping[str, Any] = {
    "same": lambda image: encoded(image),
    "large": lambda image: encoded(image.resize((120, 120), Image.Resampling.BICUBIC)),
    "jpeg": lambda image: encoded(image.resize((160, 160)), "JPEG", quality=60),
    "webp": lambda image: encoded(image, "WEBP", quality=80),
}


def planted() -> tuple[list[Sample], dict[str, tuple[str, int]]]:
    """The data, and what is to be found: id -> (how, question)."""
    samples = [sample(f"other-{k}", encoded(picture(1000 + k))) for k in range(40)]
    truth: dict[str, tuple[str, int]] = {}
    for number, (name, edit) in enumerate(EDITS.items()):
        for k in range(3 * number, 3 * number + 3):
            samples.append(sample(f"{name}-{k}", edit(picture(k))))
            truth[f"{name}-{k}"] = ("exact" if name == "same" else "near", k)
    samples.append(
        sample("quoted", encoded(picture(2000)), text=f"Q: {question(4).upper()} A: red")
    )
    samples.append(sample("text-only", text=f"Please: {question(5)}"))
    truth |= {"quoted": ("text", 4), "text-only": ("text", 5)}
    samples.append(
        sample("many", encoded(picture(2001)), encoded(picture(7)), encoded(picture(2002)))
    )
    truth["many"] = ("exact", 7)
    samples.append(sample("text-free", text="Write a poem about the sea."))
    samples.append(sample("mirror", encoded(ImageOps.mirror(picture(3)))))
    samples.append(sample("twice-1", encoded(picture(1000))))
    return samples, truth


def recipe(folder: Path, **options: Any) -> DedupRecipe:
    samples, _ = planted()
    data = written(folder / "data", samples)
    return DedupRecipe(
        name="clean", root=str(folder / "runs"), inputs=(data,), unit_rows=7,
        against=(benchmark(folder),), **options,
    )  # fmt: skip


def found_in(manifest: Manifest) -> dict[str, tuple[str, int]]:
    rows = read_contaminated(RunFolder.at(manifest.url))
    assert {row["benchmark"] for row in rows} == {"asked"}
    return {row["sample_id"]: (row["found_by"], row["question"]) for row in rows}


@pytest.mark.ray
def test_planted_copies_and_quotes_are_found_and_nothing_else(
    tmp_path: Path, lent_ray: None
) -> None:
    samples, truth = planted()
    clean = recipe(tmp_path)
    manifest = dedup.run(clean)
    # Recall and precision are 1: each planted sample, by the right question, and no other.
    assert found_in(manifest) == truth
    assert manifest.counts["contaminated"] == len(truth)
    assert manifest.counts["samples"] == len(samples)
    # Copies inside the data go as before.
    gone = {one.sample_id for one in samples} - kept(manifest.url)
    assert len(gone - set(truth)) == 1
    assert gone - set(truth) < {"other-0", "twice-1"}
    assert manifest.decisions["against"]["asked"] == {
        "questions": NUM_ASKED,
        "images": NUM_ASKED,
        "texts": 4 * NUM_ASKED,
        "texts_compared": NUM_ASKED,
        "samples_by_image": 13,
        "samples_by_text": 2,
        "questions_found": 12,
    }
    many = [r for r in read_contaminated(RunFolder.at(manifest.url)) if r["sample_id"] == "many"]
    assert [row["image_index"] for row in many] == [1]
    assert not verify(manifest.url).problems
    section = report_dedup.sections([manifest], {})[0]
    assert f"{len(truth)} samples show an image of a benchmark" in section.lead_text
    # Copies stay, if that is said; what is of the benchmark goes all the same.
    only = dedup.run(replace(clean, name="only", keep_copies=True))
    assert {one.sample_id for one in samples} - kept(only.url) == set(truth)
    assert dedup.run(clean).is_found
    # Another benchmark is another run.
    path = tmp_path / "asked.tsv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    again = dedup.run(clean)
    assert again.counts["contaminated"] == len(truth) - 1


def test_hashes_of_before_are_compared_with_images_only(tmp_path: Path) -> None:
    samples, truth = planted()
    hashes = hashed(tmp_path, written(tmp_path / "data", samples), 7)
    manifest = deduped(tmp_path, hashes, against=(benchmark(tmp_path),), against_words=None)
    assert found_in(manifest) == {k: v for k, v in truth.items() if v[0] != "text"}
    flipped = deduped(
        tmp_path, hashes, against=(benchmark(tmp_path),), against_words=None, flips=True
    )
    assert found_in(flipped)["mirror"] == ("near", 3)
    exact = deduped(
        tmp_path, hashes, against=(benchmark(tmp_path),), against_words=None, max_distance=None
    )
    assert set(found_in(exact).values()) == {v for v in truth.values() if v[0] == "exact"}


def test_all_of_the_data_can_be_of_a_benchmark(tmp_path: Path) -> None:
    samples = [sample(f"same-{k}", encoded(picture(k))) for k in range(4)]
    hashes = hashed(tmp_path, written(tmp_path / "data", samples), 3)
    manifest = deduped(tmp_path, hashes, against=(benchmark(tmp_path),), against_words=None)
    assert (manifest.counts["kept"], manifest.counts["contaminated"]) == (0, 4)
    assert kept(manifest.url) == set()


def test_an_image_is_of_the_benchmark_even_if_another_sample_is_nearer(tmp_path: Path) -> None:
    own = picture(3)
    samples = [
        sample("far", encoded(own.resize((150, 150)), "JPEG", quality=50)),
        sample("near", encoded(own.resize((149, 149)), "JPEG", quality=50)),
    ]
    hashes = hashed(tmp_path, written(tmp_path / "data", samples), 3)
    manifest = deduped(tmp_path, hashes, against=(benchmark(tmp_path),), against_words=None)
    assert set(found_in(manifest)) == {"far", "near"}


def test_scenes_that_are_asked_about_are_found(tmp_path: Path) -> None:
    node = {"name": "scene_questions", "num": 40, "first_seed": 7000}
    samples = [sample(f"s{seed}", encoded(picture(seed))) for seed in (7000, 7001, 9000)]
    hashes = hashed(tmp_path, written(tmp_path / "data", samples), 3)
    manifest = deduped(tmp_path, hashes, against=(node,), against_words=None)
    rows = read_contaminated(RunFolder.at(manifest.url))
    assert {row["sample_id"] for row in rows} == {"s7000", "s7001"}


def test_a_preview_counts_what_is_of_a_benchmark(tmp_path: Path) -> None:
    _, truth = planted()
    shown = preview(recipe(tmp_path))
    rows = dict(shown.table["rows"])
    assert rows["of a benchmark"] == str(len(truth))
    assert "Benchmarks in the data" in Path(shown.page).read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"against": ({"name": "open", "file": "x.tsv", "blank": True},)}, "against[0].blank"),
        ({"keep_copies": True}, "keep_copies: found true without against"),
        ({"hashes": "runs/x", "inputs": (), "against": ({"name": "open", "file": "x.tsv"},)},
         "against_words: found 8 with hashes"),
        ({"against": ({"name": "open", "file": "x.tsv"}, {"name": "open", "file": "y/x.tsv"})},
         "called x in tables"),
    ],
)  # fmt: skip
def test_what_means_nothing_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as raised:
        DedupRecipe(**{"name": "no", "inputs": ("data",), **options})
    assert message in str(raised.value)
