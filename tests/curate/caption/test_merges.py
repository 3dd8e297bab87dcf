"""Merging loses nothing of what came with a sample, whatever the texts are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consomme.base.errors import DataError, RecipeError
from consomme.base.sample import Turn, caption_turns
from consomme.curate.caption.merges import MERGES, AppendTurns, Concatenate, Replace

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


def said(turns):
    return [turn.content for turn in turns if turn.role == "assistant"]


def test_replacing_leaves_nothing_of_the_caption_and_all_of_the_rest():
    assert Replace()(caption_turns("IMG_1"), "a cat", **ASKED) == caption_turns("a cat")
    merged = Replace()(TALK, "a dog", **ASKED)
    assert said(merged) == ["a dog", "red"]
    assert [t for t in merged if t.role != "assistant"] == [
        t for t in TALK if t.role != "assistant"
    ]


def test_concatenating_keeps_the_original_first():
    assert said(Concatenate()(caption_turns("Rex, 2019"), "a dog", **ASKED)) == ["Rex, 2019 a dog"]
    assert said(Concatenate(separator="\n")(TALK, "a pet", **ASKED)) == ["a cat\na pet", "red"]
    assert said(Concatenate()(caption_turns(""), "a dog", **ASKED)) == ["a dog"]


def test_a_specialist_adds_a_question_and_its_answer():
    merged = AppendTurns()(caption_turns("a sign"), "STOP", **ASKED)
    assert merged == (
        Turn(role="user", content="describe the image."),
        Turn(role="assistant", content="a sign"),
        Turn(role="user", content="read the text."),
        Turn(role="assistant", content="STOP"),
    )
    more = AppendTurns(question="where?")(merged, "at the top", **ASKED)
    assert more[:4] == merged
    assert [turn.content for turn in more[4:]] == ["where?", "at the top"]


@given(samples, texts, texts)
def test_the_original_is_always_the_beginning_of_a_concatenation(turns, written, separator):
    merged = Concatenate(separator=separator)(turns, written, **ASKED)
    assert said(merged)[0].startswith(said(turns)[0])
    assert said(merged)[0].endswith(written)
    assert said(merged)[1:] == said(turns)[1:]
    assert [t.role for t in merged] == [t.role for t in turns]


@given(samples, st.lists(texts, min_size=1, max_size=4))
def test_appending_changes_nothing_that_was_there_and_keeps_the_order(turns, answers):
    merged = turns
    for number, answer in enumerate(answers):
        merged = AppendTurns(question=f"q{number}")(merged, answer, **ASKED)
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
    assert MERGES.names() == ["append_turns", "concatenate", "replace"]
    with pytest.raises(RecipeError, match="did you mean 'concatenate'"):
        MERGES.build({"name": "concatenat"})
    with pytest.raises(RecipeError, match="question: found an empty one"):
        MERGES.build({"name": "append_turns", "question": " "})


@pytest.mark.parametrize("merge", [Replace(), Concatenate(), AppendTurns()])
def test_turns_without_an_answer_are_refused(merge):
    with pytest.raises(DataError, match="found user; expected an assistant's turn"):
        merge((Turn(role="user", content="hm?"),), "a cat", **ASKED)
