"""CLIP score: the formulas of its paper, and what counts for captions that are not compared."""

import json
from pathlib import Path

import pytest
from tests.evaluate.test_file_kinds import in_text

from consomme.base.errors import DataError, RecipeError
from consomme.evaluate.benchmarks import BENCHMARKS
from consomme.evaluate.clip_score import Compared, split_cosines, with_cosines

COSINES = [0.3, -0.1, 0.25]
REFERENCES = [0.8, 0.4, -0.2]
WITH_CLIP = {"clip_score": {"model": "some/clip"}}


def write(folder: Path, *, has_captions: bool, bad: int = 0) -> str:
    path = folder / "pictures.jsonl"
    rows = [
        {"image": in_text(color), "category": color}
        | ({"captions": [f"a {color} picture", f"all is {color}"]} if has_captions else {})
        for color in ("red", "green", "blue")
    ]
    rows += [{"captions": ["no picture"]}] * bad
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def said(with_references: bool = True) -> list[str]:
    pairs = zip(COSINES, REFERENCES, strict=True)
    return [
        with_cosines(
            "a red picture",
            Compared(image=one, reference=other if with_references else None, is_cut=not k),
        )
        for k, (one, other) in enumerate(pairs)
    ]


def test_scores_are_those_of_the_paper(tmp_path: Path) -> None:
    node = {"name": "caption", "file": write(tmp_path, has_captions=True), **WITH_CLIP}
    found = BENCHMARKS.build(node | {"metric": "clip_score"}).measure(said())
    assert next(iter(found)) == "clip_score"
    clip = [2.5 * max(cosine, 0) for cosine in COSINES]
    assert found["clip_score"] == pytest.approx(sum(clip) / 3)
    # Worked by hand: 2 · 0.75 · 0.8 / 1.55; no cosine of the others is positive on both sides.
    assert found["ref_clip_score"] == pytest.approx(2 * 0.75 * 0.8 / 1.55 / 3)
    assert found["clip_score_low"] <= found["clip_score"] <= found["clip_score_high"]
    assert found["clip_score_blue"] == pytest.approx(clip[2])
    assert (found["num_captions_cut"], found["num_not_compared"]) == (1, 0)
    # CIDEr-D is there too, as it is without an encoder.
    plain = BENCHMARKS.build({k: v for k, v in node.items() if k != "clip_score"})
    of_people = plain.measure(["a red picture"] * 3)
    assert found["cider"] == of_people["cider"] > 0
    beside = BENCHMARKS.build(node).measure(said())
    assert next(iter(beside)) == "cider"
    assert beside["clip_score"] == found["clip_score"]


def test_captions_by_people_are_not_needed(tmp_path: Path) -> None:
    file = write(tmp_path, has_captions=False, bad=2)
    node = {"name": "caption", "file": file, "metric": "clip_score", **WITH_CLIP}
    benchmark = BENCHMARKS.build(node)
    found = benchmark.measure(
        [*said(with_references=False)[:2], with_cosines("a red picture", None)]
    )
    # Rows that cannot be asked, and what the encoder cannot take, count as 0.
    assert found["clip_score"] == pytest.approx(2.5 * 0.3 / 5)
    assert (found["num_unreadable_rows"], found["num_not_compared"]) == (2, 1)
    assert not {"cider", "bleu_4", "ref_clip_score"} & set(found)
    assert benchmark.verdicts(said())[:2] == [0.3, 0.0]
    assert benchmark.measure([""] * 3)["clip_score"] == 0
    with pytest.raises(DataError, match="it has no caption"):
        BENCHMARKS.build({"name": "caption", "file": file, **WITH_CLIP}).items()
    with pytest.raises(DataError, match="could be shown as an example"):
        BENCHMARKS.build(node | {"shots": 1}).items()


def test_what_is_compared_is_the_real_picture_and_the_bare_caption(tmp_path: Path) -> None:
    file = write(tmp_path, has_captions=True)
    plain, control = (
        BENCHMARKS.build({"name": "caption", "file": file, "blank": blank, **WITH_CLIP})
        for blank in (False, True)
    )
    texts = ["<think>hm</think>a red picture", "", "all is blue"]
    asked = plain.to_compare(texts)
    assert {number: one.caption for number, one in asked.items()} == {
        0: "a red picture",
        2: "all is blue",
    }
    assert asked[0].references == ("a red picture", "all is red")
    assert control.to_compare(texts) == asked


def test_an_encoder_is_named_and_answers_are_compared() -> None:
    with pytest.raises(RecipeError, match=r"metric clip_score expects \{model: a dual encoder\}"):
        BENCHMARKS.build({"name": "caption", "file": "x.jsonl", "metric": "clip_score"})
    clip = {"model": "some/clip", "dtype": "auto"}
    with pytest.raises(RecipeError, match="dtype: found 'auto'"):
        BENCHMARKS.build({"name": "caption", "file": "x.jsonl", "clip_score": clip})
    encoder = BENCHMARKS.build({"name": "caption", "file": "x.jsonl", **WITH_CLIP}).clip_score
    with pytest.raises(DataError, match="only evaluate compares them"):
        split_cosines("a bare caption", encoder)
    assert split_cosines("", encoder) == ("", None)
