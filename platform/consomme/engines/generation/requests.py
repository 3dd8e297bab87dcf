"""Requests and results of engines that generate text.

A problem with one request is a result, a `GenerationFailure`, and does not affect other requests.
An exception means that the engine itself is lost, or that no request could ever be answered with
these settings. So several units may share one engine and its batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol

from annotated_types import Interval
from PIL import Image

from consomme.base.bounds import PositiveFraction, PositiveInt
from consomme.base.checked import Checked
from consomme.base.errors import CheckpointError, RecipeError
from consomme.base.sample import REJECT_REASONS, Turn, is_document, place_images
from consomme.engines.contrast import NEEDS_LOGITS, Contrast

Temperature = Annotated[float, Interval(ge=0, le=2)]
"""0 is greedy and repeatable; 2 is the limit of the engines."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A conversation that ends with the user, or the beginning of a document; and its images."""

    turns: tuple[Turn, ...]
    """Alternating; the last one is a user's. Or one assistant turn with images in its text: a
    document to continue. With a reference to each image where it stands;
    without any, all images stand before the text of the first user turn."""

    images: tuple[Image.Image, ...] = field(default=(), repr=False, compare=False)
    """Of any mode."""

    seed: int = 0
    """Of the sampling; greedy decoding does not use it."""

    pattern: str | None = None
    """Regular expression that the whole text has to match."""

    max_tokens: int | None = None
    """Longest text, in tokens; None: that of the engine's sampling."""

    contrast: Contrast | None = None
    """Masked images that each token is compared with; see `consomme.engines.contrast`."""

    def __post_init__(self) -> None:
        """Check that the model's turn is next."""
        if not self.is_document and (not self.turns or self.turns[-1].role != "user"):
            roles = ", ".join(turn.role for turn in self.turns) or "no turns at all"
            raise ValueError(f"a request ends with a user's turn, found: {roles}")

    @classmethod
    def of_prompt(
        cls, prompt: str, images: Sequence[Image.Image] = (), *, seed: int = 0
    ) -> Request:
        """Build a request with one user turn, after the images."""
        return cls(turns=(Turn(role="user", content=prompt),), images=tuple(images), seed=seed)

    @property
    def is_document(self) -> bool:
        """Whether it is a text with images in it, which the model continues."""
        return is_document(self.turns)

    @property
    def placed_turns(self) -> tuple[Turn, ...]:
        """The turns with a reference to each image."""
        return place_images(self.turns, len(self.images))

    @property
    def shown_images(self) -> list[Image.Image]:
        """The images as RGB, in the order in which the turns show them."""
        order = [index for turn in self.placed_turns for index in turn.image_indices]
        return [self.images[index].convert("RGB") for index in order]


@dataclass(frozen=True, kw_only=True)
class Sampling(Checked):
    """How tokens are chosen; the same for all requests of an engine."""

    max_tokens: PositiveInt = 96
    """Longest text, in tokens."""

    temperature: Temperature = 0.0
    """0 is greedy and repeatable."""

    top_p: PositiveFraction = 1.0
    """Nucleus sampling: share of the probability mass to sample from; 1 keeps all of it."""

    stop: tuple[str, ...] = ()
    """Strings that end a text; they are not part of it."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """The text generated for one request."""

    text: str
    """Decoded without special tokens, otherwise exactly as generated."""

    num_tokens: int
    """Generated tokens, including the one that ends the text."""

    finish_reason: Literal["stop", "length"]
    """`stop` if the model ended the text, `length` if `max_tokens` cut it off."""


@dataclass(frozen=True, kw_only=True)
class GenerationFailure:
    """Why there is no text for one request."""

    reason: str
    """A word from `consomme.base.sample.REJECT_REASONS`."""

    detail: str

    def __post_init__(self) -> None:
        """Check the reason."""
        if self.reason not in REJECT_REASONS:
            raise ValueError(f"reason {self.reason!r} is not in REJECT_REASONS")


@dataclass(frozen=True, kw_only=True)
class QueueLoad:
    """How busy an engine is."""

    running: int
    """Requests that are being generated."""

    waiting: int
    """Requests in the queue."""


class GenerationEngine(Protocol):
    """Generates texts with one model; several threads may use it at once."""

    version: str
    """Engine and version, for the provenance."""

    def generate(self, requests: Sequence[Request]) -> list[Generation | GenerationFailure]:
        """Generate a text for each request; aligned with them.

        Safe to call from several threads at once; their requests share the engine's batches.

        Raises:
            EngineLostError: The engine failed or was closed, and cannot be used any more.
            RecipeError: No request of this kind can be answered with these settings.
        """

    def queue_load(self) -> QueueLoad:
        """Return how busy the engine is."""

    def close(self) -> None:
        """Shut the engine down and free its memory; waiting callers get an `EngineLostError`."""


def check_vision(has_vision: bool, requests: Sequence[Request]) -> None:
    """Refuse requests with images for a model without a vision encoder.

    Raises:
        CheckpointError: A request has an image.
    """
    if not has_vision and any(one.images for one in requests):
        raise CheckpointError(
            "the model has no vision encoder, but found a request with an image; expected the"
            " folder of a VLM"
        )


def check_unguided(requests: Sequence[Request], engine: str) -> None:
    """Refuse requests with a contrast for an engine that gives no logits.

    Raises:
        RecipeError: A request has one.
    """
    if any(one.contrast is not None for one in requests):
        raise RecipeError(NEEDS_LOGITS.format(engine=engine))
