"""The interface of taggers: a tagger takes samples and returns columns about them.

A tagger makes one value per sample and column, however many pictures the sample has; its docstring
says which of them it looks at. A tagger of pictures leaves its columns empty for samples without.

A tagger can ask two things of a model: the likelihoods of answers to a question, and the embedding
of a picture. It gets a function that opens models, so taggers depend on no engine, and taggers that
name the same folder share one model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from consomme.base.errors import CheckpointError
from consomme.base.registry import Registry
from consomme.base.sample import Sample, Turn

# Shapes: A answers, W width of the language model.


@dataclass(frozen=True, kw_only=True)
class TaggerPicture:
    """A decoded picture."""

    data: bytes = field(repr=False)
    """Its encoded bytes."""

    image: Image.Image

    @cached_property
    def key(self) -> bytes:
        """Hash of its bytes."""
        return hashlib.blake2b(self.data, digest_size=16).digest()


@dataclass(frozen=True, kw_only=True)
class TaggerInput:
    """A sample, with its decoded pictures if any tagger needs them."""

    sample: Sample
    images: tuple[Image.Image, ...] = ()

    @cached_property
    def pictures(self) -> tuple[TaggerPicture, ...]:
        """Its pictures, in order; only if they were decoded."""
        pairs = zip(self.sample.images, self.images, strict=True)
        return tuple(TaggerPicture(data=file.data, image=image) for file, image in pairs)

    @property
    def assistant_text(self) -> str:
        """Text of all assistant turns, one line per turn; see `text_of`."""
        return "\n".join(text_of(t) for t in self.sample.turns if t.role == "assistant")


def text_of(turn: Turn) -> str:
    """Return the text of a turn without its pictures.

    Where a picture stands between two words, there is a space instead.
    """
    text = ""
    for part in turn.parts:
        if not isinstance(part, str):
            continue
        is_apart = not text or text[-1].isspace() or part[:1].isspace()
        text += part if is_apart else f" {part}"
    return text


@dataclass(frozen=True, kw_only=True)
class TagProblem:
    """Why a sample cannot be tagged."""

    reason: str
    """One of `consomme.base.sample.REJECT_REASONS`."""

    detail: str


@dataclass(frozen=True, kw_only=True)
class TagColumns:
    """The result of a tagger, aligned with its inputs."""

    columns: Mapping[str, Sequence[Any]]
    """Column name, as in the tagger's `columns`, -> values; None where there is none."""

    problems: Mapping[int, TagProblem]
    """Index of a sample that has to be rejected -> the reason."""


@dataclass(frozen=True, kw_only=True)
class ChoiceQuestion:
    """A multiple-choice question."""

    question: str
    answers: Sequence[str]
    pictures: tuple[TaggerPicture, ...] = ()
    """Shown before the question, in order; empty asks without a picture."""


class TaggerModel(Protocol):
    """The operations of an open model that taggers use."""

    @property
    def has_vision(self) -> bool:
        """Whether the model has a vision encoder."""

    def answer_nlls(
        self, choices: Sequence[ChoiceQuestion]
    ) -> list[NDArray[np.float64] | TagProblem]:
        """Compute the negative log-likelihood of each answer.

        Returns:
            For each question nll_A: nats of each answer, including the token that ends its turn,
            given pictures and question. `exp(-nll_A)` are probabilities of whole answers.
        """

    def embed_pictures(
        self, pictures: Sequence[TaggerPicture]
    ) -> list[NDArray[np.float32] | TagProblem]:
        """Embed pictures.

        Returns:
            For each picture a vector (W,) of norm 1, equal for equal pictures; or the reason why
            there is none.
        """


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """How similar an image and a text are to a dual encoder."""

    cosine: float
    """Of their embeddings, from -1 to 1."""

    is_cut: bool
    """Whether the text is longer than the model takes, and was cut at its end."""


class DualEncoder(Protocol):
    """A model that embeds pictures and texts in one space, such as CLIP."""

    def similarities(
        self, pairs: Sequence[tuple[TaggerPicture, str]]
    ) -> list[Similarity | TagProblem]:
        """Compare pictures with texts; each distinct picture and text is embedded once."""


class ImageClassifier(Protocol):
    """A model that gives probabilities of its labels for a picture."""

    @property
    def labels(self) -> Sequence[str]:
        """Its labels, in the order of probabilities."""

    @property
    def is_multi_label(self) -> bool:
        """Whether a picture can have several labels, or none."""

    def probs(self, pictures: Sequence[TaggerPicture]) -> list[NDArray[np.float64] | TagProblem]:
        """Return for each picture prob_A; they add up to 1 unless labels exclude nothing."""


class ModelOpener(Protocol):
    """Opens models by their names in the recipe; returns the same object each time."""

    def __call__(self, name: str) -> TaggerModel:
        """Open a VLM or a language model."""

    def dual_encoder(self, name: str) -> DualEncoder:
        """Open a model such as CLIP or SigLIP."""

    def classifier(self, name: str) -> ImageClassifier:
        """Open an image classifier."""


TagFunction = Callable[[Sequence[TaggerInput]], TagColumns]
"""An opened tagger."""


class Tagger(Protocol):
    """Interface of every registered tagger."""

    @property
    def model(self) -> str:
        """Folder of the model that it uses; empty if none."""

    @property
    def needs_pictures(self) -> bool:
        """Whether it needs decoded pictures; if no tagger does, none is decoded."""

    @property
    def data_version(self) -> str:
        """Version of data besides recipe and model that determines its columns, such as a table."""

    @property
    def columns(self) -> Mapping[str, pa.DataType]:
        """Names and types of the columns that it makes."""

    def open(self, open_model: ModelOpener) -> TagFunction:
        """Load models and tables, once per process.

        Raises:
            RecipeError: The model cannot answer the recipe's question.
            CheckpointError: The model is of the wrong kind.
        """


TAGGERS: Registry[Tagger] = Registry("tagger", "consomme/curate/tag/registry.py")


def open_with_vision(open_model: ModelOpener, folder: str) -> TaggerModel:
    """Open a model that needs a vision encoder.

    Raises:
        CheckpointError: It has none.
    """
    model = open_model(folder)
    if not model.has_vision:
        raise CheckpointError(
            f"model {folder!r} has no vision encoder, but the tagger reads pictures; expected the"
            " folder of a VLM"
        )
    return model


def softmax(logit_A: NDArray[np.float64]) -> NDArray[np.float64]:
    """Softmax over logits in nats."""
    weight_A = np.exp(logit_A - logit_A.max())
    share_A: NDArray[np.float64] = weight_A / weight_A.sum()
    return share_A
