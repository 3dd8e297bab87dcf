"""Compositional tests in the layouts in which their files are published, by their own rules."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.evaluate.test_likelihoods import answer

from consomme.base.errors import RecipeError
from consomme.evaluate.benchmarks import BENCHMARKS, describe
from consomme.evaluate.names import benchmark_name


def save(folder: Path, name: str, size: tuple[int, int] = (40, 30)) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size)
    for x in range(size[0]):
        for y in range(size[1]):
            image.putpixel((x, y), (x, y, 0))
    image.save(path.with_suffix(".png"))
    path.with_suffix(".png").rename(path)
    return name


def write_json(folder: Path, name: str, content: Any) -> str:
    path = folder / name
    path.write_text(json.dumps(content))
    return str(path)


def build(name: str, file: str, **options: Any) -> Any:
    return BENCHMARKS.build({"name": name, "file": file, **options})


def aro(folder: Path, **more: Any) -> list[dict[str, Any]]:
    save(folder / "images", "1.jpg")
    return [
        {"image_id": "1", "image_path": "1.jpg", "bbox_x": 5, "bbox_y": 10, "bbox_w": 20,
         "bbox_h": 8, "true_caption": f"the dog is {relation} the cat",
         "false_caption": f"the cat is {relation} the dog", "relation_name": relation, **more}
        for relation in ("on", "on", "on", "behind")
    ]  # fmt: skip


def test_aro_relation_is_cropped_and_a_mean_over_relations(tmp_path: Path) -> None:
    file = write_json(tmp_path, "visual_genome_relation.json", aro(tmp_path))
    benchmark = build("aro_relation", file, image_root=str(tmp_path / "images"))
    item = benchmark.items()[0]
    assert item.images[0].size == (20, 8)
    # JPEG is not exact.
    assert abs(item.images[0].getpixel((10, 4))[0] - 15) < 8
    assert benchmark.candidates(0) == {"0": "the dog is on the cat", "1": "the cat is on the dog"}
    found = benchmark.measure([answer(1, 2), answer(2, 1), answer(2, 1), answer(1, 2)])
    assert next(iter(found)) == "macro_accuracy_fraction"
    assert found["macro_accuracy_fraction"] == pytest.approx((1 / 3 + 1) / 2)
    assert found["accuracy_fraction"] == 0.5
    assert found["accuracy_on_fraction"] == pytest.approx(1 / 3)
    whole = build("aro_relation", file, image_root=str(tmp_path / "images"), crops=False)
    assert whole.items()[0].images[0].size == (40, 30)
    with pytest.raises(RecipeError, match="cropped"):
        build("aro_relation", file, guidance={"alpha": 1})


def test_aro_attribution_counts_pairs_of_25_cases(tmp_path: Path) -> None:
    row = aro(tmp_path)[0]
    rows = [
        {**row, "attributes": ["white", "black"], "false_caption": f"{k}"} for k in range(25)
    ] + [{**row, "attributes": ["old", "new"]}]
    file = write_json(tmp_path, "visual_genome_attribution.json", rows)
    benchmark = build("aro_attribution", file, image_root=str(tmp_path / "images"))
    found = benchmark.measure([*[answer(1, 2)] * 20, *[answer(2, 1)] * 5, answer(2, 1)])
    assert found["macro_accuracy_fraction"] == 0.8
    assert found["num_categories"] == 1
    assert found["accuracy_fraction"] == pytest.approx(20 / 26)


def test_sugarcrepe_by_sub_kind_of_all_its_files(tmp_path: Path) -> None:
    save(tmp_path / "val2017", "000001.jpg")
    (tmp_path / "data").mkdir()
    for kind in ("swap_obj", "replace_att"):
        rows = {
            str(k): {"filename": "000001.jpg", "caption": f"{k} a cat", "negative_caption": "dogs"}
            for k in range(2)
        }
        write_json(tmp_path / "data", f"{kind}.json", rows)
    root = str(tmp_path / "val2017")
    benchmark = build("sugarcrepe", f"{tmp_path}/data/*.json", image_root=root)
    assert len(benchmark.items()) == 4
    assert benchmark.items()[0].images[0].size == (40, 30)
    found = benchmark.measure([answer(1, 2), answer(1, 2), answer(1, 2), answer(2, 1)])
    assert found["accuracy_replace_att_fraction"] == 1
    assert found["accuracy_swap_obj_fraction"] == 0.5
    assert found["macro_accuracy_fraction"] == 0.75
    one = build("sugarcrepe", f"{tmp_path}/data/swap_obj.json", image_root=root)
    assert one.measure([answer(1, 2)] * 2)["accuracy_swap_obj_fraction"] == 1
    assert one.data_version() != benchmark.data_version()


def test_whatsup_by_image_by_pair_and_by_set(tmp_path: Path) -> None:
    rows = []
    relations = ("left_of", "right_of", "on", "under")
    for thing in ("mug", "beer-bottle"):
        for relation in relations:
            path = save(tmp_path, f"data/controlled_images/{thing}_{relation}_armchair.jpeg")
            texts = [f"A {thing} {one} an armchair" for one in relations]
            true = texts.pop(relations.index(relation))
            rows.append({"image_path": path, "caption_options": [true, *texts]})
    file = write_json(tmp_path, "controlled_images_dataset.json", rows)
    benchmark = build("whatsup", file)
    assert benchmark.items()[0].truth == "A mug left_of an armchair"
    right, wrong = answer(1, 2, 3, 4), answer(3, 2, 1, 4)
    found = benchmark.measure([right, right, right, right, right, right, right, wrong])
    assert found["accuracy_fraction"] == 7 / 8
    assert found["pair_accuracy_fraction"] == 3 / 4
    assert found["set_accuracy_fraction"] == 1 / 2
    assert found["accuracy_under_fraction"] == 0.5
    assert found["chance_fraction"] == 0.25
    assert found["num_incomplete_sets"] == 0


def test_aro_order_has_four_shuffles_of_each_caption(tmp_path: Path) -> None:
    name = save(tmp_path, "val2014/a.jpg")
    captions = ["A brown dog sleeps on a red mat.", "Two small cats next to the old house!"]
    file = write_json(tmp_path, "coco_karpathy_test.json", [{"image": name, "caption": captions}])
    benchmark = build("aro_order", file)
    assert len(benchmark.items()) == 2
    options = benchmark.candidates(0)
    assert options["0"] == "a brown dog sleeps on a red mat"
    assert len(options) == len(set(options.values())) == 5
    for text in options.values():
        assert sorted(text.split()) == sorted(options["0"].split())
    assert benchmark.measure([answer(1, 2, 3, 4, 5)] * 2)["accuracy_fraction"] == 1
    again = build("aro_order", file)
    assert again.candidates(1) == benchmark.candidates(1)


def test_any_captions_against_their_negatives(tmp_path: Path) -> None:
    name = save(tmp_path, "a.jpg")
    rows = [
        {"image": name, "caption": "a red dog and a blue cat"},
        {"image": name, "caption": "a dog"},
    ]
    file = write_json(tmp_path, "mine.json", rows)
    benchmark = build("negatives", file, kinds=["swap_att", "swap_obj"])
    assert set(benchmark.candidates(0).values()) == {
        "a red dog and a blue cat", "a blue dog and a red cat", "a red cat and a blue dog"
    }  # fmt: skip
    # What no rule changes cannot be asked, and is counted.
    found = benchmark.measure([answer(1, 2, 3)])
    assert found["num_unreadable_rows"] == 1
    assert found["accuracy_fraction"] == 0.5
    with pytest.raises(RecipeError, match="swap_obj"):
        build("negatives", file, kinds=["swap_objects"])


def test_winoground_has_its_tags(tmp_path: Path) -> None:
    rows = [
        {"image_0": save(tmp_path, "a.jpg"), "image_1": save(tmp_path, "b.jpg"), "caption_0": "a b",
         "caption_1": "b a", "collapsed_tag": "Object"}
    ]  # fmt: skip
    benchmark = build("winoground", write_json(tmp_path, "winoground.json", rows))
    found = benchmark.measure([answer(1, 2), answer(2, 1)])
    assert found["group_score_fraction"] == found["accuracy_Object_fraction"] == 1


def test_scenes_have_sets_and_negatives() -> None:
    places = BENCHMARKS.build({"name": "scene_places", "num": 2})
    assert len(places.items()) == 8
    found = places.measure([answer(1, 2, 3, 4)] * 7 + [answer(2, 1, 3, 4)])
    assert found["accuracy_fraction"] == 7 / 8
    assert found["pair_accuracy_fraction"] == 3 / 4
    assert found["set_accuracy_fraction"] == 1 / 2
    made = BENCHMARKS.build({"name": "scene_negatives", "num": 10})
    assert made.measure([answer(1, 2)] * 10)["accuracy_swap_att_fraction"] == 1
    assert all(len(item.meta["boxes"]) >= 1 for item in made.items())


def test_guidance_decides_answers_so_it_is_in_the_key_and_the_name() -> None:
    node: dict[str, Any] = {"name": "scene_questions", "num": 2}
    plain = BENCHMARKS.build(node)
    assert "guidance" not in describe(plain)
    others = [
        {"alpha": 1}, {"alpha": 0.5}, {"mask": "blur"}, {"area": "hull"},
        {"boxes": {"name": "data", "scale": 1000}}, {"boxes": {"name": "model"}},
    ]  # fmt: skip
    keys = {describe(BENCHMARKS.build({**node, "guidance": one})) for one in others}
    assert len(keys) == len(others)
    assert describe(plain) not in keys
    assert benchmark_name({**node, "guidance": {"alpha": 1}}) == "scene_questions_guided_1"
    assert (
        benchmark_name({**node, "guidance": {"alpha": 0.5, "area": "hull"}})
        == "scene_questions_guided_0.5_hull"
    )


def test_wrong_guidance_is_said(tmp_path: Path) -> None:
    name = save(tmp_path, "a.jpg")
    file = write_json(tmp_path, "q.json", [{"image": name, "question": "a?", "answer": "yes"}])
    with pytest.raises(RecipeError, match="alpha"):
        build("yes_no", file, guidance={"alpha": -1})
    with pytest.raises(RecipeError, match="outlines"):
        build("yes_no", file, guidance={"area": "segments", "boxes": {"name": "model"}})
    with pytest.raises(RecipeError, match="detektor"):
        build("yes_no", file, guidance={"boxes": {"name": "detektor"}})
    with pytest.raises(RecipeError, match="text_only"):
        build("yes_no", file, text_only=True, guidance={})
    from consomme.base.errors import DataError

    with pytest.raises(DataError, match="boxes"):
        build("yes_no", file, guidance={}).items()
