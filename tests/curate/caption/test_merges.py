"""Merging loses nothing of what came with a sample, whatever the texts are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consomme.base.errors import DataError, RecipeError
from consomme.base.sample import ImageRef, Turn, caption_turns
from consomme.curate.caption.merges import (
    MERGES,
    AppendTurns,
    Concatenate,
    Replace,
    find_answer,
)

ASKED = {"prompt": "read the text.", "question_for_caption": "describe the image."}
TALK = (
    Turn(role="system", content="be brief."),
    Turn(role="user", content="what is it?"),
    Turn(role="assistant", content="a cat"),
    Turn(role="user", content="its color?"),
    Turn(role="assistant", content="red"),
)

texts = st.text(max_size=30)
conversations = st.builds(
    lambda system, pairs: (
        *(Turn(role="system", content=text) for text in system),
        *(
            Turn(role=role, content=text)
            for pair in pairs
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ),
    ),
    st.lists(texts, max_size=1),
    st.lists(st.tuples(texts, texts), min_size=1, max_size=3),
)
samples = conversations | st.builds(caption_turns, texts)


def merge(how, turns, written):
    return how(turns, written, answer=find_answer(turns, ()), **ASKED)


def said(turns):
    return [turn.content for turn in turns if turn.role == "assistant"]


def test_replacing_leaves_nothing_of_the_caption_and_all_of_the_rest():
    assert merge(Replace(), caption_turns("IMG_1"), "a cat") == caption_turns("a cat")
    merged = merge(Replace(), TALK, "a dog")
    assert said(merged) == ["a dog", "red"]
    assert [t for t in merged if t.role != "assistant"] == [
        t for t in TALK if t.role != "assistant"
    ]


def test_concatenating_keeps_the_original_first():
    assert said(merge(Concatenate(), caption_turns("Rex, 2019"), "a dog")) == ["Rex, 2019 a dog"]
    assert said(merge(Concatenate(separator="\n"), TALK, "a pet")) == ["a cat\na pet", "red"]
    assert said(merge(Concatenate(), caption_turns(""), "a dog")) == ["a dog"]


def test_a_specialist_adds_a_question_and_its_answer():
    merged = merge(AppendTurns(), caption_turns("a sign"), "STOP")
    assert merged == (
        Turn(role="user", content="describe the image."),
        Turn(role="assistant", content="a sign"),
        Turn(role="user", content="read the text."),
        Turn(role="assistant", content="STOP"),
    )
    more = merge(AppendTurns(question="where?"), merged, "at the top")
    assert more[:4] == merged
    assert [turn.content for turn in more[4:]] == ["where?", "at the top"]


@given(samples, texts, texts)
def test_the_original_is_always_the_beginning_of_a_concatenation(turns, written, separator):
    merged = merge(Concatenate(separator=separator), turns, written)
    assert said(merged)[0].startswith(said(turns)[0])
    assert said(merged)[0].endswith(written)
    assert said(merged)[1:] == said(turns)[1:]
    assert [t.role for t in merged] == [t.role for t in turns]


@given(samples, st.lists(texts, min_size=1, max_size=4))
def test_appending_changes_nothing_that_was_there_and_keeps_the_order(turns, answers):
    merged = turns
    for number, answer in enumerate(answers):
        merged = merge(AppendTurns(question=f"q{number}"), merged, answer)
    added = len(merged) - len(turns) - 2 * len(answers)
    if turns[0].role == "assistant":
        assert merged[0] == Turn(role="user", content="describe the image.")
        assert added == 1
    else:
        assert added == 0
    assert merged[added : added + len(turns)] == turns
    tail = merged[added + len(turns) :]
    assert [t.content for t in tail if t.role == "user"] == [f"q{n}" for n in range(len(answers))]
    assert said(tail) == answers


def test_recipes_name_them_and_mistakes_are_told():
    assert MERGES.build({"name": "concatenate", "separator": " | "}) == Concatenate(separator=" | ")
    assert MERGES.names() == ["append_turns", "concatenate", "hard_negatives", "replace"]
    with pytest.raises(RecipeError, match="did you mean 'concatenate'"):
        MERGES.build({"name": "concatenat"})
    with pytest.raises(RecipeError, match="question: found an empty one"):
        MERGES.build({"name": "append_turns", "question": " "})


def test_hard_negatives_ask_for_the_text_among_them():
    merge = MERGES.build({"name": "hard_negatives", "max_negatives": 2})
    text = "a red dog left of a blue car"
    merged = merge(caption_turns("web"), text, answer=0, **ASKED)
    assert [turn.role for turn in merged] == ["user", "assistant"] * 2
    assert merged[1].content == text
    lines = merged[2].content.splitlines()[1:-1]
    options = {line[0]: line[3:] for line in lines}
    assert len(options) == len(set(options.values())) == 3
    assert options[merged[3].content] == text
    assert merge(caption_turns("other"), text, answer=0, **ASKED) == merged
    letters = {
        merge(caption_turns("w"), f"a red dog left of a blue car {k}", answer=0, **ASKED)[3].content
        for k in range(20)
    }
    assert letters == {"A", "B", "C"}
    # Nothing can be changed: nothing is asked.
    plain = "it is the one."
    assert merge(TALK, plain, answer=2, **ASKED) == Replace()(TALK, plain, answer=2, **ASKED)
    with pytest.raises(RecipeError, match="swap_obj"):
        MERGES.build({"name": "hard_negatives", "kinds": ["swap_object"]})
    with pytest.raises(RecipeError, match="options"):
        MERGES.build({"name": "hard_negatives", "question": "which?"})


def test_turns_without_an_answer_are_refused():
    with pytest.raises(DataError, match="found user; expected an assistant's turn"):
        find_answer((Turn(role="user", content="hm?"),), ())


A, B, C = ImageRef(0), ImageRef(1), ImageRef(2)
OVER_TURNS = (
    Turn(role="user", content="hello"),
    Turn(role="assistant", content="hi"),
    Turn(role="user", content=(A, "what is it?")),
    Turn(role="assistant", content="a star"),
    Turn(role="user", content=("and ", B, "?")),
    Turn(role="assistant", content="a square", is_labelled=False),
    Turn(role="user", content="sure?"),
    Turn(role="assistant", content="yes"),
)
DOCUMENT = Turn(role="assistant", content=("Stars: ", A, " here, ", B, C, "and again ", A))


@pytest.mark.parametrize(
    ("turns", "shown", "expected"),
    [
        (caption_turns("a star"), (0, 1, 2), 0),
        (TALK, (0, 1), 2),
        (TALK, (), 2),
        (OVER_TURNS, (), 1),
        (OVER_TURNS, (0,), 3),
        # The answer right after the second image is not learned.
        (OVER_TURNS, (0, 1), 7),
        (OVER_TURNS[:6], (0, 1), 5),
        ((DOCUMENT,), (0, 1, 2), 0),
    ],
)
def test_a_text_goes_to_the_first_answer_after_its_images(turns, shown, expected):
    assert find_answer(turns, shown) == expected


@pytest.mark.parametrize("how", [Replace(), Concatenate(), AppendTurns()])
def test_images_stay_in_their_turns(how):
    merged = how(OVER_TURNS, "a red star", answer=3, **ASKED)
    assert [turn.content for turn in merged[:8] if turn.role == "user"] == [
        turn.content for turn in OVER_TURNS if turn.role == "user"
    ]
    assert [turn.is_labelled for turn in merged[:8]] == [turn.is_labelled for turn in OVER_TURNS]
    assert "a red star" in said(merged)[-1 if isinstance(how, AppendTurns) else 1]


def test_a_text_for_a_whole_document_replaces_its_texts_or_ends_it():
    (replaced,) = merge(Replace(), (DOCUMENT,), "three stars")
    assert replaced.content == (A, B, C, A, "three stars")
    (more,) = merge(Concatenate(separator="\n"), (DOCUMENT,), "three stars")
    assert more.content == (*DOCUMENT.content, "\nthree stars")


def test_texts_about_the_images_of_a_document_stand_beside_them():
    texts = {0: "[a]", 1: "[b]", 2: "[c]"}
    only = Replace().beside_images(DOCUMENT, texts)
    assert only.content == (A, "[a]\n", B, "[b]\n", C, "[c]")
    after = Concatenate().beside_images(DOCUMENT, texts)
    assert after.content == ("Stars: ", A, "[a]  here, ", B, "[b]", C, "[c] and again ", A)
    before = Concatenate(side="before").beside_images(DOCUMENT, texts)
    assert before.content == ("Stars:  [a]", A, " here,  [b]", B, "[c]", C, "and again ", A)
    assert not AppendTurns().takes_documents
