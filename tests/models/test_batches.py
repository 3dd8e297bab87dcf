"""Labels are exactly the assistant's tokens; text that cannot be labelled exactly is refused."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from consomme.base.errors import DataError
from consomme.base.sample import Turn, place_images
from consomme.models.batches import IGNORE_INDEX, Batcher, labels_of
from consomme.models.chat import ChatEncoder
from consomme.models.encoded import EncodedChat
from consomme.models.tokenizer import SPECIAL_TOKENS
from consomme.models.weights import open_vlm

NUM_IMAGE_TOKENS = 16
IMAGE = Image.new("RGB", (40, 30))
QUESTION = Turn(role="user", content="describe the image.")
CAPTION = "a large red circle at the top left."


def answer(text: str) -> Turn:
    return Turn(role="assistant", content=text)


@pytest.fixture(scope="module")
def encoders(debug_vlm: Path) -> tuple[ChatEncoder, Batcher]:
    model, processor = open_vlm(debug_vlm)
    chat = ChatEncoder(model.config, processor)
    return chat, Batcher(model, chat.tokenizer)


@pytest.fixture(scope="module")
def chat(encoders: tuple[ChatEncoder, Batcher]) -> ChatEncoder:
    return encoders[0]


def labelled_text(chat: ChatEncoder, row: EncodedChat) -> str:
    labels = labels_of(row)
    assert len(labels) == len(row.input_ids)
    pairs = zip(labels, row.input_ids, strict=True)
    kept = [(label, token) for label, token in pairs if label != IGNORE_INDEX]
    assert all(label == token for label, token in kept)
    assert row.num_tokens == len(kept)
    text: str = chat.tokenizer.decode([label for label, _ in kept])
    return text


@pytest.mark.parametrize("has_image", [True, False])
def test_labels_are_the_caption_and_the_end_token(chat: ChatEncoder, has_image: bool) -> None:
    row = chat.encode((QUESTION, answer(CAPTION)), [IMAGE] if has_image else ())
    assert labelled_text(chat, row) == CAPTION + "<end>"
    images = row.input_ids.count(chat.image_token_id)
    assert images == (NUM_IMAGE_TOKENS if has_image else 0)
    expected = "<bos><user>" + "<image>" * images + "describe the image.<assistant>"
    assert chat.tokenizer.decode(row.input_ids) == expected + CAPTION + "<end>"


def test_all_answers_of_a_conversation_are_labelled_and_no_question(
    chat: ChatEncoder,
) -> None:
    turns = (
        QUESTION,
        answer("a red circle."),
        Turn(role="user", content="what color is the circle?"),
        answer("red"),
        Turn(role="user", content="is it large?"),
        answer("yes"),
    )
    row = chat.encode(turns, [IMAGE])
    assert labelled_text(chat, row) == "a red circle.<end>red<end>yes<end>"
    assert row.input_ids.count(chat.image_token_id) == 16
    assert row.input_ids.index(chat.image_token_id) == 2, "the image comes first"


PLAIN = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(
    lambda text: text.strip() and not any(token in text for token in SPECIAL_TOKENS)
)


@given(PLAIN)
@settings(max_examples=150)
def test_any_text_is_labelled_exactly(chat: ChatEncoder, text: str) -> None:
    row = chat.encode((QUESTION, answer(text)), [IMAGE])
    assert labelled_text(chat, row) == text.strip() + "<end>"


def test_an_answer_of_white_space_is_refused(chat: ChatEncoder) -> None:
    with pytest.raises(DataError, match="found no tokens for ''"):
        chat.encode((QUESTION, answer(" \n ")), [IMAGE])


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_special_tokens_in_a_text_are_refused(chat: ChatEncoder, token: str) -> None:
    with pytest.raises(DataError, match=f"the assistant's text holds the special token '{token}'"):
        chat.encode((QUESTION, answer(f"a {token} circle")), [IMAGE])
    with pytest.raises(DataError, match=f"the user's text holds the special token '{token}'"):
        chat.encode((Turn(role="user", content=token), answer("a circle")), [IMAGE])


def test_training_and_generation_have_the_same_prompt(chat: ChatEncoder) -> None:
    row = chat.encode((QUESTION, answer(CAPTION)), [IMAGE])
    context = row.input_ids[: -row.num_tokens]
    assert chat.encode_prompt((QUESTION,), [IMAGE]).input_ids == context
    short = chat.unexpanded_prompt_ids(place_images((QUESTION,), 1))
    assert chat.tokenizer.decode(short) == "<bos><user><image>describe the image.<assistant>"


def test_rows_are_padded_on_either_side(encoders: tuple[ChatEncoder, Batcher]) -> None:
    chat, batcher = encoders
    rows = [chat.encode((QUESTION, answer(text)), [IMAGE]) for text in ("red", CAPTION)]
    batch = batcher.collate(rows)
    short, long = (len(row.input_ids) for row in rows)
    assert batch["input_ids"].shape == batch["labels"].shape == (2, long)
    assert batch["attention_mask"].sum(dim=1).tolist() == [short, long]
    assert batch["input_ids"][0, :short].tolist() == rows[0].input_ids
    assert set(batch["input_ids"][0, short:].tolist()) == {batcher.pad_id}
    assert set(batch["labels"][0, short:].tolist()) == {IGNORE_INDEX}
    left = batcher.collate(rows, padding_side="left")
    assert left["input_ids"][0, -short:].tolist() == rows[0].input_ids
    assert left["attention_mask"][0].tolist() == [0] * (long - short) + [1] * short
    assert torch.equal(left["input_ids"][1], batch["input_ids"][1])


def test_questions_have_no_labels(encoders: tuple[ChatEncoder, Batcher]) -> None:
    chat, batcher = encoders
    assert "labels" not in batcher.collate([chat.encode_prompt((QUESTION,), [IMAGE])])


def test_pixels_are_scaled_to_one(encoders: tuple[ChatEncoder, Batcher]) -> None:
    chat, batcher = encoders
    shades = [Image.new("RGB", (50, 20), shade) for shade in ("white", "black")]
    batch = batcher.collate([chat.encode((QUESTION, answer("x")), [shade]) for shade in shades])
    assert batch["pixel_values"].shape == (2, 3, 32, 32)
    assert (batch["pixel_values"][0] == 1).all()
    assert (batch["pixel_values"][1] == -1).all()
