"""Boxes in answers, and referring expressions from files."""

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.evaluate.test_file_kinds import picture

from consomme.base.errors import DataError, RecipeError
from consomme.evaluate.benchmarks import BENCHMARKS
from consomme.evaluate.grounding import box_in, overlap

IMAGE = base64.b64encode(picture("red", (16, 16))).decode()
QUARTER = (0.1, 0.2, 0.5, 0.6)


@pytest.mark.parametrize(
    ("answer", "scale"),
    [
        ("[100, 200, 500, 600]", 1000.0),
        ("It is at [[100,200,500,600]].", 1000.0),
        ("<|box_start|>(100,200),(500,600)<|box_end|>", 1000.0),
        ('```json\n[{"bbox_2d": [100, 200, 500, 600], "label": "cat 2"}]\n```', 1000.0),
        ("<ref>cat</ref><box>[[100, 200, 500, 600]]</box>", 1000.0),
        ("[0.1, 0.2, 0.5, 0.6]", 1.0),
        ("(10.0,40.0) (50.0,120.0)", (100.0, 200.0)),
        ("2 cats: [100 200 500 600]", 1000.0),
        ("The first: [1, 1, 1, 1] no, <loc0205><loc0102><loc0614><loc0512>", 1.0),
    ],
)
def test_boxes_are_read_as_models_write_them(
    answer: str, scale: float | tuple[float, float]
) -> None:
    assert box_in(answer, scale) == pytest.approx(QUARTER, abs=1e-3)


@pytest.mark.parametrize(
    "answer", ["", "no", "[1, 2, 3]", "[500, 600, 100, 200]", "a1 2 3 4", "[1,2,1,4]"]
)
def test_what_is_no_box_is_none(answer: str) -> None:
    assert box_in(answer, 1000.0) is None


boxes = st.tuples(*[st.integers(0, 40)] * 4).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]) + 1, max(b[1], b[3]) + 1)
)


@given(boxes, boxes)
def test_overlap_equals_a_count_of_cells(
    one: tuple[int, int, int, int], other: tuple[int, int, int, int]
) -> None:
    cells = [
        {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}
        for box in (one, other)
    ]
    assert overlap(one, other) == pytest.approx(len(cells[0] & cells[1]) / len(cells[0] | cells[1]))


def write(folder: Path, rows: list[dict[str, object]]) -> str:
    path = folder / "refcoco.json"
    path.write_text(json.dumps(rows))
    return str(path)


def test_a_file_is_measured(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"image": IMAGE, "question": "the cat", "bbox": [0, 0, 8, 8], "split": "testA"},
        {"image": IMAGE, "question": "the dog", "bbox": "[8, 8, 16, 16]", "split": "testB"},
        {"image": IMAGE, "question": "the cow", "bbox": [0, 8, 8, 16], "split": "testB"},
        {"image": IMAGE, "question": "nothing", "bbox": [4, 4, 4, 9], "split": "testB"},
        {"image": IMAGE, "question": "half", "bbox": [4, 4, 9], "split": "testB"},
        {"image": IMAGE, "question": "beyond", "bbox": [4, 4, 90, 90], "split": "testB"},
    ]
    node = {"name": "grounding", "file": write(tmp_path, rows), "columns": {"category": "split"}}
    benchmark = BENCHMARKS.build(node)
    answers = ["[0,0,500,500]", "[500, 500, 800, 1000]", "I do not know"]
    assert benchmark.verdicts(answers) == [1.0, 1.0, 0.0]
    found = benchmark.measure(answers)
    assert found["accuracy_fraction"] == pytest.approx(2 / 6)
    assert found["iou_fraction"] == pytest.approx((1 + 0.6) / 6)
    assert (found["num_answers_none"], found["num_unreadable_rows"]) == (1, 3)
    assert (found["accuracy_testA_fraction"], found["accuracy_testB_fraction"]) == (1, 0.5)
    assert found["num_answers_outside"] == 0
    pixels = BENCHMARKS.build(node | {"answer_scale": 1})
    assert pixels.measure(["[0, 0, 8, 8]"] * 3)["num_answers_outside"] == 3
    strict = BENCHMARKS.build(node | {"min_iou": 0.7})
    assert strict.verdicts(answers) == [1.0, 0.0, 0.0]
    assert benchmark.items()[0].prompt == "Give the bounding box of: the cat"


def test_units_of_boxes_are_stated(tmp_path: Path) -> None:
    row = {"image": IMAGE, "question": "it", "answer": "[2, 4, 6, 4]"}
    file = write(tmp_path, [row])
    node = {"name": "grounding", "file": file, "box_is": "size", "answer_scale": "pixels"}
    assert BENCHMARKS.build(node).verdicts(["(2,4),(8,8)"]) == [1.0]
    thousandths = write(tmp_path, [row | {"answer": [125, 250, 500, 500]}])
    node = {"name": "grounding", "file": thousandths, "box_scale": 1000, "answer_scale": 1}
    assert BENCHMARKS.build(node).verdicts(["[0.125, 0.25, 0.5, 0.5]"]) == [1.0]


def test_what_cannot_be_is_named(tmp_path: Path) -> None:
    file = write(tmp_path, [{"image": IMAGE, "question": "it"}])
    with pytest.raises(DataError, match="it has no box: none of the columns bbox, box"):
        BENCHMARKS.build({"name": "grounding", "file": file}).items()
    with pytest.raises(RecipeError, match="answer_scale: found 0"):
        BENCHMARKS.build({"name": "grounding", "file": file, "answer_scale": 0})
