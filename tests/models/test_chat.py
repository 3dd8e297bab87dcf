"""Labels are what the assistant says, to the token; anything else is refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from consomme.base.errors import CheckpointError, DataError
from consomme.base.sample import Turn
from consomme.models.chat import IGNORE_INDEX, Chat, Encoded
from consomme.models.prefix_dialogue import dialogue_for
from consomme.models.tokenizer import SPECIAL_TOKENS
from consomme.models.weights import open_vlm

ASK = Turn(role="user", content="describe the image.")
CAPTION = "a large red circle at the top left."


def says(text: str) -> Turn:
    return Turn(role="assistant", content=text)


@pytest.fixture(scope="module")
def vlm(debug_vlm: Path) -> tuple[Any, Any]:
    return open_vlm(debug_vlm)


@pytest.fixture(scope="module")
def chat(vlm: tuple[Any, Any]) -> Chat:
    return Chat(*vlm)


def labelled_text(chat: Chat, row: Encoded) -> str:
    assert len(row.labels) == len(row.input_ids)
    pairs = zip(row.labels, row.input_ids, strict=True)
    kept = [(label, token) for label, token in pairs if label != IGNORE_INDEX]
    assert all(label == token for label, token in kept)
    assert row.num_labels == len(kept)
    text: str = chat.tokenizer.decode([label for label, _ in kept])
    return text


@pytest.mark.parametrize("has_image", [True, False])
def test_labels_are_the_caption_and_the_end_token(chat: Chat, has_image: bool) -> None:
    row = chat.encode((ASK, says(CAPTION)), has_image=has_image)
    assert labelled_text(chat, row) == CAPTION + "<end>"
    images = row.input_ids.count(chat.image_token_id)
    assert images == (chat.num_image_tokens if has_image else 0) == (16 if has_image else 0)
    expected = "<bos><user>" + "<image>" * images + "describe the image.<assistant>"
    assert chat.tokenizer.decode(row.input_ids) == expected + CAPTION + "<end>"


def test_in_a_long_conversation_all_answers_are_labelled_and_no_question(chat: Chat) -> None:
    turns = (
        ASK,
        says("a red circle."),
        Turn(role="user", content="what color is the circle?"),
        says("red"),
        Turn(role="user", content="is it large?"),
        says("yes"),
    )
    row = chat.encode(turns, has_image=True)
    assert labelled_text(chat, row) == "a red circle.<end>red<end>yes<end>"
    assert row.input_ids.count(chat.image_token_id) == 16
    assert row.input_ids.index(chat.image_token_id) == 2, "the picture comes first"


PLAIN = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(
    lambda text: not any(token in text for token in SPECIAL_TOKENS)
)


@given(PLAIN)
@settings(max_examples=150)
def test_any_text_is_labelled_exactly(chat: Chat, text: str) -> None:
    row = chat.encode((ASK, says(text)), has_image=True)
    assert labelled_text(chat, row) == text + "<end>"


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_special_tokens_in_a_text_are_refused(chat: Chat, token: str) -> None:
    with pytest.raises(DataError, match=f"the assistant's text holds the special token '{token}'"):
        chat.encode((ASK, says(f"a {token} circle")), has_image=True)
    with pytest.raises(DataError, match=f"the user's text holds the special token '{token}'"):
        chat.encode((Turn(role="user", content=token), says("a circle")), has_image=True)


def test_training_sees_the_prompt_that_generation_gets(chat: Chat, vlm: tuple[Any, Any]) -> None:
    row = chat.encode((ASK, says(CAPTION)), has_image=True)
    context = row.input_ids[: -row.num_labels]
    dialogue = dialogue_for(vlm[0].config, vlm[1])
    assert dialogue.ask((ASK,), Image.new("RGB", (40, 30))).input_ids == context
    short = dialogue.ask_short((ASK,), has_image=True)
    assert chat.tokenizer.decode(short) == "<bos><user><image>describe the image.<assistant>"


def test_a_template_without_marks_is_refused(vlm: tuple[Any, Any]) -> None:
    model, processor = vlm
    tokenizer = SimpleNamespace(
        chat_template="{{ messages }}", pad_token_id=0, all_special_tokens=[]
    )
    with pytest.raises(CheckpointError, match="generation"):
        Chat(model, SimpleNamespace(tokenizer=tokenizer, image_processor=processor.image_processor))


def test_collate_pads_on_the_right(chat: Chat) -> None:
    rows = [chat.encode((ASK, says(text)), has_image=True) for text in ("red", CAPTION)]
    batch = chat.collate(rows)
    short, long = (len(row.input_ids) for row in rows)
    assert batch["input_ids"].shape == batch["labels"].shape == (2, long)
    assert batch["attention_mask"].sum(dim=1).tolist() == [short, long]
    assert batch["input_ids"][0, :short].tolist() == rows[0].input_ids
    assert set(batch["input_ids"][0, short:].tolist()) == {chat.pad_id}
    assert set(batch["labels"][0, short:].tolist()) == {IGNORE_INDEX}


def test_pixels_are_scaled_to_one(chat: Chat) -> None:
    white, black = (Image.new("RGB", (50, 20), shade) for shade in ("white", "black"))
    pixels = chat.pixels([white, black])
    assert pixels.shape == (2, 3, 32, 32)
    assert (pixels[0] == 1).all()
    assert (pixels[1] == -1).all()
