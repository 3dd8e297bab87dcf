"""What a tagger is: it gets samples and gives columns about them.

One decision is made here: what a tagger may want of a model. Two things: how likely some answers to
a question are, and how a picture looks to its vision encoder. Whoever runs a tagger hands it a
function that opens models, so taggers know no engine, and those that name the same folder share it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from consomme.base.errors import CheckpointError
from consomme.base.registry import Registry
from consomme.base.sample import Sample

# Shapes: A answers, W width of the language model.


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A sample, with its picture if anybody wants to see it."""

    sample: Sample
    image: Image.Image | None = None

    @cached_property
    def key(self) -> bytes:
        """Name the picture by its bytes."""
        return hashlib.blake2b(self.sample.image, digest_size=16).digest()

    @property
    def said(self) -> str:
        """All that the assistant says, a line for each turn."""
        return "\n".join(t.content for t in self.sample.turns if t.role == "assistant")


@dataclass(frozen=True, kw_only=True)
class TagProblem:
    """Why a sample cannot be tagged."""

    reason: str
    """A word from `consomme.base.sample.REJECT_REASONS`."""

    detail: str


@dataclass(frozen=True, kw_only=True)
class Tags:
    """What a tagger found, aligned with the subjects."""

    columns: Mapping[str, Sequence[Any]]
    """By the names the tagger has promised; None where nothing can be said."""

    problems: Mapping[int, TagProblem]
    """By position: samples that have to be rejected."""


@dataclass(frozen=True, kw_only=True)
class ChoiceQuestion:
    """A question, and answers to choose from."""

    question: str
    answers: Sequence[str]
    subject: Subject | None = None
    """Whose picture is shown; None asks without a picture."""


class Model(Protocol):
    """What a tagger may ask of an open model."""

    @property
    def has_vision(self) -> bool:
        """Tell whether it takes pictures."""

    def weigh(self, choices: Sequence[ChoiceQuestion]) -> list[NDArray[np.float64] | TagProblem]:
        """Find how surprising each answer is.

        Returns:
            For each choice nll_A: nats of each answer, the token that ends its turn included, given
            question and picture. `exp(-nll_A)` are probabilities of different whole answers.
        """

    def look(self, subjects: Sequence[Subject]) -> list[NDArray[np.float32] | TagProblem]:
        """Find how pictures look to it.

        Returns:
            For each picture a vector (W,) of length 1, the same one for the same picture; or why
            there is none.
        """


OpenModel = Callable[[str], Model]
"""Opens the model of a folder, as a recipe names it; the same one each time."""

Tag = Callable[[Sequence[Subject]], Tags]
"""A tagger at work."""


class Tagger(Protocol):
    """What the registry promises about every tagger."""

    @property
    def model(self) -> str:
        """Folder of the model it asks; empty if it asks none."""

    @property
    def needs_pictures(self) -> bool:
        """Tell whether it looks at pictures; if nobody does, none is decoded."""

    @property
    def knowledge(self) -> str:
        """Name what decides its columns beside recipe and model, such as the version of a table."""

    @property
    def columns(self) -> Mapping[str, pa.DataType]:
        """Return the columns it makes, and their types."""

    def open(self, open_model: OpenModel) -> Tag:
        """Load what it needs, once per process.

        Raises:
            RecipeError: The model cannot be asked what the recipe wants to know.
            CheckpointError: The model is of the wrong kind.
        """


TAGGERS: Registry[Tagger] = Registry("tagger", "consomme/curate/tag/registry.py")


def open_seeing(open_model: OpenModel, folder: str) -> Model:
    """Open a model that has to see.

    Raises:
        CheckpointError: It takes no pictures.
    """
    model = open_model(folder)
    if not model.has_vision:
        raise CheckpointError(
            f"model {folder!r} is a language model without eyes, and is to look at pictures;"
            " expected the folder of a VLM"
        )
    return model


def shares(logit_A: NDArray[np.float64]) -> NDArray[np.float64]:
    """Softmax: turn nats into probabilities that add up to 1."""
    weight_A = np.exp(logit_A - logit_A.max())
    share_A: NDArray[np.float64] = weight_A / weight_A.sum()
    return share_A
