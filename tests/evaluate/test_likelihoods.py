"""Likelihoods of given texts, and captions in pairs."""

import json
import math
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from tests.evaluate.test_file_kinds import build, in_text, write_tsv

from consomme.base.errors import DataError
from consomme.evaluate.benchmark import is_written


def answer(*nlls: float) -> str:
    return json.dumps({str(k): nll for k, nll in enumerate(nlls)})


def winoground(folder: Path) -> str:
    rows = [
        {"image_0": in_text("red"), "image_1": in_text("blue"), "caption_0": f"{k} red",
         "caption_1": f"{k} blue", "tag": "color"}
        for k in range(2)
    ]  # fmt: skip
    return write_tsv(folder / "winoground.tsv", rows)


def test_winoground_by_its_rules(tmp_path: Path) -> None:
    benchmark = build("pairs", winoground(tmp_path), columns={"category": "tag"})
    assert not is_written(benchmark)
    items = benchmark.items()
    assert [item.truth for item in items] == ["0 red", "0 blue", "1 red", "1 blue"]
    assert [item.images[0].getpixel((0, 0)) for item in items[:2]] == [(255, 0, 0), (0, 0, 255)]
    assert benchmark.candidates(1) == {"0": "0 red", "1": "0 blue"}
    # Row 0 is right in all; row 1 in texts only: its second image likes all captions more.
    answers = [answer(1, 2), answer(2, 1), answer(3, 4), answer(2, 1)]
    found = benchmark.measure(answers)
    assert found["text_score_fraction"] == 1
    assert found["image_score_fraction"] == found["group_score_fraction"] == 0.5
    assert found["accuracy_fraction"] == found["accuracy_color_fraction"] == 0.5
    assert benchmark.outcomes(answers) == [1, 0]


def test_chance_of_the_group_score_is_a_sixth(tmp_path: Path) -> None:
    benchmark = build("pairs", winoground(tmp_path))
    scores = {"text": 0.0, "image": 0.0, "group": 0.0}
    orders = list(permutations((1.0, 2.0, 3.0, 4.0)))
    for one in orders:
        found = benchmark.measure([answer(one[0], one[1]), answer(one[2], one[3])] * 2)
        for name in scores:
            scores[name] += found[f"{name}_score_fraction"] / len(orders)
    assert scores == pytest.approx({"text": 1 / 4, "image": 1 / 4, "group": 1 / 6})
    assert found["chance_fraction"] == pytest.approx(1 / 6)


def test_one_image_with_false_captions(tmp_path: Path) -> None:
    rows = [
        {"image": in_text("red"), "caption": "red", "negative_caption": "blue"},
        {"image": in_text("red"), "caption": "a", "negative_caption": "['b', 'c']"},
    ]
    benchmark = build("pairs", write_tsv(tmp_path / "sugarcrepe.tsv", rows))
    found = benchmark.measure([answer(1, 2), answer(2, 3, 1)])
    assert found["accuracy_fraction"] == 0.5
    assert found["chance_fraction"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert "text_score_fraction" not in found
    assert benchmark.measure(["", answer(1, 1, 2)])["accuracy_fraction"] == 0, "a tie is no hit"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"caption": "a", "negative_caption": "a"}, "its captions are equal"),
        ({"caption": "a"}, "it has no captions: expected caption_0 and caption_1, or one of"),
        ({"caption": "a", "negative_caption": "b", "image": ""}, "it has 0 images, expected 1"),
        ({"caption_0": "a", "caption_1": "b"}, "two captions and 1 images, expected 2"),
    ],
)
def test_what_is_no_pair(row: dict[str, str], problem: str, tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "bad.tsv", [{"index": 0, "image": in_text("red"), **row}])
    with pytest.raises(DataError, match=problem):
        build("pairs", path).items()


def test_given_answers_and_texts(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    rows: list[dict[str, Any]] = [{"text": "four"}, {"question": "two?", "answer": "no"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    benchmark = build("likelihood", str(path))
    assert [item.prompt for item in benchmark.items()] == ["Write a text.", "two?"]
    assert [benchmark.candidates(k) for k in range(2)] == [{"nll": "four"}, {"nll": "no"}]
    answers = [benchmark.choose({"nll": nll}, k) for k, nll in enumerate((4.0, 1.0))]
    found = benchmark.measure(answers)
    expected = (math.exp(-1) + math.exp(-0.5)) / 2
    assert next(iter(found.values())) == pytest.approx(expected)
    assert found["bits_per_character"] == pytest.approx(5 / 6 / math.log(2))
    assert benchmark.measure([answers[0], ""])["num_answers_empty"] == 1
