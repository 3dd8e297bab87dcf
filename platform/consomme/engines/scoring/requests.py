"""What every scoring engine takes and gives: conversations about pictures, and their nats.

One decision is made here: which conversations are scored at all, and how much of them. It is the
same for every engine, so that engines can be exchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image
from torch import Tensor, split

from consomme.base.errors import DataError
from consomme.base.sample import Turn
from consomme.models.chat import ChatEncoder
from consomme.models.chat_prefix import PrefixChatEncoder
from consomme.models.encoded import EncodedChat, PictureRefusedError

# Shapes: S spoken tokens.


@dataclass(frozen=True, kw_only=True)
class ScoringRequest:
    """What is to be scored: a conversation, and the picture it is about."""

    turns: tuple[Turn, ...]
    image: Image.Image | None = None
    key: object = None
    """Names the picture; neighbours with the same key share its encoding."""

    @classmethod
    def about(cls, prompt: str, caption: str, image: Image.Image | None = None) -> ScoringRequest:
        """Ask for a caption."""
        turns = (Turn(role="user", content=prompt), Turn(role="assistant", content=caption))
        return cls(turns=turns, image=image)


@dataclass(frozen=True, kw_only=True)
class TurnScore:
    """What one assistant turn scored, in nats."""

    nll: float
    nll_text: float
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class Score:
    """What the assistant's words scored, in nats."""

    nll: float
    """Picture, prompt and earlier tokens as context."""

    nll_text: float
    """Prompt and earlier tokens only."""

    num_tokens: int
    """Spoken tokens: each answer, and the token that ends its turn."""

    max_token_nll: float
    """Nats of the most surprising token, with the picture."""

    turns: tuple[TurnScore, ...] = ()
    """The same by turn."""

    is_truncated: bool = False
    """Only the first tokens were scored."""


@dataclass(frozen=True, kw_only=True)
class NotScored:
    """Why one conversation has no score."""

    reason: str
    """A word from `consomme.base.sample.REJECT_REASONS`."""

    detail: str


class ScoringEngine(Protocol):
    """Scores conversations with one model."""

    def score(self, questions: Sequence[ScoringRequest]) -> list[Score | NotScored]:
        """Score each conversation; aligned with `questions`."""


@dataclass(frozen=True, kw_only=True)
class EncodedConversation:
    """One conversation on its way through a model, with its picture or without."""

    spoken: EncodedChat
    picture: object = None
    """Names the picture; None without one."""

    num_cut: int = 0
    """Tokens that were cut off at the end."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much of a conversation is scored."""

    max_caption_tokens: int
    """Answers that are longer are not scored."""

    truncates: bool
    """The first `max_caption_tokens` of longer ones are scored instead."""

    max_positions: int
    """Most tokens the model takes."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One conversation in tokens."""

    passages: list[EncodedConversation]
    """With its picture, if there is one and the model has eyes; and without."""

    is_truncated: bool


def encode(
    chat: ChatEncoder | PrefixChatEncoder, question: ScoringRequest, number: int, limits: Limits
) -> Encoded | NotScored:
    """Put a conversation into tokens, with its picture and without.

    Args:
        chat: Of the model.
        question: The conversation.
        number: Names its picture, if nothing else does.
        limits: What is too long.
    """
    try:
        passages = [EncodedConversation(spoken=chat.encode(question.turns, None))]
        if question.image is not None and chat.has_vision:
            spoken = chat.encode(question.turns, question.image, question.key)
            picture = ("unnamed", number) if question.key is None else question.key
            passages.insert(0, EncodedConversation(spoken=spoken, picture=picture))
    except PictureRefusedError as error:
        return NotScored(reason="image_not_encodable", detail=str(error))
    except DataError as error:
        return NotScored(reason="text_not_encodable", detail=str(error))
    num_tokens = passages[0].spoken.num_tokens
    is_truncated = num_tokens > limits.max_caption_tokens
    if is_truncated:
        if not limits.truncates:
            detail = f"{num_tokens} tokens, at most {limits.max_caption_tokens}"
            return NotScored(reason="caption_too_long", detail=detail)
        passages = [_cut(one, limits.max_caption_tokens) for one in passages]
    length = max(len(one.spoken.input_ids) for one in passages)
    if length > limits.max_positions:
        detail = f"{length} tokens, the model has {limits.max_positions} positions"
        return NotScored(reason="sequence_too_long", detail=detail)
    return Encoded(passages=passages, is_truncated=is_truncated)


def _cut(passage: EncodedConversation, num_tokens: int) -> EncodedConversation:
    """Keep the first spoken tokens of a passage, and nothing behind them."""
    spoken = passage.spoken
    left, spans = num_tokens, []
    for begin, end in spoken.spans:
        if left > 0:
            spans.append((begin, min(end, begin + left)))
            left -= end - begin
    stop = spans[-1][1]
    short = EncodedChat(
        input_ids=spoken.input_ids[:stop],
        spans=spans,
        token_types=spoken.token_types[:stop],
        pixels=spoken.pixels,
    )
    num_cut = len(spoken.input_ids) - stop
    return EncodedConversation(spoken=short, picture=passage.picture, num_cut=num_cut)


def to_score(
    with_image_S: Tensor, without_S: Tensor, spans: Sequence[tuple[int, int]], is_truncated: bool
) -> Score:
    """Make a score of the nats of all spoken tokens, with the picture and without."""
    sizes = [end - begin for begin, end in spans]
    turns = tuple(
        TurnScore(
            nll=float(seen.double().sum()), nll_text=float(blind.double().sum()), num_tokens=size
        )
        for seen, blind, size in zip(
            split(with_image_S, sizes), split(without_S, sizes), sizes, strict=True
        )
    )
    return Score(
        nll=float(with_image_S.double().sum()),
        nll_text=float(without_S.double().sum()),
        num_tokens=sum(sizes),
        max_token_nll=float(with_image_S.max()),
        turns=turns,
        is_truncated=is_truncated,
    )
