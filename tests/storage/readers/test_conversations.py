"""What a user wrote into a conversation is used, or the sample is rejected with the reason."""

from typing import Any

import pytest
from tests.support.zoo_images import good_image

from consomme.base.sample import ImageFile, ImageRef, Sample, Turn, turns_of
from consomme.storage.readers.check import check_sample
from consomme.storage.readers.row import RowError
from consomme.storage.readers.turns import Conversation, take_texts
from consomme.storage.reading import Reading

HUMAN = {"from": "human", "value": "<image>\nwhat?"}
GPT = {"from": "gpt", "value": "a cat"}
TURNS = (Turn(role="user", content="what?"), Turn(role="assistant", content="a cat"))


def take_turns(record: dict[str, Any]) -> Conversation:
    (found,) = take_texts(record, Reading(), "a") or ()
    if isinstance(found, RowError):
        raise found
    return found


def taken(*turns: dict[str, Any], num_images: int = 1, **fields: Any) -> tuple[Turn, ...]:
    conversation = take_turns({"conversations": list(turns), **fields})
    return conversation.bound(num_images, has_list=num_images != 1)


def test_a_system_text_beside_the_turns_is_their_first_turn() -> None:
    system = Turn(role="system", content="be brief.")
    assert taken(HUMAN, GPT, system="be brief.") == (system, *TURNS)
    first = {"from": "system", "value": "be brief."}
    assert taken(first, HUMAN, GPT, system="be brief.") == (system, *TURNS)
    assert taken(HUMAN, GPT, system="") == taken(HUMAN, GPT, system=None) == TURNS
    record = {"conversations": [HUMAN, GPT], "system": "be brief.", "lang": "en"}
    take_turns(record)
    assert record == {"lang": "en"}, "it is no metadata"
    caption = {"caption": "a cat", "system": "linux"}
    take_turns(caption)
    assert caption == {"system": "linux"}, "beside a caption it is metadata"


@pytest.mark.parametrize(
    "turns",
    [
        (HUMAN | {"weight": 0}, GPT | {"weight": 1}),
        (HUMAN | {"loss": False}, GPT | {"loss": True}),
        (HUMAN | {"train": None}, GPT | {"train": 1.0, "tool_calls": []}),
    ],
)
def test_masks_that_say_what_is_done_anyway_are_accepted(turns: Any) -> None:
    assert taken(*turns) == TURNS


@pytest.mark.parametrize(
    ("turns", "fields", "message"),
    [
        ((HUMAN, GPT | {"weight": 0.5}), {}, r"has weight=0\.5"),
        ((HUMAN, GPT | {"weight": "no"}), {}, r"has weight='no'"),
        ((HUMAN | {"train": True}, GPT), {}, r"turn 0, by the user, has train=True"),
        ((HUMAN, {"role": "tool_call", "content": "4"}, GPT), {}, r"turn 1 is by 'tool_call'"),
        ((HUMAN, GPT | {"tool_calls": [{"name": "add"}]}), {}, r"turn 1 has tool_calls"),
        ((HUMAN, GPT | {"reasoning_content": "hm"}), {}, r"turn 1 has reasoning_content"),
        ((HUMAN, GPT), {"tools": [{"name": "add"}]}, r"the conversation has tools"),
    ],
)
def test_what_cannot_be_used_is_rejected(turns: Any, fields: Any, message: str) -> None:
    with pytest.raises(RowError, match=message) as caught:
        taken(*turns, **fields)
    assert caught.value.reason == "conversation_unsupported"


def test_an_answer_can_be_left_out() -> None:
    turns = taken(HUMAN, GPT | {"weight": 0}, HUMAN | {"value": "and?"}, GPT | {"loss": True})
    assert [turn.is_labelled for turn in turns] == [True, False, True, True]
    sample = Sample(sample_id="a", turns=turns[:2], source="s")
    with pytest.raises(RowError, match="no turn of the assistant is labelled"):
        check_sample(sample)


def test_results_of_tools_stand_between_answers() -> None:
    tool = {"role": "observation", "content": "4"}
    turns = taken(HUMAN, GPT, tool, tool, GPT)
    assert [turn.role for turn in turns] == ["user", "assistant", "tool", "tool", "assistant"]
    check_sample(Sample(sample_id="a", turns=turns, source="s"))
    with pytest.raises(RowError, match="found user, tool, assistant; expected"):
        check_sample(Sample(sample_id="a", turns=taken(HUMAN, tool, GPT), source="s"))


def test_two_system_texts_are_rejected() -> None:
    with pytest.raises(RowError, match="a system text and another one in its first turn"):
        taken({"from": "system", "value": "be kind."}, HUMAN, GPT, system="be brief.")
    with pytest.raises(RowError, match="system is dict, expected text"):
        taken(HUMAN, GPT, system={"a": 1})


def test_a_question_without_an_answer_is_named() -> None:
    turns = taken(HUMAN, GPT, {"from": "human", "value": "why?"})
    assert turns is not None
    sample = Sample(
        sample_id="a", images=(ImageFile(data=good_image("a"), name="a"),), turns=turns, source="s"
    )
    with pytest.raises(RowError, match="the last turn is the user's and has no answer"):
        check_sample(sample)


def test_a_caption_gets_its_question_after_the_system_text() -> None:
    system = Turn(role="system", content="be brief.")
    sample = Sample(
        sample_id="a",
        images=(ImageFile(data=b"x", name="a"),),
        turns=(system, TURNS[1]),
        source="s",
    )
    shown = Turn(role="user", content=(ImageRef(0), "what?"))
    assert turns_of(sample, "what?") == (system, shown, TURNS[1])
