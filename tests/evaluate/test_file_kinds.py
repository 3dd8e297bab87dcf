"""Benchmarks from files in the published formats: small, made here."""

import base64
import csv
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.support.zoo_images import encoded

from consomme.base.errors import DataError, RecipeError
from consomme.base.sample import ImageRef
from consomme.evaluate.benchmark import describe
from consomme.evaluate.benchmarks import BENCHMARKS

COLORS = ("red", "green", "blue", "white")


def picture(color: str, size: tuple[int, int] = (12, 8)) -> bytes:
    return encoded(Image.new("RGB", size, color), "PNG")


def in_text(color: str) -> str:
    return base64.b64encode(picture(color)).decode()


def write_tsv(path: Path, rows: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, names, delimiter="\t")
        table.writeheader()
        table.writerows(rows)
    return str(path)


def build(name: str, file: str, **options: Any) -> Any:
    return BENCHMARKS.build({"name": name, "file": file, **options})


def mmbench(folder: Path) -> str:
    """Like MMBench: base64, an image by the index of another row, holes, hints, splits."""
    question = {"question": "What color?", "category": "color", "l2-category": "look"}
    rows = [
        {"index": 241, "image": in_text("red"), "hint": "", "A": "red", "B": "blue", "C": "",
         "D": "grey", "answer": "A", "split": "dev", **question},
        {"index": 1000241, "image": "241", "hint": "Look well.", "A": "blue", "B": "red",
         "C": "nan", "D": "grey", "answer": "B", "split": "dev", **question},
        {"index": 7, "image": in_text("blue"), "hint": "", "A": "red", "B": "blue", "C": "",
         "D": "", "answer": "B", "split": "test", **question, "category": "a/b"},
    ]  # fmt: skip
    return write_tsv(folder / "MMBench_DEV_EN.tsv", rows)


def test_multiple_choice_as_mmbench_has_it(tmp_path: Path) -> None:
    benchmark = build("multiple_choice", mmbench(tmp_path))
    first, second, third = benchmark.items()
    assert first.turns[0].text == (
        "What color?\nA. red\nB. blue\nD. grey\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert second.turns[0].text.startswith("Look well.\nWhat color?\nA. blue\nB. red\nD. grey")
    assert first.truth == "A. red"
    assert [item.images[0].getpixel((0, 0)) for item in (first, second, third)] == [
        (255, 0, 0),
        (255, 0, 0),
        (0, 0, 255),
    ]
    assert first.turns[0].image_indices == (0,)
    answers = ["A", "The answer is A.", "I cannot say"]
    assert benchmark.verdicts(answers) == [1, 0, 0]
    found = benchmark.measure(answers)
    assert next(iter(found)) == "accuracy_fraction"
    assert found["accuracy_fraction"] == pytest.approx(1 / 3)
    assert found["accuracy_color_fraction"] == 0.5
    assert found["accuracy_a-b_fraction"] == 0
    assert found["num_answers_none"] == 1
    assert found["chance_fraction"] == pytest.approx((1 / 3 + 1 / 3 + 1 / 2) / 3)


def test_circular_evaluation(tmp_path: Path) -> None:
    benchmark = build("multiple_choice", mmbench(tmp_path), circular=True, where={"split": "dev"})
    items = benchmark.items()
    assert len(items) == 6
    texts = [item.turns[0].text.split("\n")[1:4] for item in items[:3]]
    assert texts == [
        ["A. red", "B. blue", "D. grey"],
        ["A. blue", "B. grey", "D. red"],
        ["A. grey", "B. red", "D. blue"],
    ]
    assert [item.truth for item in items[:3]] == ["A. red", "D. red", "B. red"]
    found = benchmark.measure(["A", "D", "B", "B", "A", "A"])
    assert found["accuracy_fraction"] == 0.5
    assert found["num_questions"] == 2
    assert benchmark.outcomes(["A", "D", "B", "B", "A", "A"]) == [1, 0]


@pytest.mark.parametrize("control", ["blank", "text_only"])
def test_controls(control: str, tmp_path: Path) -> None:
    item = build("multiple_choice", mmbench(tmp_path), **{control: True}).items()[0]
    if control == "text_only":
        assert item.images == ()
        assert item.turns[0].image_indices == ()
    else:
        assert item.images[0].getpixel((0, 0)) == (128, 128, 128)
        assert item.images[0].size == (12, 8)


def test_several_images_at_their_marks_as_mmmu_has_them(tmp_path: Path) -> None:
    texts = str([in_text("red"), in_text("blue")])
    path = write_tsv(
        tmp_path / "MMMU.tsv",
        [{"index": 1, "image": texts, "question": "Is <image 2> like <image 1>?",
          "A": "yes", "B": "<image 1>", "answer": "A"}],
    )  # fmt: skip
    (item,) = build("multiple_choice", path, prompt="{question}\n{options}").items()
    assert item.turns[0].parts == (
        "Is ",
        ImageRef(1),
        " like ",
        ImageRef(0),
        "?\nA. yes\nB. ",
        ImageRef(0),
    )


def test_webdataset_with_several_images_and_texts(tmp_path: Path) -> None:
    file = tmp_path / "bench-000.tar"
    members = {
        "a/q1.json": json.dumps({"question": "same?", "answer": "yes"}).encode(),
        "a/q1.0.png": picture("red"),
        "a/q1.1.png": picture("blue"),
        "a/q2.question": "which color?\u2028Look.".encode(),
        "a/q2.answer": b"red",
        "a/q2.PNG": picture("red"),
        "a/.hidden": b"x",
    }
    with tarfile.open(file, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    benchmark = BENCHMARKS.build({"name": "open", "file": str(file), "prompt": "{question}"})
    items = benchmark.items()
    assert [len(one.images) for one in items] == [2, 1]
    assert [one.truth for one in items] == ["yes", "red"]
    assert items[1].prompt.startswith("which color?\u2028")
    file.write_bytes(file.read_bytes()[:700])
    with pytest.raises(DataError, match="found a damaged tar"):
        BENCHMARKS.build({"name": "open", "file": str(file)}).items()


def test_other_line_ends_inside_of_texts_end_no_line(tmp_path: Path) -> None:
    file = tmp_path / "bench.jsonl"
    rows = [{"question": f"what\u2028is {k}\x85?", "answer": str(k)} for k in range(3)]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    benchmark = BENCHMARKS.build({"name": "open", "file": str(file)})
    assert [one.truth for one in benchmark.items()] == ["0", "1", "2"]


def test_parquet_with_numbered_images_and_listed_options(tmp_path: Path) -> None:
    struct = {"bytes": picture("red"), "path": "a.png"}
    rows = [
        {"id": "x", "question": "Which?", "options": "['one', 'two', 'three']", "answer": "C",
         "image_1": struct, "image_2": {"bytes": picture("blue"), "path": None}},
        {"id": "y", "question": "Which?", "options": "['one', 'two']", "answer": "A",
         "image_1": struct, "image_2": None},
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "mmmu.parquet")
    first, second = build("multiple_choice", str(tmp_path / "mmmu.parquet")).items()
    assert (len(first.images), len(second.images)) == (2, 1)
    assert (first.truth, second.truth) == ("C. three", "A. one")


def test_choices_whose_answer_is_a_number_from_0(tmp_path: Path) -> None:
    rows = [{"question": "q", "choices": ["a", "b"], "answer": 1}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "scienceqa.parquet")
    (item,) = build("multiple_choice", str(tmp_path / "scienceqa.parquet")).items()
    assert (item.truth, item.images) == ("B. b", ())
    rows = [{"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answer": "2"}]
    (tmp_path / "arc.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (item,) = build("multiple_choice", str(tmp_path / "arc.jsonl")).items()
    assert item.truth == "2. y"


def test_yes_no_as_pope_and_mme_have_them(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for color in COLORS:
        (tmp_path / "images" / f"{color}.png").write_bytes(picture(color))
    rows = [
        {"question_id": k, "image": f"images/{color}.png", "text": f"Is it {asked}?",
         "label": "yes" if color == asked else "no", "category": "color"}
        for k, (color, asked) in enumerate(
            [("red", "red"), ("red", "blue"), ("blue", "blue"), ("blue", "red")]
        )
    ]  # fmt: skip
    path = tmp_path / "pope.json"
    path.write_text("\n".join(map(json.dumps, rows)))
    benchmark = build("yes_no", str(path), pairs=["image"])
    with pytest.raises(DataError, match="found no column 'picture'"):
        build("yes_no", str(path), columns={"question": "picture"}).items()
    assert [item.truth for item in benchmark.items()] == ["yes", "no", "yes", "no"]
    found = benchmark.measure(["Yes", "No.", "no", "no"])
    assert found["accuracy_fraction"] == 0.75
    assert found["f1"] == pytest.approx(2 / 3)
    assert found["yes_share"] == 0.25


def test_mme_counts_both_questions_of_an_image(tmp_path: Path) -> None:
    rows = [
        {"index": 0, "image": in_text("red"), "image_path": "r.png", "question": "Is it red?",
         "answer": "Yes", "category": "color"},
        {"index": 1, "image": "0", "image_path": "r.png", "question": "Is it blue?",
         "answer": "No", "category": "color"},
        {"index": 2, "image": in_text("blue"), "image_path": "b.png", "question": "Is it red?",
         "answer": "No", "category": "posters"},
        {"index": 3, "image": "2", "image_path": "b.png", "question": "Is it blue?",
         "answer": "Yes", "category": "posters"},
    ]  # fmt: skip
    benchmark = build("yes_no", write_tsv(tmp_path / "MME.tsv", rows), pairs=["image_path"])
    found = benchmark.measure(["yes", "no", "no", "no"])
    assert found["group_accuracy_fraction"] == 0.5
    assert (found["score_color"], found["score_posters"], found["score_sum"]) == (200, 50, 250)


def test_open_answers_by_the_metric_of_their_benchmark(tmp_path: Path) -> None:
    rows = [
        {"index": 0, "image": in_text("red"), "question": "color?", "answer": "['red', 'Red']"},
        {"index": 1, "image": "0", "question": "How many?", "answer": "2"},
    ]  # fmt: skip
    path = write_tsv(tmp_path / "DocVQA_VAL.tsv", rows)
    benchmark = build("open", path, metric="anls")
    found = benchmark.measure(["rad", "2"])
    assert found["anls_fraction"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["anls_low_fraction"] <= found["anls_fraction"] <= found["anls_high_fraction"]
    whole = build("open", path, metric="vqa").measure(["red", "two"])
    assert whole["vqa_fraction"] == 1


def test_the_ten_answers_of_vqa(tmp_path: Path) -> None:
    answers = [{"answer": "red", "answer_id": k} for k in range(3)]
    answers += [{"answer": "blue", "answer_id": k} for k in range(3, 10)]
    rows = [{"question": "color?", "answers": answers, "image": {"bytes": picture("red")}}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "vqa.parquet")
    benchmark = build("open", str(tmp_path / "vqa.parquet"), metric="vqa")
    assert benchmark.verdicts(["red"])[0] == pytest.approx(0.9)


BAD_ROWS = [
    ({"question": "", "A": "a", "B": "b", "answer": "A"}, "it has no question"),
    ({"question": "q", "A": "a", "B": "b", "answer": ""}, "it has no answer"),
    ({"question": "q", "A": "a", "B": "", "answer": "A"}, "it has 1 options"),
    ({"question": "q", "A": "", "B": "", "answer": "A"}, "it has 0 options"),
    ({"question": "q", "A": "a", "B": "b", "answer": "C"}, "its answer 'C' is none of the options"),
    ({"question": "q", "A": "a", "B": "b", "answer": "1"}, "its answer '1' is none of the options"),
    ({"question": "q", "A": "a", "B": "b", "answer": "A", "image": "99"}, "that of row 99"),
    ({"question": "q", "A": "a", "B": "b", "answer": "A", "image": "b.png"}, "image_missing"),
    ({"question": "q", "A": "a", "B": "b", "answer": "A", "image": "../b.png"}, "unsafe_path"),
    ({"question": "q", "A": "a", "B": "b", "answer": "A", "image": "QUJD" * 80}, "undecodable"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "problem"), BAD_ROWS)
def test_a_bad_row_counts_as_wrong(row: dict[str, str], problem: str, tmp_path: Path) -> None:
    good = {"index": 0, "image": in_text("red"), "question": "q", "A": "a", "B": "b", "answer": "A"}
    path = write_tsv(tmp_path / "bad.tsv", [good, {"index": 1, "image": "0", **row}])
    benchmark = build("multiple_choice", path)
    assert len(benchmark.items()) == 1
    (found,) = benchmark.prepared.problems
    assert found.startswith("row 1: ")
    assert problem in found
    assert "QUJD" not in found
    figures = benchmark.measure(["A"])
    assert (figures["accuracy_fraction"], figures["num_unreadable_rows"]) == (0.5, 1)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "expected Parquet, JSON"),
        (b"one line", "found 'one line' as its first line"),
        (b"question\tanswer\n", "no rows"),
        (b"PAR1damaged", "damaged Parquet"),
        (b"[1, 2]", "row 0 is int, expected an object"),
        (b"[{]", "neither a JSON array nor JSON lines"),
        (b"question\tanswer\n\xff\tb\n", "not UTF-8"),
        (b"a\tb\n1\t2\n", "none of the columns answer, answers.* Its columns are a, b"),
    ],
)
def test_a_file_without_questions_is_refused(content: bytes, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.tsv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=problem):
        build("open", str(path)).items()


def test_options_are_checked() -> None:
    for options, problem in [
        ({"columns": {"questoin": "q"}}, "columns.questoin: unknown; did you mean 'question'"),
        ({"blank": True, "text_only": True}, "choose one control"),
        ({"prompt": "{options}"}, "found no {question}"),
        ({"prompt": "{question} {options} {other}"}, "found {other}"),
    ]:
        with pytest.raises(RecipeError, match=problem.replace("{", r"\{")):
            build("multiple_choice", "x.tsv", **options)


def test_the_cache_key_is_of_content_not_of_places(tmp_path: Path) -> None:
    first = describe(build("multiple_choice", mmbench(tmp_path)))
    (tmp_path / "moved").mkdir()
    moved = mmbench(tmp_path / "moved")
    assert describe(build("multiple_choice", moved, label="other")) == first
    text = Path(moved).read_text()
    Path(moved).write_text(text.replace("Look well.", "Look again"))
    assert describe(build("multiple_choice", moved)) != first
    assert describe(build("multiple_choice", mmbench(tmp_path), circular=True)) != first


def test_a_changed_image_beside_the_file_is_other_data(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture("red"))
    path = write_tsv(tmp_path / "q.tsv", [{"image": "a.png", "question": "q", "answer": "a"}])
    before = describe(build("open", path))
    (tmp_path / "a.png").write_bytes(picture("blue"))
    assert describe(build("open", path)) != before


@pytest.mark.parametrize("number", [1, 2, 5])
def test_some_rows_are_evenly_spread(number: int, tmp_path: Path) -> None:
    rows = [{"question": f"q{k}", "answer": "a"} for k in range(5)]
    path = tmp_path / "q.json"
    path.write_text(json.dumps({"version": "1", "data": rows}))
    items = build("open", str(path), max_rows=number, prompt="{question}").items()
    assert [item.prompt for item in items] == [f"q{5 * k // number}" for k in range(number)]


def test_gzip_and_a_bom_are_looked_through(tmp_path: Path) -> None:
    import gzip

    text = "\ufeffquestion,answer\nq,a\n".encode()
    (tmp_path / "q.csv.gz").write_bytes(gzip.compress(text))
    assert build("open", str(tmp_path / "q.csv.gz")).items()[0].truth == "a"


def test_images_are_decoded_when_asked_for(tmp_path: Path) -> None:
    items = build("multiple_choice", mmbench(tmp_path)).items()
    assert items[0].images[0] is not items[0].images[0]
    assert isinstance(items[-1].images[0], Image.Image)
    assert [item.truth for item in items[1:]] == ["B. red", "B. blue"]
