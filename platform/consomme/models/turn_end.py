"""Find the token by which a model's chat template ends an assistant turn.

The token is labelled with the answer, or the model never learns to stop. A template that writes
none, as LLaVA's, gets one appended; where there is none to append, the model is refused.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consomme.base.errors import CheckpointError
from consomme.base.sample import Turn
from consomme.models.side_files import as_ids, read_generation_config

logger = logging.getLogger(__name__)

_PROBE = (
    Turn(role="user", content="first question"),
    Turn(role="assistant", content="first answer"),
    Turn(role="user", content="second question"),
    Turn(role="assistant", content="second answer"),
)


@dataclass(frozen=True, kw_only=True)
class TurnEnd:
    """How the assistant's turns end in one model's conversations."""

    ids: frozenset[int]
    """Tokens that may end a turn where one follows an answer."""

    last_id: int
    """The token that ends the last turn: a model that stops generates it."""

    after_every_turn: str = ""
    """Text to append to each answer, because the template writes no end."""

    after_last_turn: str = ""
    """Text to append to a conversation, because the template ends all turns but the last."""


def find_turn_end(config: Any, tokenizer: Any, render: Callable[[Sequence[Turn]], str]) -> TurnEnd:
    """Find how a chat template ends the assistant's turns.

    Any added token that is marked special counts as an end where it follows an answer, and any id
    in `eos_token_id` of the configuration and of the generation configuration.

    Args:
        config: The model's.
        tokenizer: The model's.
        render: Renders a conversation without images by the chat template.

    Raises:
        CheckpointError: The template writes no end and there is none to append; or it fails on a
            plain question and answer.
    """
    stop_ids = stop_ids_of(config, tokenizer)
    special = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = frozenset(special.union(stop_ids, tokenizer.all_special_ids))
    by_text = {tokenizer.convert_ids_to_tokens(id_): id_ for id_ in ids}

    def end_after(answer: str, turns: Sequence[Turn]) -> str | None:
        _, found_answer, following = render(turns).rpartition(answer)
        if not found_answer:
            raise ValueError(f"it does not write the assistant's text, {answer!r}")
        found = [text for text in by_text if text and following.lstrip().startswith(text)]
        return max(found, key=len, default=None)

    try:
        last = end_after(_PROBE[1].text, _PROBE[:2])
    # A template is a program of the model's author and may raise anything.
    except Exception as error:
        raise CheckpointError(
            f"the model's chat template fails on a plain question and answer: {error};"
            " mend chat_template.jinja in the model's folder"
        ) from error
    if last is not None:
        return TurnEnd(ids=ids, last_id=by_text[last])
    inner = _inner_end(end_after)
    if inner is not None and by_text[inner] in stop_ids:
        _say(f"ends all assistant turns but the last with {inner!r}")
        return TurnEnd(ids=ids, last_id=by_text[inner], after_last_turn=inner)
    eos = tokenizer.eos_token
    probe = (_PROBE[0], Turn(role="assistant", content=f"{_PROBE[1].text}{eos}"))
    if not eos or end_after(_PROBE[1].text, probe) != eos:
        raise CheckpointError(
            "the model's chat template ends the assistant's turns with no token, so a model would"
            f" not learn to stop; found eos_token={eos!r} in tokenizer_config.json, expected a"
            " token that can be appended to answers; write one after the assistant's text in"
            " chat_template.jinja"
        )
    _say(f"ends assistant turns with no token, so {eos!r}, the tokenizer's eos_token, is appended")
    return TurnEnd(
        ids=frozenset({tokenizer.eos_token_id}),
        last_id=tokenizer.eos_token_id,
        after_every_turn=eos,
    )


def _inner_end(end_after: Callable[[str, Sequence[Turn]], str | None]) -> str | None:
    """Return what follows an answer that is not the last; None if there are no conversations."""
    try:
        return end_after(_PROBE[1].text, _PROBE)
    except Exception:  # noqa: BLE001 - a template raises anything; it takes one question only.
        return None


def stop_ids_of(config: Any, tokenizer: Any) -> frozenset[int]:
    """Return the ids at which generation stops, by the model's configurations and tokenizer."""
    found = as_ids(tokenizer.eos_token_id)
    for owner in (config, config.get_text_config()):
        found += as_ids(getattr(owner, "eos_token_id", None))
    # The folder that the tokenizer was opened from; the model's own, with its generation config.
    if tokenizer.name_or_path:
        content = read_generation_config(Path(tokenizer.name_or_path))
        found += as_ids(content.get("eos_token_id"))
    return frozenset(found)


def extend_over_end(
    ids: Sequence[int], is_space: Callable[[int], bool], stop: int, ends: Collection[int]
) -> int:
    """Extend a span over the token that ends the turn, and over white space before it.

    Args:
        ids: All tokens.
        is_space: Whether the token at an index is white space.
        stop: Index after the answer's last token.
        ends: Tokens that end a turn.

    Returns:
        The index after the end, or `stop` if no end follows.
    """
    at = stop
    while at < len(ids) and ids[at] not in ends and is_space(at):
        at += 1
    return at + 1 if at < len(ids) and ids[at] in ends else stop


@functools.cache
def _say(what: str) -> None:
    """Log once per process."""
    logger.info("the chat template %s", what)
