"""Judges of text, on likelihoods made by hand."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from tests.curate.tag.cases import tagger_input

from consomme.base.errors import RecipeError
from consomme.base.sample import ImageFile, Sample
from consomme.curate.tag.judges import Answerable, Grammar, question_answer_pairs
from consomme.curate.tag.tagger import ChoiceQuestion, TagProblem


class ByHand:
    """A language model of which a function says how likely an answer to a question is."""

    has_vision = False

    def __init__(self, likelihood: Callable[[str, str], float]) -> None:
        self.likelihood = likelihood
        self.choices: list[ChoiceQuestion] = []

    def answer_nlls(self, choices: Sequence[ChoiceQuestion]) -> list:
        assert not any(choice.pictures for choice in choices), "nobody may see a picture"
        self.choices += choices
        return [
            TagProblem(reason="sequence_too_long", detail="too long")
            if len(c.question) > 500
            else np.array([-math.log(self.likelihood(c.question, a)) for a in c.answers])
            for c in choices
        ]

    def embed_pictures(self, pictures):
        raise AssertionError("a judge looked at a picture")


def test_grammar_errors_are_a_share_of_yes_and_no():
    def likelihood(question: str, answer: str) -> float:
        assert question.startswith("Does the following text contain grammar")
        wrong = "is goes" in question
        return {"yes": 0.06 if wrong else 0.01, "no": 0.02 if wrong else 0.03}[answer]

    judge = Grammar(model="m").open(lambda _: ByHand(likelihood))
    found = judge(
        [
            tagger_input("he is goes home"),
            tagger_input("what does he?", "he is goes"),
            tagger_input("a"),
        ]
    )
    np.testing.assert_allclose(found.columns["grammar_error"], [0.75, 0.75, 0.25])
    assert not found.problems


def test_all_that_is_said_is_judged_as_it_is():
    model = ByHand(lambda question, answer: 0.5)
    text = "a {text} with {braces} and \\1"
    Grammar(model="m", prompt="Fix {text}?").open(lambda _: model)([tagger_input("q", text)])
    assert [choice.question for choice in model.choices] == [f"Fix q\n{text}?"]


def test_a_placeholder_that_nothing_is_put_in_for_is_refused():
    with pytest.raises(RecipeError, match=r"placeholder {txt}; did you mean 'text'"):
        Grammar(model="m", prompt="Fix {text}, not {txt}")


def test_a_text_that_is_too_long_is_one_problem():
    judge = Grammar(model="m").open(lambda _: ByHand(lambda question, answer: 0.5))
    found = judge([tagger_input("a"), tagger_input("long " * 200)])
    assert {k: p.reason for k, p in found.problems.items()} == {1: "sequence_too_long"}
    assert found.columns["grammar_error"] == [0.5, None]


def test_a_question_is_answerable_if_no_wrong_answer_is_likelier():
    known = {"how many legs has a dog?": "four", "what color is the car?": "white"}

    def likelihood(question: str, answer: str) -> float:
        return 0.4 if known[question] == answer.strip().lower() else 0.1

    tag = Answerable(model="m", answers=("two", "three", "Four ", "red", "white")).open(
        lambda _: ByHand(likelihood)
    )
    found = tag(
        [
            tagger_input("how many legs has a dog?", "four"),
            tagger_input("what color is the car?", "red"),
            tagger_input("how many legs has a dog?", "four", "what color is the car?", "red"),
            tagger_input("how many legs has a dog?", "four", "what color is the car?", "white"),
            tagger_input("only a caption"),
        ]
    ).columns
    assert found["answerable"] == [1, 0, 0, 1, None]
    assert found["answer_rank"] == [1, 2, 2, 1, None]
    # The true answer among itself and four others: 0.4 of 0.8, or 0.1 of 0.8.
    assert found["answer_prob"] == [*map(pytest.approx, (0.5, 0.125, 0.125, 0.5)), None]


def test_a_samples_own_options_go_first():
    model = ByHand(lambda question, answer: {"Paris": 0.5, "Rome": 0.3}.get(answer, 0.1))
    tag = Answerable(model="m", options="choices", answers=("yes", "no")).open(lambda _: model)
    found = tag(
        [
            tagger_input("capital of France?", "Paris", choices=["Rome", "paris ", "Bonn", "Bonn"]),
            tagger_input("capital of Italy?", "Rome", choices=["Rome", "Paris"]),
            tagger_input("is it Paris?", "Rome"),
            tagger_input("is it?", "yes", choices="no list"),
        ]
    ).columns
    asked = [list(choice.answers) for choice in model.choices]
    assert asked[0] == ["Paris", "Rome", "Bonn"]
    assert asked[1] == ["Rome", "Paris"]
    assert asked[2] == ["Rome", "yes", "no"]
    assert asked[3] == ["yes", "no"]
    assert found["answer_rank"] == [1, 2, 1, 1]
    assert found["answerable"] == [1, 0, 1, 1], "an equal answer is not likelier"


def test_without_any_wrong_answer_nothing_is_known():
    tag = Answerable(model="m", options="choices").open(lambda _: ByHand(lambda q, a: 0.5))
    found = tag([tagger_input("is it?", "yes", choices=["yes"]), tagger_input("is it?", "yes")])
    assert found.columns["answerable"] == [None, None]
    assert not found.problems


def test_wrong_answers_are_drawn_by_the_samples_id_alone():
    pool = tuple(f"answer {k}" for k in range(40))
    inputs = [tagger_input("q?", "true", name=f"s{k}") for k in range(30)]

    def drawn(order: Sequence[int], answers: Sequence[str], seed: int = 0) -> dict[str, set[str]]:
        model = ByHand(lambda question, answer: 0.5)
        tag = Answerable(model="m", answers=tuple(answers), num_wrong=5, seed=seed)
        tag.open(lambda _: model)([inputs[k] for k in order])
        names = [inputs[k].sample.sample_id for k in order]
        return {n: set(c.answers[1:]) for n, c in zip(names, model.choices, strict=True)}

    alone = {f"s{k}": drawn([k], pool)[f"s{k}"] for k in range(30)}
    assert drawn(range(30), pool) == alone
    assert drawn(range(29, -1, -1), pool[::-1]) == alone
    assert all(len(some) == 5 for some in alone.values())
    assert len({frozenset(some) for some in alone.values()}) > 25
    assert set().union(*alone.values()) == set(pool)
    assert drawn(range(30), pool, seed=1) != alone


def test_questions_are_what_users_ask_and_get_answered():
    made = tagger_input("first?", "yes", "second?", "no").sample
    assert question_answer_pairs(made) == [("first?", "yes"), ("second?", "no")]
    assert question_answer_pairs(tagger_input("a caption").sample) == []
    empty = Sample(sample_id="a", images=(ImageFile(data=b"", name=""),), turns=(), source="s")
    assert question_answer_pairs(empty) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Grammar(model="m", prompt="errors?"), r"prompt: expected \{text\}"),
        (lambda: Grammar(model="m", yes="no"), "yes and no: found 'no' for both"),
        (lambda: Answerable(model="m"), "answers: expected at least two different ones"),
        (lambda: Answerable(model="m", answers=("a", "A ")), "two different ones"),
        (lambda: Answerable(model="m", options="o", num_wrong=0), "num_wrong: found 0"),
    ],
)
def test_wrong_recipes_are_refused(make, message):
    with pytest.raises(RecipeError, match=message):
        make()
