"""What every engine that writes takes and gives: requests, and their texts.

What is wrong with one request is an answer, a `GenerationFailure`, and costs no other request
anything. An exception means that the engine itself is gone, or that no request could ever be
answered with these settings. So several units may share one engine and its batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from PIL import Image

from consomme.base.errors import CheckpointError
from consomme.base.sample import REJECT_REASONS, Turn


@dataclass(frozen=True, kw_only=True)
class Request:
    """What an engine is asked: a conversation that ends with a question, and its picture."""

    turns: tuple[Turn, ...]
    """Alternating; the last one is a user's."""

    image: Image.Image | None = field(default=None, repr=False, compare=False)
    """Shown in the first user turn; of any mode."""

    seed: int = 0
    """Of the sampling; greedy decoding does without."""

    pattern: str | None = None
    """Regular expression that the whole text has to match."""

    def __post_init__(self) -> None:
        """Hold the form: an engine goes on where a user has ended."""
        if not self.turns or self.turns[-1].role != "user":
            roles = ", ".join(turn.role for turn in self.turns) or "no turns at all"
            raise ValueError(f"a request ends with a user's turn, found: {roles}")

    @classmethod
    def about(cls, prompt: str, image: Image.Image | None = None, *, seed: int = 0) -> Request:
        """Ask one question."""
        return cls(turns=(Turn(role="user", content=prompt),), image=image, seed=seed)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen; the same for all requests of a writer."""

    max_tokens: int = 96
    """Longest text, in tokens."""

    temperature: float = 0.0
    """0 is greedy and repeatable; at most 2, which is where engines draw the line."""

    top_p: float = 1.0
    """Nucleus of the sampled distribution; 1 keeps all of it."""

    stop: tuple[str, ...] = ()
    """Strings that end a text; they are not part of it."""

    def __post_init__(self) -> None:
        """Refuse what no engine could do."""
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens: found {self.max_tokens}, expected at least 1")
        if not 0 <= self.temperature <= 2:
            raise ValueError(f"temperature: found {self.temperature}, expected 0 to 2")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: found {self.top_p}, expected more than 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What the model wrote for one request."""

    text: str
    """Decoded without special tokens, otherwise exactly as generated."""

    num_tokens: int
    """Generated tokens, the one that ends the text included."""

    finish_reason: Literal["stop", "length"]
    """`stop` when the model ended by itself, `length` when `max_tokens` cut it off."""


@dataclass(frozen=True, kw_only=True)
class GenerationFailure:
    """Why there is no text for one request."""

    reason: str
    """A word from `consomme.base.sample.REJECT_REASONS`."""

    detail: str

    def __post_init__(self) -> None:
        """Hold the vocabulary fixed."""
        if self.reason not in REJECT_REASONS:
            raise ValueError(f"reason {self.reason!r} is not in REJECT_REASONS")


@dataclass(frozen=True, kw_only=True)
class Load:
    """How busy a writer is."""

    running: int
    """Requests that are being written."""

    waiting: int
    """Requests that wait for their turn."""


class GenerationEngine(Protocol):
    """Writes texts with one model; several threads may use it at once."""

    version: str
    """Engine and version, for the provenance."""

    def write(self, requests: Sequence[Request]) -> list[Generation | GenerationFailure]:
        """Answer requests; aligned with them.

        Safe to call from several threads at once; their requests share the engine's batches.

        Raises:
            EngineLostError: The engine is of no use any more, or was closed.
            RecipeError: No request of this kind could be answered with these settings.
        """

    def load(self) -> Load:
        """Tell how busy the engine is."""

    def close(self) -> None:
        """End the engine and give its memory back; waiting callers get an `EngineLostError`."""


def check_vision(has_vision: bool, requests: Sequence[Request]) -> None:
    """Refuse to show pictures to a model that cannot see.

    Raises:
        CheckpointError: A request has a picture.
    """
    if not has_vision and any(one.image is not None for one in requests):
        raise CheckpointError(
            "the model is a language model without eyes and cannot be asked about pictures;"
            " expected the folder of a VLM"
        )
