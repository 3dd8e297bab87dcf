"""Requests and results of scoring engines: conversations about images, and their nll in nats.

`encode_request` decides which conversations are scored, and how much of them. It is the same for
every engine, so engines are interchangeable.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image
from torch import Tensor, split

from consomme.base.errors import DataError
from consomme.base.sample import Turn, place_images
from consomme.engines.contrast import DIFFERENT_TOKENS, Contrast, effective
from consomme.models.chat import ChatEncoder
from consomme.models.chat_prefix import PrefixChatEncoder
from consomme.models.encoded import EncodedChat, ImageRefusedError, refusal_reason

# Shapes: S scored tokens, which are the labelled tokens of a conversation.


@dataclass(frozen=True, kw_only=True)
class ScoringRequest:
    """A conversation to score, and its images."""

    turns: tuple[Turn, ...]
    """With a reference to each image where it stands; without any, all images stand before the text
    of the first user turn."""

    images: tuple[Image.Image, ...] = ()
    keys: tuple[object, ...] | None = None
    """Names of the images by what is on them, aligned with them: an image of several requests is
    encoded once, and what was prepared for a name may be used again by later calls."""

    scores_text: bool = True
    """Score the text without the images, too, which costs another pass over it."""

    contrast: Contrast | None = None
    """Masked images that each token is compared with. Its score is then that of the guided
    distribution, softmax((1 + alpha) a - alpha b), and has no `nll_text`."""

    @classmethod
    def of_caption(
        cls, prompt: str, caption: str, image: Image.Image | None = None
    ) -> ScoringRequest:
        """Build a request to score one caption after a prompt."""
        turns = (Turn(role="user", content=prompt), Turn(role="assistant", content=caption))
        return cls(turns=turns, images=() if image is None else (image,))


@dataclass(frozen=True, kw_only=True)
class TurnScore:
    """Score of one labelled text, in nats; fields as in `Score`.

    It is an assistant turn; or one of several texts between images.
    """

    nll: float
    nll_text: float | None
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class Score:
    """Score of all labelled texts of a conversation, in nats."""

    nll: float
    """Given all images and text before each token."""

    nll_text: float | None
    """Given the text before each token only; None for a conversation without images, or if nobody
    asked for it."""

    num_tokens: int
    """Scored tokens: each answer, and the token that ends its turn."""

    max_token_nll: float
    """Largest nll of a single token, given the images."""

    turns: tuple[TurnScore, ...] = ()
    """Scores of the single labelled texts."""

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
class MaskedImages:
    """What another branch of a conversation sees, whose tokens are the same."""

    alpha: float
    """Strength of the guidance."""

    chat: EncodedChat
    """The conversation with masked images."""

    image_keys: tuple[object, ...]
    """Name its images, as in `EncodedConversation`."""


@dataclass(frozen=True, kw_only=True)
class EncodedConversation:
    """One conversation in tokens, with its images or without."""

    chat: EncodedChat
    image_keys: tuple[object, ...] = ()
    """Name its images, in the order of their tokens."""

    num_truncated: int = 0
    """Tokens that were removed at the end."""

    masked: MaskedImages | None = None
    """The same conversation's second branch under guidance."""


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
    """First with the images, if there are any and the model has a vision encoder; then without, if
    that is asked for."""

    has_text_score: bool
    """Whether there are images, and the score without them is asked for."""

    is_truncated: bool


def encode_request(
    chat: ChatEncoder | PrefixChatEncoder,
    request: ScoringRequest,
    index: int,
    limits: ScoringLimits,
) -> EncodedRequest | NotScored:
    """Encode a conversation, with its images and without.

    Args:
        chat: Encoder of the model.
        request: The conversation.
        index: Names its images, if they have no keys.
        limits: What is too long.
    """
    contrast = effective(request.contrast, request.images) if chat.has_vision else None
    try:
        turns = place_images(request.turns, len(request.images))
        if contrast is not None:
            conversations = [_encode_branches(chat, turns, request, index, contrast)]
        else:
            conversations = [EncodedConversation(chat=chat.encode(turns, shows_images=False))]
            if request.images and chat.has_vision:
                keys, cached = _keys_of(request, index)
                with_images = chat.encode(turns, request.images, cached)
                shown = tuple(keys[k] for turn in turns for k in turn.image_indices)
                conversations.insert(0, EncodedConversation(chat=with_images, image_keys=shown))
                if not request.scores_text:
                    del conversations[1:]
    except DataError as error:
        return NotScored(reason=refusal_reason(error), detail=str(error))
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
    return EncodedRequest(
        conversations=conversations,
        has_text_score=bool(request.images) and request.scores_text and contrast is None,
        is_truncated=is_truncated,
    )


def _keys_of(request: ScoringRequest, index: int) -> tuple[Sequence[object], Sequence[object]]:
    """Return names of a request's images, and those by which prepared ones are found again."""
    unnamed = [("unnamed", index, n) for n in range(len(request.images))]
    if request.keys is None:
        # Images without a name are prepared anew in every call.
        return unnamed, [None] * len(unnamed)
    return request.keys, request.keys


def _encode_branches(
    chat: ChatEncoder | PrefixChatEncoder,
    turns: Sequence[Turn],
    request: ScoringRequest,
    index: int,
    contrast: Contrast,
) -> EncodedConversation:
    """Encode a conversation with its images, and with masked ones."""
    keys, cached = _keys_of(request, index)
    masked_keys: list[object] = []
    for key, plain, masked in zip(keys, request.images, contrast.images, strict=True):
        digest = hashlib.blake2b(masked.tobytes(), digest_size=16).digest()
        masked_keys.append(key if masked is plain else ("masked", key, digest))
    masked_cached = cached if request.keys is None else masked_keys
    plain_chat = chat.encode(turns, request.images, cached)
    masked_chat = chat.encode(turns, contrast.images, masked_cached)
    if masked_chat.input_ids != plain_chat.input_ids:
        sizes = {"masked": len(masked_chat.input_ids), "plain": len(plain_chat.input_ids)}
        raise ImageRefusedError(DIFFERENT_TOKENS.format(**sizes))
    order = [k for turn in turns for k in turn.image_indices]
    return EncodedConversation(
        chat=plain_chat,
        image_keys=tuple(keys[k] for k in order),
        masked=MaskedImages(
            alpha=contrast.alpha,
            chat=masked_chat,
            image_keys=tuple(masked_keys[k] for k in order),
        ),
    )


def _truncate(conversation: EncodedConversation, num_tokens: int) -> EncodedConversation:
    """Keep the first labelled tokens of a conversation, and nothing after them."""
    masked = conversation.masked
    if masked is not None:
        masked = dataclasses.replace(masked, chat=_cut(masked.chat, num_tokens))
    chat = _cut(conversation.chat, num_tokens)
    return EncodedConversation(
        chat=chat,
        image_keys=conversation.image_keys,
        num_truncated=len(conversation.chat.input_ids) - len(chat.input_ids),
        masked=masked,
    )


def _cut(chat: EncodedChat, num_tokens: int) -> EncodedChat:
    left, spans = num_tokens, []
    for begin, end in chat.spans:
        if left > 0:
            spans.append((begin, min(end, begin + left)))
            left -= end - begin
    stop = spans[-1][1]
    return dataclasses.replace(
        chat,
        input_ids=chat.input_ids[:stop],
        spans=spans,
        token_types=chat.token_types[:stop],
        token_inputs={name: value[:stop] for name, value in chat.token_inputs.items()},
    )


def to_score(request: EncodedRequest, nlls: Sequence[Tensor]) -> Score:
    """Sum the nll of all scored tokens, with the images and without, for each span and in total.

    A model without a vision encoder has the same sums with images and without.

    Args:
        request: In tokens.
        nlls: Of the scored tokens (S,) of each of its conversations.
    """
    by_span, sizes = [], []
    for one, nll_S in zip(request.conversations, nlls, strict=True):
        sizes.append([end - begin for begin, end in one.chat.spans])
        by_span.append([float(part.double().sum()) for part in split(nll_S, sizes[-1])])
    nll_text = float(nlls[-1].double().sum())
    return Score(
        nll=float(nlls[0].double().sum()),
        nll_text=nll_text if request.has_text_score else None,
        num_tokens=sum(sizes[0]),
        max_token_nll=float(nlls[0].max()),
        turns=tuple(
            TurnScore(nll=nll, nll_text=text if request.has_text_score else None, num_tokens=size)
            for nll, text, size in zip(by_span[0], by_span[-1], sizes[0], strict=True)
        ),
        is_truncated=request.is_truncated,
    )
