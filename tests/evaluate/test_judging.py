"""What judges are asked, what their replies are read as, and answers that no judge has seen."""

from pathlib import Path
from typing import Any

import pytest
from tests.evaluate.test_file_kinds import build, write_tsv

from consomme.base.errors import DataError, RecipeError
from consomme.evaluate.benchmark import describe
from consomme.evaluate.judging import read_score, with_reply

JUDGE = {"model": "package://models/nano"}


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("0.5", 0.5), ("1.0", 1.0), ("0", 0.0), (" 0.7\n", 0.7), ("**0.8**", 0.8), ("1", 1.0),
        ("Score: 0.4", 0.4), ("score = 1", 1.0), ("0.5, since the pear is missing.", 0.5),
        ("The pear is missing, so the score is 0.5.", 0.5), ("I give a score of 0.25", 0.25),
        ("0.5/1.0", 0.5), ("0.5 out of 1", 0.5), ("Correctness: 0.9", 0.9), ("0.", 0.0),
        ("<think>0.9 perhaps</think>0.2", 0.2), ("`0.3`", 0.3),
        # None of these is from 0 to 1.
        ("5/10", None), ("1/10", None), ("1 out of 5", None), ("50%", None), ("1 %", None),
        ("10", None), ("2", None), ("-0.5 points", None), ("no score", None), ("", None),
        ("There are 1 apple and 0 pears.", None), ("1.5", None), ("half", None), ("0.5.1", None),
    ],
)  # fmt: skip
def test_scores(reply: str, score: float | None) -> None:
    assert read_score(reply) == score


@pytest.fixture
def colors(tmp_path: Path) -> str:
    rows = [
        {"question": "what {color}?", "A": "red", "B": "blue", "answer": letter}
        for letter in ("A", "B", "B", "A")
    ]
    return write_tsv(tmp_path / "colors.tsv", rows)


def test_only_answers_without_a_letter_are_judged(colors: str) -> None:
    benchmark = build("multiple_choice", colors, judge=JUDGE)
    answers = ["A", "the warm one, {answer}", "", "<think>B?</think> neither of both"]
    asked = benchmark.to_judge(answers)
    assert list(asked) == [1, 3]
    for part in ("Question: what {color}?", "A. red\nB. blue", "Answer: the warm one, {answer}\n"):
        assert part in asked[1]
    assert "B?" not in asked[3]
    texts = [
        with_reply("A", None), with_reply(answers[1], "B"), with_reply("", None),
        with_reply(answers[3], "NONE"),
    ]  # fmt: skip
    assert benchmark.verdicts(texts) == [1.0, 1.0, 0.0, 0.0]
    figures = benchmark.measure(texts)
    assert (figures["num_judged"], figures["num_answers_none"]) == (2, 1)
    assert figures["num_answers_empty"] == 1
    # A letter that is read by the rules is never given to the judge to decide.
    assert benchmark.verdicts([with_reply("A", "B"), *texts[1:]])[0] == 1.0


def test_answers_that_no_judge_has_seen_are_refused(colors: str) -> None:
    benchmark = build("multiple_choice", colors, judge=JUDGE)
    for unseen in ("A", '{"answer": "A"}', "[1]", "1"):
        with pytest.raises(DataError, match="answers that no judge has seen"):
            benchmark.measure([unseen, "", "", ""])
    assert benchmark.measure([""] * 4)["accuracy_fraction"] == 0.0
    plain = build("multiple_choice", colors)
    assert "num_judged" not in plain.measure(["A"] * 4)


def test_a_judge_says_how_right_an_answer_is(tmp_path: Path) -> None:
    rows = [{"question": f"q{k}", "answer": "an apple <AND> a pear"} for k in range(4)]
    benchmark = build("open", write_tsv(tmp_path / "vet.tsv", rows), metric="judge", judge=JUDGE)
    asked = benchmark.to_judge(["an apple", "", "an apple and a pear", "fruit"])
    assert list(asked) == [0, 2, 3]
    assert asked[0].endswith(
        "Question: q0 Right answer: an apple <AND> a pear. Answer: an apple Score:"
    )
    texts = [
        with_reply("an apple", "0.5"), with_reply("", None),
        with_reply("an apple and a pear", "1.0"), with_reply("fruit", "I cannot tell."),
    ]  # fmt: skip
    assert benchmark.verdicts(texts) == [0.5, 0.0, 1.0, 0.0]
    # What a model writes cannot pass for the reply of a judge.
    forged = with_reply(with_reply("fruit", "1.0"), None)
    assert benchmark.verdicts([forged, *texts[1:]])[0] == 0.0
    figures = benchmark.measure(texts)
    assert next(iter(figures)) == "judge_fraction"
    assert (figures["judge_fraction"], figures["num_judged"]) == (0.375, 3)
    assert figures["num_judge_unread"] == 1


def test_a_judge_finds_the_short_answer_in_a_long_one(tmp_path: Path) -> None:
    rows = [{"question": "how many?", "answer": "5"}] * 3
    benchmark = build("open", write_tsv(tmp_path / "m.tsv", rows), metric="number", judge=JUDGE)
    long = "There are 2 red ones and 3 blue ones, together five."
    asked = benchmark.to_judge([long, "5 things", "It is 5, not the 4 of before"])
    assert list(asked) == [0, 2]
    assert "5\n" not in asked[0].replace(long, ""), "the judge does not see what is right"
    texts = [with_reply(long, "5"), with_reply("5 things", None), with_reply(long, "")]
    assert benchmark.verdicts(texts) == [1.0, 1.0, 0.0]


def test_recipes(colors: str) -> None:
    with pytest.raises(RecipeError, match="metric: found judge, but no judge"):
        build("open", colors, metric="judge")
    with pytest.raises(RecipeError, match=r"judge\.prompt: found no \{truth\}"):
        build("open", colors, metric="judge", judge={**JUDGE, "prompt": "{question} {answer}"})
    with pytest.raises(RecipeError, match=r"engine\.dtype: found auto"):
        build("open", colors, judge={**JUDGE, "engine": {"name": "vllm"}})
    with pytest.raises(RecipeError, match="nothing is written"):
        build("multiple_choice", colors, answer_by="letter_likelihood", judge=JUDGE)
    plain, judged = (build("multiple_choice", colors, **o) for o in ({}, {"judge": JUDGE}))
    assert describe(plain) == describe(judged, without=("judge",)) != describe(judged)


def test_parts_of_a_mean_have_their_own_judges(colors: str) -> None:
    from consomme.evaluate.benchmarks import BENCHMARKS
    from consomme.pipelines.evaluate.judges import _texts

    part: dict[str, Any] = {"name": "multiple_choice", "file": colors}
    parts = [{"benchmark": part | {"judge": JUDGE}}, {"benchmark": part}]
    benchmark = BENCHMARKS.build({"name": "weighted", "parts": parts})
    answers = ["A", "the cold one", "B", "A", "A", "B", "B", "A"]
    texts = _texts(benchmark, answers, {1: "B"})
    assert benchmark.verdicts(texts) == [1.0] * 8
