"""Benchmarks of words that need no file: what is asked, and how it is counted."""

import json

import pytest

from consomme.evaluate.benchmark import describe, is_written
from consomme.evaluate.benchmarks import BENCHMARKS
from consomme.evaluate.language import word_questions


def test_one_word_belongs_and_three_do_not() -> None:
    questions = word_questions()
    assert len(questions) > 800
    assert len({one.name for one in questions}) == len(questions)
    for one in questions:
        assert len(set(one.options)) == 4
        assert [option in one.words for option in one.options].count(True) == 1
        assert one.options[one.right] in one.words
        assert not any(option in one.name.lower() for option in one.options)
    rights = [one.right for one in questions]
    assert all(rights.count(k) > len(rights) / 6 for k in range(4)), "no letter is preferred"


def test_choice_by_likelihood_per_character() -> None:
    found = BENCHMARKS.build({"name": "emoji_words", "every": 100})
    assert not is_written(found)
    options = found.candidates(0)
    # Equal by character, but for B.
    nlls = {letter: 2.0 * len(word) for letter, word in options.items()}
    assert found.choose(nlls | {"B": 0.5 * len(options["B"])}, 0) == "B"
    truths = [item.truth for item in found.items()]
    right = [
        next(letter for letter, word in found.candidates(k).items() if word == truth)
        for k, truth in enumerate(truths)
    ]
    assert found.measure(right)["accuracy_fraction"] == 1
    half = [*right[:1], *([""] * (len(right) - 1))]
    figures = found.measure(half)
    assert figures["accuracy_fraction"] == pytest.approx(1 / len(right))
    assert figures["num_answers_empty"] == len(right) - 1
    assert next(iter(figures)) == "accuracy_fraction"


def test_perplexity_by_character() -> None:
    found = BENCHMARKS.build({"name": "emoji_glosses", "every": 300})
    texts = [found.candidates(k)["nll"] for k in range(len(found.items()))]
    assert all(":" in text for text in texts)
    # One bit for each character.
    answers = [found.choose({"nll": 0.6931471805599453 * len(text)}, 0) for text in texts]
    assert json.loads(answers[0])["nll"] > 0
    figures = found.measure(answers)
    assert figures["bits_per_character"] == pytest.approx(1)
    assert figures["character_perplexity"] == pytest.approx(2)
    assert figures["character_probability_fraction"] == pytest.approx(0.5)
    assert found.verdicts(["", *answers[1:]])[0] == 0


def test_other_names_are_other_questions() -> None:
    one, two = (BENCHMARKS.build({"name": "emoji_words", "first": k}) for k in (0, 1))
    names = [{name for some in b.question_names() for name in some} for b in (one, two)]
    assert not names[0] & names[1]
    assert describe(one) != describe(two)
