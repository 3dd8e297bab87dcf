"""Shots: drawn by seed, never the question itself nor one with its image, in their places."""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.evaluate.test_file_kinds import build, in_text, picture, write_tsv

from consomme.base.errors import DataError, RecipeError
from consomme.base.recipe import fingerprint
from consomme.base.sample import ImageRef
from consomme.evaluate.benchmark import data_inputs, describe, portable_node
from consomme.evaluate.few_shot import share_image

COLORS = [f"#{k:02x}{255 - k:02x}80" for k in range(0, 240, 12)]


@pytest.fixture
def colors(tmp_path: Path) -> str:
    """Two questions about each of twenty images; the second names the first one's image."""
    rows: list[dict[str, Any]] = []
    for k, color in enumerate(COLORS):
        for number in (2 * k, 2 * k + 1):
            rows.append(
                {"index": number, "image": in_text(color) if number % 2 == 0 else str(number - 1),
                 "question": f"question {number}", "A": f"yes {number}", "B": f"no {number}",
                 "answer": "AB"[number % 2], "split": "dev" if k < 10 else "test"}
            )  # fmt: skip
    return write_tsv(tmp_path / "colors.tsv", rows)


def asked(item: Any) -> list[int]:
    """Numbers of the questions that are shown, the question itself last."""
    return [
        int(turn.text.strip().split()[1].split("\n")[0])
        for turn in item.turns
        if turn.role == "user"
    ]


@pytest.mark.parametrize("shots", [1, 4, 8])
def test_shots_are_others_about_other_images(colors: str, shots: int) -> None:
    benchmark = build("multiple_choice", colors, shots=shots)
    drawn = []
    for number, item in enumerate(benchmark.items()):
        *before, own = asked(item)
        assert own == number
        assert len(set(before)) == shots
        assert not {one // 2 for one in before} & {number // 2}, "the image of the question"
        drawn += before
        assert [turn.role for turn in item.turns] == ["user", "assistant"] * shots + ["user"]
        answers = [turn.content for turn in item.turns if turn.role == "assistant"]
        assert answers == ["AB"[one % 2] for one in before]
        # Each image stands before its own question, and is its own.
        refs = [turn.content[0] for turn in item.turns if turn.role == "user"]
        assert refs == [ImageRef(k) for k in range(shots + 1)]
        assert [image.getpixel((0, 0)) for image in item.images] == [
            Image.new("RGB", (1, 1), COLORS[one // 2]).getpixel((0, 0)) for one in (*before, own)
        ]
    assert len(set(drawn)) > 20 or shots == 1


def test_the_seed_draws_others_and_each_question_is_drawn_for_alone(colors: str) -> None:
    def drawn(**options: Any) -> list[list[int]]:
        return [asked(item) for item in build("open", colors, shots=4, **options).items()]

    first = drawn()
    assert drawn() == first
    assert drawn(shots_seed=1) != first
    some = drawn(where={"split": "dev"})
    assert len(some) == 20
    assert all(max(before) < 20 for *before, _ in some), "of the rows that are asked"
    fewer = drawn(max_rows=5)
    assert fewer == [first[one[-1]] for one in fewer]


def test_shots_of_another_file(colors: str, tmp_path: Path) -> None:
    rows = [{"question": f"shot {k}", "answer": "yes", "image": in_text(COLORS[k])}
            for k in range(3)]  # fmt: skip
    other = write_tsv(tmp_path / "train.tsv", rows)
    node = {"name": "open", "file": colors, "shots": 2, "shots_from": other}
    for number, item in enumerate(build(**node).items()):
        *before, own = asked(item)
        assert own == number
        assert number // 2 not in before
        assert set(before) <= {0, 1, 2}
    before = describe(build(**node)), data_inputs([node], "benchmarks")
    moved = tmp_path / "moved.tsv"
    Path(other).rename(moved)
    node["shots_from"] = str(moved)
    assert (describe(build(**node)), data_inputs([node], "benchmarks")) == before
    write_tsv(moved, [*rows[:2], {**rows[2], "answer": "no"}])
    assert describe(build(**node)) != before[0]
    assert portable_node({**node, "shots_from": "a.tsv"})["shots_from"].endswith("/a.tsv")


def test_an_image_is_known_by_its_pixels() -> None:
    red = picture("red")
    buffer = io.BytesIO()
    Image.new("RGB", (12, 8), "red").save(buffer, "BMP")
    assert buffer.getvalue() != red
    assert share_image([picture("blue"), red], [buffer.getvalue()])
    assert not share_image([red], [picture("blue")])
    assert not share_image([red], [picture("red", (8, 12))])
    assert not share_image([], [])


def test_texts_and_controls(tmp_path: Path, colors: str) -> None:
    texts = [{"question": text, "answer": "x"} for text in ("a", "a", "b", "c")]
    file = write_tsv(tmp_path / "texts.tsv", texts)
    items = build("open", file, shots=2, prompt="{question}").items()
    shown = [{turn.text for turn in item.turns[:-1] if turn.role == "user"} for item in items]
    assert shown[0] == shown[1] == {"b", "c"}, "its copy would give the answer away"
    with pytest.raises(DataError, match="found 2 other questions about other images, and shots"):
        build("open", file, shots=3).items()[0]
    grey = build("open", colors, shots=2, blank=True).items()[0]
    assert {image.getpixel((0, 0)) for image in grey.images} == {(128, 128, 128)}
    none = build("open", colors, shots=2, text_only=True).items()[0]
    assert (len(none.images), len(none.turns)) == (0, 5)


def test_answers_that_are_shown(tmp_path: Path, colors: str) -> None:
    by_text = build("multiple_choice", colors, shots=1, answer_by="text_likelihood",
                    prompt="{question}").items()[0]  # fmt: skip
    number = asked(by_text)[0]
    assert by_text.turns[1].content == f"{'yes' if number % 2 == 0 else 'no'} {number}"
    rows = [{"question": f"is it {k}?", "answer": "No"} for k in range(2)]
    said = build("yes_no", write_tsv(tmp_path / "said.tsv", rows), shots=1).items()[0]
    assert said.turns[1].content == "No"
    ten = [{"question": f"what {k}?", "answer": str(["a", "b", "b"])} for k in range(2)]
    most = build("open", write_tsv(tmp_path / "ten.tsv", ten), shots=1).items()[0]
    assert most.turns[1].content == "b"
    turned = build("multiple_choice", colors, circular=True, shots=2).items()
    assert asked(turned[0]) == asked(turned[1]), "for all rotations of a question"


def test_recipes_of_before_are_the_same(colors: str) -> None:
    plain = build("open", colors)
    assert describe(build("open", colors, shots=0)) == describe(plain)
    assert '"shots' not in describe(plain)
    assert fingerprint(plain, {}) != fingerprint(build("open", colors, shots=4), {})
    with pytest.raises(RecipeError, match="shots is 0"):
        build("open", colors, shots_seed=1)
    with pytest.raises(RecipeError, match="questions of this kind are asked without any"):
        build("pairs", colors, shots=1)
