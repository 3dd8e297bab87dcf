"""The token that ends the assistant's turn is labelled in every family, so models learn to stop."""

from typing import Any

import pytest
from tests.support.families import FAMILIES, IM, hf, noise, text_config, tokenizer

from consomme.base.errors import CheckpointError, DataError
from consomme.base.sample import Turn
from consomme.models.chat import ChatEncoder
from consomme.models.chat_prefix import chat_encoder_for

ENDS = {
    "llava": "</s>",
    "idefics2": "<end_of_utterance>",
    "idefics3": "<end_of_utterance>",
    "smolvlm": "<end_of_utterance>",
    "gemma3": "<end_of_turn>",
    "paligemma": "<eos>",
}
CONVERSATION = (
    Turn(role="user", content="describe the image."),
    Turn(role="assistant", content="a red circle"),
    Turn(role="user", content="what color is it?"),
    Turn(role="assistant", content="red"),
)


def labelled(chat: Any, turns: tuple[Turn, ...], *, has_image: bool) -> list[str]:
    row = chat.encode(turns, [noise(0, 40, 32)] if has_image else ())
    return [chat.tokenizer.decode(row.input_ids[slice(*span)]).strip() for span in row.spans]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_labelled_token_ends_the_turn(family: str) -> None:
    model, processor = FAMILIES[family]()
    chat = chat_encoder_for(model.config, processor)
    end = ENDS.get(family, "<|im_end|>")
    assert chat.tokenizer.decode([chat.turn_end.last_id]) == end
    num_turns = 2 if family == "paligemma" else 4
    turns = CONVERSATION[:num_turns]
    expected = [f"a red circle{end}", f"red{end}"][: num_turns // 2]
    assert labelled(chat, turns, has_image=True) == expected
    assert labelled(chat, turns, has_image=False) == expected


ROLES = "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}"
PROMPT = "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"


def encoder(template: str, special: tuple[str, ...] = (), **names: Any) -> ChatEncoder:
    words = tokenizer("bytes", [*IM, "<|user|>", "<|assistant|>", *special], **names)
    words.chat_template = template
    return ChatEncoder(text_config(hf.LlamaConfig), words)


def test_white_space_before_the_end_is_labelled() -> None:
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] }} <|im_end|>{% endif %}{% endfor %}"
    )
    chat = encoder(template, eos_token="<|im_end|>")
    row = chat.encode(CONVERSATION)
    found = [chat.tokenizer.decode(row.input_ids[slice(*span)]) for span in row.spans]
    assert [text.strip() for text in found] == ["a red circle <|im_end|>", "red <|im_end|>"]


def test_a_role_that_ends_the_turn_before_it_also_ends_the_last_turn() -> None:
    """GLM's template writes the next role and nothing at the end; generation stops at the role."""
    words = tokenizer("bytes", [*IM, "<|user|>", "<|assistant|>"], eos_token="<|endoftext|>")
    words.chat_template = ROLES + "{% endfor %}" + PROMPT
    role_id = words.convert_tokens_to_ids("<|user|>")
    config = text_config(hf.LlamaConfig, eos_token_id=[0, role_id])
    chat = ChatEncoder(config, words)
    assert labelled(chat, CONVERSATION, has_image=False) == ["a red circle<|user|>", "red<|user|>"]
    assert chat.turn_end.last_id == role_id
    prompt = chat.tokenizer.decode(chat.encode_prompt(CONVERSATION[:3]).input_ids)
    assert prompt.endswith("what color is it?<|assistant|>\n")


def test_a_template_without_an_end_gets_the_tokenizers() -> None:
    chat = encoder(ROLES + " {% endfor %}" + PROMPT, eos_token="<|endoftext|>")
    expected = ["a red circle<|endoftext|>", "red<|endoftext|>"]
    assert labelled(chat, CONVERSATION, has_image=False) == expected
    # Earlier answers look the same in a prompt as they do in training.
    prompt = chat.encode_prompt(CONVERSATION[:3]).input_ids
    row = chat.encode(CONVERSATION)
    assert row.input_ids[: len(prompt)] == prompt


def test_without_any_end_the_model_is_refused() -> None:
    with pytest.raises(CheckpointError, match="would not learn to stop; found eos_token=None"):
        encoder(ROLES + " {% endfor %}" + PROMPT)


def test_a_template_that_fails_is_refused() -> None:
    with pytest.raises(CheckpointError, match="fails on a plain question and answer: no good"):
        encoder("{{ raise_exception('no good') }}")


THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and not loop.last %}"
    "{{ m['content'].split('</think>')[-1].lstrip() }}"
    "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_an_answer_whose_reasoning_the_template_drops_is_not_labelled_but_the_last_is() -> None:
    chat = encoder(THINKING, eos_token="<|im_end|>")
    thought = "<think>hm</think> a red circle"
    turns = (
        CONVERSATION[0],
        Turn(role="assistant", content=thought),
        CONVERSATION[2],
        Turn(role="assistant", content="<think>well</think> red"),
    )
    row = chat.encode(turns, skip_rewritten=True)
    (span,) = row.spans
    found = chat.tokenizer.decode(row.input_ids[slice(*span)])
    assert found == "<think>well</think> red<|im_end|>"
    with pytest.raises(DataError, match="does not write the assistant's text unchanged"):
        # Scores are per turn, so none may be missing.
        chat.encode(turns)
    assert labelled(chat, turns[:2], has_image=False) == [f"{thought}<|im_end|>"]
