"""Which texts quote which, against a plain count of runs of words."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consomme.base.words import words_of
from consomme.curate.dedup.quotes import QuoteIndex

LONG = "The small red circle stands to the left of a large green square that is partly hidden."


def index(*texts: str, num_words: int = 8, fraction: float = 0.7) -> QuoteIndex:
    return QuoteIndex.of([texts], num_words=num_words, min_fraction=fraction)


@pytest.mark.parametrize(
    "text",
    [
        LONG,
        LONG.upper(),
        LONG.replace(" ", "  \n").replace(".", " !"),
        f"Somebody said: «{LONG}» and left.",
        "Ｔｈｅ" + LONG[3:],
    ],
)
def test_case_punctuation_and_what_stands_around_do_not_count(text: str) -> None:
    assert index(LONG).quoted([text]) == [(0, 1.0)]


def test_a_part_of_a_text_counts_by_its_share() -> None:
    num_words = len(LONG.split())
    half = " ".join(LONG.split()[:12])
    share = (12 - 8 + 1) / (num_words - 8 + 1)
    assert index(LONG).quoted([half]) == []
    assert index(LONG, fraction=share).quoted([half]) == [(0, pytest.approx(share))]


def test_words_spread_over_turns_are_no_quote_of_a_run() -> None:
    words = LONG.split()
    turns = [" ".join(words[k : k + 5]) for k in range(0, len(words), 5)]
    assert index(LONG).quoted(turns) == []


def test_short_texts_are_not_compared() -> None:
    short = "How many dogs are there?"
    found = index(short, LONG)
    assert found.num_runs_T.tolist()[0] == 0
    assert found.quoted([short]) == []


def test_what_a_benchmark_says_in_each_question_is_no_quote() -> None:
    asked = "Answer with the letter of the right option from the given choices directly."
    questions = [f"What does picture {k} show above its name {k}? {asked}" for k in range(30)]
    found = index(*questions)
    assert found.quoted([f"Something else entirely. {asked}"]) == []
    assert [number for number, _ in found.quoted([questions[4]])] == [4]


def test_a_question_that_is_asked_of_many_images_is_still_one() -> None:
    found = index(*[LONG] * 40)
    assert [number for number, _ in found.quoted([LONG])] == list(range(40))


def test_characters_are_words_where_no_spaces_are() -> None:
    assert words_of("红色圆圈 circle 左边") == [*"红色圆圈", "circle", *"左边"]
    text = "红色的小圆圈在绿色大方块的左边"
    assert index(text).quoted([f"图中{text}。"]) == [(0, 1.0)]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_it_equals_a_plain_count(seed: int, num_words: int) -> None:
    rng = random.Random(seed)
    texts = [" ".join(rng.choices("abc", k=rng.randrange(0, 12))) for _ in range(6)]
    sample = [" ".join(rng.choices("abc", k=rng.randrange(0, 30))) for _ in range(2)]

    def runs(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[k : k + num_words]) for k in range(len(words) - num_words + 1)}

    held = set().union(*map(runs, sample))
    expected = {
        k: len(runs(text) & held) / len(runs(text))
        for k, text in enumerate(texts)
        if runs(text) and len(runs(text) & held) / len(runs(text)) >= 0.5
    }
    found = dict(index(*texts, num_words=num_words, fraction=0.5).quoted(sample))
    assert found == pytest.approx(expected)
