"""The same questions must not choose and report, whatever the file or the kind."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.evaluate.test_file_kinds import in_text, mmbench, picture, write_tsv

from consomme.base.errors import RecipeError
from consomme.evaluate.benchmark import BENCHMARKS
from consomme.evaluate.disjoint import NamedBenchmark, check_disjoint, question_names
from consomme.evaluate.disjoint import shared_problems as problems_of


def shared(chooses: dict[str, Any], reports: dict[str, Any]) -> str:
    """What is said of a pair; empty if they have no question in common."""
    return "".join(
        problems_of(
            [NamedBenchmark(key="benchmark", node=chooses)],
            [NamedBenchmark(key="report[0]", node=reports)],
        )
    )


def questions(folder: Path, name: str = "q.tsv", num: int = 10, **more: str) -> str:
    rows = [
        {"index": k, "question": f"Is {k} even?", "answer": ["yes", "no"][k % 2],
         "split": "dev" if k < 4 else "test", **more}
        for k in range(num)
    ]  # fmt: skip
    return write_tsv(folder / name, rows)


def test_rows_of_one_file(tmp_path: Path) -> None:
    node = {"name": "yes_no", "file": questions(tmp_path)}
    assert "10 of its 10 questions are among those of benchmark" in shared(node, node)
    dev, test = ({**node, "where": {"split": split}} for split in ("dev", "test"))
    assert not shared(dev, test)
    assert "4 of its 10" in shared(dev, node)
    assert "4 of its 4" in shared(node, dev)
    # Every fifth row of ten: 0 and 5, of which 0 to 3 are of the other split.
    assert "1 of its 2" in shared(dev, {**node, "max_rows": 2})
    assert not shared(dev, {**test, "max_rows": 3})


def test_rows_in_another_file_under_another_name(tmp_path: Path) -> None:
    node = {"name": "yes_no", "file": questions(tmp_path)}
    other = questions(tmp_path, "other.tsv", num=3, source="elsewhere")
    assert "3 of its 3" in shared(node, {**node, "file": other})
    lines = [{"id": k, "prompt": f"Is {k}  EVEN?", "target": "yes"} for k in range(5, 30, 5)]
    (tmp_path / "more.jsonl").write_text("\n".join(map(json.dumps, lines)))
    # 5 has another answer here, but the rows of 10 to 25 are others.
    found = shared(node, {**node, "file": str(tmp_path / "more.jsonl")})
    assert not found
    (tmp_path / "more.jsonl").write_text(json.dumps({**lines[0], "target": "no"}))
    assert "1 of its 1" in shared(node, {**node, "file": str(tmp_path / "more.jsonl")})


def test_images_count_and_not_where_they_lie(tmp_path: Path) -> None:
    mmb = {"name": "multiple_choice", "file": mmbench(tmp_path)}
    (tmp_path / "red.png").write_bytes(picture("red"))
    (tmp_path / "green.png").write_bytes(picture("green"))
    row = {"query": "what color?", "choices": ["blue", "red", "grey"], "label": "B"}
    for image, is_shared in (("red.png", True), ("green.png", False)):
        (tmp_path / "mine.jsonl").write_text(json.dumps({"image_path": image, **row}))
        found = shared(mmb, {"name": "multiple_choice", "file": str(tmp_path / "mine.jsonl")})
        # The options stand in another order, which makes no other question.
        assert ("1 of its 1" in found) is is_shared, found
    assert "3 of its 3" in shared(mmb, {**mmb, "circular": True, "blank": True})


def test_the_same_rows_read_as_another_kind(tmp_path: Path) -> None:
    file = questions(tmp_path)
    found = shared({"name": "yes_no", "file": file}, {"name": "open", "file": file})
    assert "10 of its 10" in found
    texts = [{"text": f"Sentence {k}."} for k in range(4)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, texts)))
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, [texts[2], {"text": "Other."}])))
    a, b = ({"name": "likelihood", "file": str(tmp_path / f"{k}.jsonl")} for k in "ab")
    # What is asked is the same for all texts: the texts are what tells them apart.
    assert "1 of its 2" in shared(a, b)


def test_parts_of_a_weighted_mean(tmp_path: Path) -> None:
    said = {"name": "yes_no", "file": questions(tmp_path)}
    mmb = {"name": "multiple_choice", "file": mmbench(tmp_path)}
    both = {"name": "weighted", "parts": [{"benchmark": said}, {"benchmark": mmb}]}
    assert "3 of its 3" in shared(both, mmb)
    assert "10 of its 13" in shared(said, both)
    assert not shared(said, mmb)


@pytest.mark.parametrize(
    ("chooses", "reports", "is_shared"),
    [
        ({"name": "scene_questions", "num": 5}, {"name": "scene_questions", "num": 9}, True),
        (
            {"name": "scene_questions", "num": 5},
            {"name": "scene_questions", "num": 9, "first_seed": 500_005},
            False,
        ),
        # The same scenes, drawn differently or asked about differently.
        (
            {"name": "scene_questions", "num": 5, "style": "outline"},
            {"name": "scene_captions", "num": 5, "first_seed": 500_004},
            True,
        ),
        (
            {"name": "scene_ocr", "num": 3, "first_seed": 500_000},
            {"name": "scene_questions", "num": 5, "blank": True},
            True,
        ),
        (
            {"name": "scene_which", "num": 2, "first_seed": 10},
            {"name": "scene_questions", "num": 1, "first_seed": 15},
            True,
        ),
        (
            {"name": "scene_which", "num": 2, "first_seed": 10},
            {"name": "scene_questions", "num": 1, "first_seed": 16},
            False,
        ),
        ({"name": "emoji_names", "every": 2}, {"name": "emoji_names", "every": 6}, True),
        (
            {"name": "emoji_names", "every": 2},
            {"name": "emoji_names", "every": 2, "first": 1},
            False,
        ),
        ({"name": "emoji_names", "every": 9}, {"name": "emoji_names", "style": "noto"}, False),
    ],
)  # fmt: skip
def test_scenes_and_emoji(chooses: Any, reports: Any, is_shared: bool) -> None:
    assert bool(shared(chooses, reports)) is is_shared
    assert bool(shared(reports, chooses)) is is_shared


def test_a_benchmark_that_names_no_questions_is_compared_by_its_requests() -> None:
    class Plain:
        """A benchmark with the least that it needs."""

        def __init__(self, node: dict[str, Any]) -> None:
            self.items = BENCHMARKS.build(node).items

    names = question_names(Plain({"name": "scene_questions", "num": 3}))  # type: ignore[arg-type]
    more = question_names(Plain({"name": "scene_questions", "num": 4}))  # type: ignore[arg-type]
    assert names == more[: len(names)]
    assert len(set(more)) == len(more)


def test_all_pairs_are_told_at_once(tmp_path: Path) -> None:
    node = {"name": "yes_no", "file": questions(tmp_path)}
    keyed = [NamedBenchmark(key=f"report[{k}]", node=node) for k in range(2)]
    with pytest.raises(
        RecipeError, match=r"soup s: 2 problems(.|\n)*report\[0\](.|\n)*report\[1\]"
    ) as one:
        check_disjoint([NamedBenchmark(key="benchmark", node=node)], keyed, where="soup s")
    assert "reports_what_it_chose_by=true" in str(one.value)


def test_base64_and_bytes_of_one_image_are_one(tmp_path: Path) -> None:
    row = {"question": "Is it red?", "answer": "yes"}
    one = write_tsv(tmp_path / "one.tsv", [{"index": 1, "image": in_text("red"), **row}])
    (tmp_path / "red.png").write_bytes(picture("red"))
    two = write_tsv(tmp_path / "two.tsv", [{"index": 9, "image_path": "red.png", **row}])
    kind = {"name": "yes_no"}
    assert shared({**kind, "file": one}, {**kind, "file": two})
