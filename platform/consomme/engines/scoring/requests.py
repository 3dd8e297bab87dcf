"""Requests and results of scoring engines: conversations about images, and their nll in nats.

`encode_request` decides which conversations are scored, and how much of them. It is the same for
every engine, so engines are interchangeable.
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
from consomme.models.encoded import EncodedChat, ImageRefusedError

# Shapes: S scored tokens, which are the labelled tokens of a conversation.


@dataclass(frozen=True, kw_only=True)
class ScoringRequest:
    """A conversation to score, and the image it is about."""

    turns: tuple[Turn, ...]
    image: Image.Image | None = None
    key: object = None
    """Names the image; consecutive requests with the same key share its encoding."""

    @classmethod
    def of_caption(
        cls, prompt: str, caption: str, image: Image.Image | None = None
    ) -> ScoringRequest:
        """Build a request to score one caption after a prompt."""
        turns = (Turn(role="user", content=prompt), Turn(role="assistant", content=caption))
        return cls(turns=turns, image=image)


@dataclass(frozen=True, kw_only=True)
class TurnScore:
    """Score of one assistant turn, in nats; fields as in `Score`."""

    nll: float
    nll_text: float
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class Score:
    """Score of all assistant turns of a conversation, in nats."""

    nll: float
    """Given the image, the prompt and the earlier tokens."""

    nll_text: float
    """Given the prompt and the earlier tokens only."""

    num_tokens: int
    """Scored tokens: each answer, and the token that ends its turn."""

    max_token_nll: float
    """Largest nll of a single token, given the image."""

    turns: tuple[TurnScore, ...] = ()
    """Scores of the single turns."""

    is_truncated: bool = False
    """Whether only the first tokens were scored."""


@dataclass(frozen=True, kw_only=True)
class NotScored:
    """Why one conversation has no score."""

    reason: str
    """A word from `consomme.base.sample.REJECT_REASONS`."""

    detail: str


class ScoringEngine(Protocol):
    """Scores conversations with one model."""

    def score(self, requests: Sequence[ScoringRequest]) -> list[Score | NotScored]:
        """Score each conversation; aligned with `requests`."""


@dataclass(frozen=True, kw_only=True)
class EncodedConversation:
    """One conversation in tokens, with its image or without."""

    chat: EncodedChat
    image_key: object = None
    """Names the image; None without one."""

    num_truncated: int = 0
    """Tokens that were removed at the end."""


@dataclass(frozen=True, kw_only=True)
class ScoringLimits:
    """How much of a conversation is scored."""

    max_caption_tokens: int
    """Conversations with more labelled tokens are not scored."""

    truncates: bool
    """Score the first `max_caption_tokens` of longer ones instead."""

    max_positions: int
    """Maximum sequence length of the model, in tokens."""


@dataclass(frozen=True, kw_only=True)
class EncodedRequest:
    """One request in tokens."""

    conversations: list[EncodedConversation]
    """First with the image, if there is one and the model has a vision encoder; then without."""

    is_truncated: bool


def encode_request(
    chat: ChatEncoder | PrefixChatEncoder,
    request: ScoringRequest,
    index: int,
    limits: ScoringLimits,
) -> EncodedRequest | NotScored:
    """Encode a conversation, with its image and without.

    Args:
        chat: Encoder of the model.
        request: The conversation.
        index: Names its image, if it has no key.
        limits: What is too long.
    """
    try:
        conversations = [EncodedConversation(chat=chat.encode(request.turns, None))]
        if request.image is not None and chat.has_vision:
            with_image = chat.encode(request.turns, request.image, request.key)
            key = ("unnamed", index) if request.key is None else request.key
            conversations.insert(0, EncodedConversation(chat=with_image, image_key=key))
    except ImageRefusedError as error:
        return NotScored(reason="image_not_encodable", detail=str(error))
    except DataError as error:
        return NotScored(reason="text_not_encodable", detail=str(error))
    num_tokens = conversations[0].chat.num_tokens
    is_truncated = num_tokens > limits.max_caption_tokens
    if is_truncated:
        if not limits.truncates:
            detail = f"{num_tokens} tokens, at most {limits.max_caption_tokens}"
            return NotScored(reason="caption_too_long", detail=detail)
        conversations = [_truncate(one, limits.max_caption_tokens) for one in conversations]
    length = max(len(one.chat.input_ids) for one in conversations)
    if length > limits.max_positions:
        detail = f"{length} tokens, the model has {limits.max_positions} positions"
        return NotScored(reason="sequence_too_long", detail=detail)
    return EncodedRequest(conversations=conversations, is_truncated=is_truncated)


def _truncate(conversation: EncodedConversation, num_tokens: int) -> EncodedConversation:
    """Keep the first labelled tokens of a conversation, and nothing after them."""
    chat = conversation.chat
    left, spans = num_tokens, []
    for begin, end in chat.spans:
        if left > 0:
            spans.append((begin, min(end, begin + left)))
            left -= end - begin
    stop = spans[-1][1]
    truncated = EncodedChat(
        input_ids=chat.input_ids[:stop],
        spans=spans,
        token_types=chat.token_types[:stop],
        token_inputs={name: value[:stop] for name, value in chat.token_inputs.items()},
        pixels=chat.pixels,
    )
    return EncodedConversation(
        chat=truncated,
        image_key=conversation.image_key,
        num_truncated=len(chat.input_ids) - stop,
    )


def to_score(
    with_image_S: Tensor, without_S: Tensor, spans: Sequence[tuple[int, int]], is_truncated: bool
) -> Score:
    """Sum the nll of all scored tokens, with the image and without, for each turn and in total."""
    sizes = [end - begin for begin, end in spans]
    turns = tuple(
        TurnScore(
            nll=float(with_image.double().sum()),
            nll_text=float(without.double().sum()),
            num_tokens=size,
        )
        for with_image, without, size in zip(
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
