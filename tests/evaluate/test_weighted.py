"""Several benchmarks as one."""

from pathlib import Path
from typing import Any

import pytest
from tests.evaluate.test_file_kinds import mmbench, write_tsv

from consomme.base.errors import RecipeError
from consomme.evaluate.benchmark import describe, is_written, parts_of, portable_node
from consomme.evaluate.benchmarks import BENCHMARKS
from consomme.evaluate.names import benchmark_name
from consomme.pipelines.evaluate.recipe import EvaluateRecipe
from consomme.pipelines.evaluate.run import open_run

NANO = "package://models/nano"


def parts(folder: Path) -> list[dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    rows = [{"question": f"q{k}", "answer": "yes", "split": "dev"} for k in range(4)]
    said = {"name": "yes_no", "file": write_tsv(folder / "said.tsv", rows)}
    return [
        {"benchmark": {"name": "multiple_choice", "file": mmbench(folder)}, "weight": 1.0},
        {"benchmark": said, "weight": 3.0},
    ]


def test_the_weighted_mean_of_the_main_figures(tmp_path: Path) -> None:
    node = {"name": "weighted", "parts": parts(tmp_path), "label": "both"}
    whole = BENCHMARKS.build(node)
    assert [type(one).__name__ for one in parts_of(whole)] == ["MultipleChoice", "YesNo"]
    assert len(whole.items()) == 3 + 4
    answers = ["A", "A", "B", "yes", "no", "yes", "yes"]
    found = whole.measure(answers)
    assert next(iter(found)) == "score_fraction"
    assert found["score_fraction"] == pytest.approx((1 * 2 / 3 + 3 * 3 / 4) / 4)
    assert found["0/accuracy_fraction"] == pytest.approx(2 / 3)
    assert found["1/f1"] == pytest.approx(6 / 7)
    assert found["score_low_fraction"] < found["score_fraction"] < found["score_high_fraction"]
    assert whole.verdicts(answers) == whole.outcomes(answers) == [1, 0, 1, 1, 0, 1, 1]
    assert benchmark_name(node) == "both"
    assert is_written(whole)


def test_the_key_is_of_weights_and_content(tmp_path: Path) -> None:
    def key(folder: Path, **options: Any) -> str:
        return describe(BENCHMARKS.build({"name": "weighted", "parts": parts(folder), **options}))

    first = key(tmp_path)
    assert key(tmp_path / "moved", label="other") == first
    other = parts(tmp_path)
    other[0]["weight"] = 2.0
    assert describe(BENCHMARKS.build({"name": "weighted", "parts": other})) != first
    same = parts(tmp_path)
    (tmp_path / "said.tsv").write_text("question\tanswer\nq\tno\n")
    assert describe(BENCHMARKS.build({"name": "weighted", "parts": same})) != first


def test_a_run_is_the_same_wherever_the_files_lie(tmp_path: Path) -> None:
    def opened(folder: Path) -> str:
        node = {"name": "weighted", "parts": parts(folder)}
        recipe = EvaluateRecipe(
            name="w", models={"nano": NANO}, benchmarks=(node,), root=str(tmp_path / "runs")
        )
        return open_run(recipe).folder.url

    first = opened(tmp_path / "one")
    assert opened(tmp_path / "two") == first


def test_likelihood_in_one_part_only(tmp_path: Path) -> None:
    chosen = parts(tmp_path)
    chosen[0]["benchmark"]["answer_by"] = "letter_likelihood"
    whole = BENCHMARKS.build({"name": "weighted", "parts": chosen})
    assert not is_written(whole)
    assert whole.candidates(0) == {"A": "A", "B": "B", "D": "D"}
    assert whole.candidates(3) is None
    assert whole.choose({"A": 2.0, "B": 1.0, "D": 3.0}, 1) == "B"


def test_another_process_finds_the_files(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    node = {"name": "weighted", "parts": [
        {"benchmark": {"name": "open", "file": "q.tsv"}},
        {"benchmark": {"name": "scene_questions"}},
    ]}  # fmt: skip
    found = portable_node(node)["parts"]
    assert found[0]["benchmark"]["file"] == str(tmp_path / "q.tsv")
    assert found[1]["benchmark"] == {"name": "scene_questions"}


def test_one_part_is_no_mean() -> None:
    with pytest.raises(RecipeError, match="found 1, expected at least two"):
        BENCHMARKS.build(
            {"name": "weighted", "parts": [{"benchmark": {"name": "scene_questions"}}]}
        )
