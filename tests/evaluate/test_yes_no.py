"""Yes and no in answers, and the figures of POPE, MME and HallusionBench."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consomme.evaluate.yes_no import group_accuracy, pope_figures, read_yes_no

TEXTS: dict[bool | None, tuple[str, ...]] = {
    True: (
        "yes", "Yes.", "YES", " yes, it is", "Yes, there is no doubt.", "Yeah", "True", "Correct!",
        "The answer is yes.", "I think yes", "**Yes**", "<think>no?</think>yes", "<answer>Yes",
        "是", "是的。", "有", "对", "はい、あります", "예", "네, 있습니다", "ja",
        "Oui.", "Sí, hay uno", "да",
        "That is correct.", "It is true.", "Yes and no",
    ),
    False: (
        "no", "No.", "NO", "no, it is not", "No, but yes is close", "nope", "False", "Incorrect",
        "The answer is no.", "There is no dog.", "It is not true.", "That is not correct.",
        "Not in the image", "<think>yes!</think>no", "否", "不是", "没有狗",
        "不对", "いいえ", "아니요", "nein", "Non.", "não", "нет", "That is incorrect.",
    ),
    None: (
        "", "maybe", "I do not know", "a dog", "yesterday", "nothing", "It is yes or no.", "42",
        "<think>yes", "The notes say it", "可能",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"), [(text, said) for said, texts in TEXTS.items() for text in texts]
)
def test_what_an_answer_says(text: str, said: bool | None) -> None:
    assert read_yes_no(text) is said


def test_figures_of_a_table() -> None:
    # 3 hits, 1 false alarm, 2 misses (one says neither), 2 right noes.
    right = [True] * 5 + [False] * 3
    said = [True, True, True, False, None, True, False, False]
    found = pope_figures(said, right)
    assert found["precision"] == pytest.approx(3 / 4)
    assert found["recall"] == pytest.approx(3 / 5)
    assert found["f1"] == pytest.approx(2 * 0.75 * 0.6 / 1.35)
    assert found["yes_share"] == pytest.approx(4 / 8)
    assert group_accuracy([1, 1, 1, 0, 0.5], ["a", "a", "b", "b", "c"]) == pytest.approx(1 / 3)


@given(st.lists(st.tuples(st.sampled_from([True, False, None]), st.booleans()), min_size=1))
def test_f1_is_that_of_the_counts(pairs: list[tuple[bool | None, bool]]) -> None:
    said, right = zip(*pairs, strict=True)
    both = sum(a is True and b for a, b in pairs)
    wrong = sum((a is True) != b for a, b in pairs)
    expected = 2 * both / (2 * both + wrong) if both else 0.0
    assert pope_figures(said, right)["f1"] == pytest.approx(expected)
    assert pope_figures(said[::-1], right[::-1]) == pytest.approx(pope_figures(said, right))
