"""Give a language model's tokenizer tokens for images, rows for them, and a template with images.

The new rows are the mean of the old ones, in the matrix of the input tokens and in that of the
output tokens: a new token is then never the most probable one, and moves no old probability much.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from consomme.assemble.parts import LanguagePart
from consomme.base.errors import CheckpointError
from consomme.models.imports import import_transformers

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '### ' + message['role'].capitalize() + ':\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"
)
"""For language models without a template of their own: roles in plain words, an end after answers.
"""

_AS_TEXT = (
    "{%%- set consomme = namespace(messages=[], text='') -%%}"
    "{%%- for message in messages -%%}"
    "{%%- if message['content'] is string or not message['content'] -%%}"
    "{%%- set consomme.messages = consomme.messages + [message] -%%}"
    "{%%- else -%%}"
    "{%%- set consomme.text = '' -%%}"
    "{%%- for part in message['content'] -%%}"
    "{%%- if part['type'] == 'image' -%%}"
    "{%%- set consomme.text = consomme.text + '%s' -%%}"
    "{%%- else -%%}"
    "{%%- set consomme.text = consomme.text + part['text'] -%%}"
    "{%%- endif -%%}"
    "{%%- endfor -%%}"
    "{%%- set consomme.messages = consomme.messages + [dict(message, content=consomme.text)] -%%}"
    "{%%- endif -%%}"
    "{%%- endfor -%%}"
    "{%%- set messages = consomme.messages %%}"
)
"""Writes contents of parts as one text before the language model's own template reads them."""

_PROBE = (
    {"role": "user", "content": "What is it?"},
    {"role": "assistant", "content": "A circle."},
    {"role": "user", "content": "Which color?"},
)


def with_images(template: str, image_token: str) -> str:
    """Return a chat template of texts as one that also takes content parts, images among them.

    An image becomes its token in its place. Texts are written as before.
    """
    return _AS_TEXT % image_token + template


def set_template(language: LanguagePart, image_token: str) -> str:
    """Return the template for a processor: the tokenizer's own, or a plain one, with images.

    Raises:
        CheckpointError: The template writes other texts than before, or drops images; or the
            tokenizer has no end of text, which the plain template needs.
    """
    tokenizer = language.tokenizer
    own = tokenizer.chat_template
    if isinstance(own, dict):
        own = own.get("default")
    if not own and not tokenizer.eos_token:
        raise CheckpointError(
            "language_model: found neither a chat template nor an eos_token in its tokenizer,"
            " expected one of them: a model that never ends its turns is of no use; set eos_token"
            " in tokenizer_config.json"
        )
    template = own or PLAIN_TEMPLATE
    made = with_images(template, image_token)

    def render(chat_template: str, messages: Sequence[Any]) -> str:
        text: str = tokenizer.apply_chat_template(
            list(messages), chat_template=chat_template, tokenize=False, add_generation_prompt=True
        )
        return text

    try:
        before, after = render(template, _PROBE), render(made, _PROBE)
    # A template is a program of the model's author and may raise anything.
    except Exception as error:
        raise CheckpointError(
            "language_model: its chat template does not take a conversation in text alone:"
            f" {error}; mend its chat_template.jinja"
        ) from error
    shown = [
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": _PROBE[0]["content"]}],
        },
        *_PROBE[1:],
    ]
    with_image = render(made, shown)
    if before != after or with_image.replace(image_token, "", 1) != before:
        raise CheckpointError(
            "language_model: its chat template cannot be given images: without one it writes"
            f" {before[:120]!r}, with one {with_image[:120]!r}; mend its chat_template.jinja"
        )
    return made


def add_tokens(language: LanguagePart, tokens: Sequence[str], multiple: int) -> list[str]:
    """Add special tokens to a tokenizer, and rows for them to the language model.

    Args:
        language: Changed in place.
        tokens: Those that it has already are kept.
        multiple: The number of rows is rounded up to one of this.

    Returns:
        The tokens that were new.

    Raises:
        CheckpointError: A token is an ordinary word of the tokenizer, or is split by it.
    """
    tokenizer = language.tokenizer
    special = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    new = [token for token in tokens if token not in special]
    taken = [token for token in new if token in tokenizer.get_vocab()]
    if taken:
        raise CheckpointError(
            f"language_model: {taken[0]!r} is an ordinary token of its tokenizer, expected a"
            " special one or none; rename it there"
        )
    num_words = len(tokenizer)
    added = import_transformers().AddedToken
    tokenizer.add_tokens([added(t, special=True, normalized=False) for t in new], True)
    for token in tokens:
        if tokenizer.encode(token, add_special_tokens=False) != [
            tokenizer.convert_tokens_to_ids(token)
        ]:
            raise CheckpointError(f"language_model: its tokenizer splits the new token {token!r}")
    resize(language.model, num_words, len(tokenizer), multiple)
    return new


@torch.no_grad()
def resize(model: Any, num_words: int, num_tokens: int, multiple: int) -> None:
    """Give a language model rows for tokens; new ones are the mean of the rows of old tokens.

    Args:
        model: Changed in place; a model that ties its matrices goes on to.
        num_words: Tokens that it was trained with; its rows beyond them stay, but those of new
            tokens are the mean too.
        num_tokens: Tokens with the new ones.
        multiple: The number of rows is rounded up to one of this.
    """
    old = model.get_input_embeddings().weight.shape[0]
    rows = max(old, num_tokens)
    rows = -(-rows // multiple) * multiple
    if rows != old:
        model.resize_token_embeddings(rows, mean_resizing=False)
    if model.get_input_embeddings().weight.shape[0] != rows:
        raise CheckpointError(
            f"language_model: a {model.config.model_type} does not let its {old} rows of tokens be"
            f" resized to {rows}; choose another language model"
        )
    fresh = [*range(num_words, num_tokens), *range(max(old, num_tokens), rows)]
    output = model.get_output_embeddings()
    matrices = {id(m): m for m in (model.get_input_embeddings().weight, output.weight)}
    vectors = [output.bias] if getattr(output, "bias", None) is not None else []
    for rows_VW in (*matrices.values(), *vectors):
        mean = rows_VW[:num_words].float().mean(dim=0)
        rows_VW[fresh] = mean.to(rows_VW.dtype)
