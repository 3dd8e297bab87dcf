"""What answers to multiple-choice questions are read as."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.evaluate.choice_texts import OPTIONS, TEXTS

from consomme.evaluate.choices import FAILURES, RULES, read_choice

CASES = [(text, choice) for choice, texts in TEXTS.items() for text in texts]


def test_there_are_200_of_them() -> None:
    assert len({text for text, _ in CASES}) >= 200


@pytest.mark.parametrize(("text", "choice"), CASES)
def test_what_an_answer_is_read_as(text: str, choice: str | None) -> None:
    found = read_choice(text, OPTIONS)
    assert found.choice == choice, found
    assert found.rule in (RULES if choice else FAILURES)


def test_each_rule_reads_some() -> None:
    found = {read_choice(text, OPTIONS).rule for text, _ in CASES}
    assert found == {*RULES, *FAILURES}


@pytest.mark.parametrize("letters", ["AB", "ACD", "BCEZ", "ABCDEFGHIJ"])
def test_letters_with_gaps(letters: str) -> None:
    options = {letter: f"the thing number {k}" for k, letter in enumerate(letters)}
    for letter in letters:
        for text in (letter, f"({letter.lower()})", f"The answer is {letter}.", options[letter]):
            assert read_choice(text, options).choice == letter, text
    assert read_choice("Y", options).choice is None


@given(st.text(), st.sampled_from("ABCD"))
def test_any_text_is_read(text: str, letter: str) -> None:
    found = read_choice(text, OPTIONS)
    assert (found.choice is None) == (found.rule in FAILURES)
    # White space and markup around a letter mean nothing.
    assert read_choice(f"\n **{letter}**  ", OPTIONS).choice == letter
    assert read_choice(f"{text}\n\nThe answer is ({letter}).", OPTIONS).choice in (letter, None)
