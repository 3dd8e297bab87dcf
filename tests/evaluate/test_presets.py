"""The presets of POINTS read files in the published shape and score them by their own rules."""

from pathlib import Path
from typing import Any

import pytest
from tests.evaluate.test_file_kinds import in_text, write_tsv

from consomme.base.errors import RecipeError
from consomme.evaluate.benchmarks import BENCHMARKS
from consomme.evaluate.judging import with_reply
from consomme.evaluate.presets import EIGHT

IMAGE = in_text("red")
JUDGE = {"model": "package://models/nano"}


def built(folder: Path, name: str, rows: list[dict[str, Any]], **options: Any) -> Any:
    file = write_tsv(folder / f"{name}.tsv", rows)
    return BENCHMARKS.build({"name": name, "file": file, **options})


def test_all_eight_are_there_and_name_their_files() -> None:
    for name in EIGHT:
        options = {"judge": JUDGE} if name in ("mathvista", "mmvet") else {}
        one: Any = BENCHMARKS.build({"name": name, **options})
        assert one.file.startswith("~/LMUData/")
        assert one.file.endswith(".tsv")


def test_mmbench_is_circular(tmp_path: Path) -> None:
    rows = [{"index": 1, "image": IMAGE, "question": "color?", "A": "red", "B": "blue",
             "answer": "A", "l2-category": "attribute"}]  # fmt: skip
    one = built(tmp_path, "mmbench", rows)
    assert len(one.items()) == 2
    assert one.measure(["A", "A"])["accuracy_fraction"] == 0
    assert one.measure(["A", "B"])["accuracy_fraction"] == 1


def test_mmmu_asks_open_questions_openly(tmp_path: Path) -> None:
    """Rows without options are compared by content: no letter is read into a long text."""
    rows = [
        {"index": "v_1", "split": "validation", "image": f"['{IMAGE}', '{IMAGE}']",
         "question": "Is <image 2> like <image 1>?", "A": "yes", "B": "no", "answer": "A"},
        {"index": "v_2", "split": "validation", "image": IMAGE, "question": "How much?",
         "answer": "3.5", "question_type": "open"},
        {"index": "v_3", "split": "validation", "image": IMAGE, "question": "What?",
         "answer": "['a tree', 'tree']", "question_type": "open"},
        {"index": "d_1", "split": "dev", "image": IMAGE, "question": "?", "A": "x", "B": "y",
         "answer": "A"},
    ]  # fmt: skip
    one = built(tmp_path, "mmmu", rows)
    prompts = [item.prompt for item in one.items()]
    assert len(prompts) == 3, "only the validation split"
    assert "A. yes" in prompts[0]
    assert prompts[1].endswith("Answer the question using a single word or phrase.")
    assert len(one.items()[0].images) == 2
    answers = ["A", "Solution A is wrong, so it is 3.5", "Tree."]
    assert one.verdicts(answers) == [1, 1, 1]
    assert one.verdicts(["B", "A", "A"]) == [0, 0, 0]
    found = one.measure(answers)
    assert (found["accuracy_fraction"], found["num_questions"]) == (1, 3)
    assert found["num_answers_none"] == 0
    assert one.items()[1].truth == "3.5"
    with pytest.raises(RecipeError, match="open_prompt: found one, but with answer_by"):
        built(tmp_path, "mmmu", rows, answer_by="letter_likelihood")


def test_hallusionbench_is_the_mean_of_three(tmp_path: Path) -> None:
    """The last parts of the index are set, figure and question."""
    rows = [
        {"index": f"hallusion_VD_chart_{number}", "image": IMAGE, "question": "q?",
         "answer": answer, "category": "VD", "l2-category": "chart"}
        for number, answer in [("0_0_0", "yes"), ("0_1_0", "no"), ("0_1_1", "no"),
                               ("1_0_0", "yes")]
    ]  # fmt: skip
    one = built(tmp_path, "hallusionbench", rows)
    found = one.measure(["yes", "no", "yes", "yes"])
    assert found["aAcc_fraction"] == 3 / 4
    # Figures 0_0, 0_1, 1_0; the second has a wrong answer.
    assert found["fAcc_fraction"] == pytest.approx(2 / 3)
    # Questions 0_·_0, 0_·_1, 1_·_0; the second is wrong.
    assert found["qAcc_fraction"] == pytest.approx(2 / 3)
    assert next(iter(found)) == "mean_accuracy_fraction"
    assert found["mean_accuracy_fraction"] == pytest.approx((3 / 4 + 4 / 3) / 3)


def test_mmvet_is_what_the_judge_says(tmp_path: Path) -> None:
    rows = [{"index": 0, "image": IMAGE, "question": "what?", "answer": "a<AND>b"},
            {"index": 1, "image": IMAGE, "question": "what?", "answer": "c"}]  # fmt: skip
    with pytest.raises(RecipeError, match="judge: missing; its answers are long texts"):
        built(tmp_path, "mmvet", rows)
    one = built(tmp_path, "mmvet", rows, judge=JUDGE)
    answers = [with_reply("I see a", "0.5"), with_reply("c", "1.0")]
    assert one.measure(answers)["judge_fraction"] == 0.75


def test_mathvista_compares_what_the_judge_finds(tmp_path: Path) -> None:
    rows = [{"index": 0, "image": IMAGE, "question": "how many?", "answer": "5"},
            {"index": 1, "image": IMAGE, "question": "which?", "answer": "green"}]  # fmt: skip
    one = built(tmp_path, "mathvista", rows, judge=JUDGE)
    answers = [with_reply("two and three, which makes five 4", "5"), with_reply("green", None)]
    assert one.verdicts(answers) == [1, 1]


def test_ocrbench_looks_for_the_text(tmp_path: Path) -> None:
    rows = [{"index": 0, "image": IMAGE, "question": "what is written?", "answer": "['STOP']",
             "category": "Regular Text Recognition"}]  # fmt: skip
    one = built(tmp_path, "ocrbench", rows)
    assert one.measure(["It says: Stop!"])["contains_fraction"] == 1
