"""Taggers that run a VLM on pictures: an embedding, and zero-shot classification.

Class names are compared as whole answers, by the probability of all their tokens including the one
that ends the turn, without length normalisation. The class probabilities are then the model's own,
given that it names one of the classes. `prior: equal` divides by the probability of the name
without the picture, so that a name which the model prefers anyway gains nothing; by Bayes' rule
that is the posterior if all classes are equally frequent.

Neither prior is better everywhere. Accuracy of the shipped nano VLM, with the model's prior and
with equal ones, on 200 rendered scenes with one object: its colour, of eight, 1.00 and 1.00; its
shape, of six, 0.79 and 0.78, but 0.75 and 0.84 with a question that is not in the training data;
the names of 60 emoji in a style that is not in the training data, mean of three draws, 0.82 and
0.78.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from consomme.base.checked import Checked, rule
from consomme.base.errors import RecipeError
from consomme.base.schema import located
from consomme.curate.tag.tagger import (
    TAGGERS,
    ChoiceQuestion,
    ModelOpener,
    TagColumns,
    TagFunction,
    TaggerInput,
    TaggerModel,
    TagProblem,
    open_with_vision,
    softmax,
)

# Shapes: A classes, W width of the language model.


@TAGGERS.register("embedding")
@dataclass(frozen=True, kw_only=True)
class Embedding:
    """Embedding of a picture by a VLM: the mean of its image tokens, scaled to norm 1.

    These are the projector's outputs, as the language model gets them. Their mean is cheap and of
    the same width for every picture; it encodes what is in the picture better than where.
    """

    model: str = located()
    """Hugging Face folder of the VLM whose vision encoder and projector are used."""

    column: str = "embedding"
    """Name of the column: a list of float32 for each sample."""

    needs_pictures: ClassVar[bool] = True
    data_version: ClassVar[str] = ""

    @property
    def columns(self) -> Mapping[str, pa.DataType]:
        """Return one column of vectors."""
        return {self.column: pa.list_(pa.float32())}

    def open(self, open_model: ModelOpener) -> TagFunction:
        """Open the VLM."""
        model = open_with_vision(open_model, self.model)

        def tag(inputs: Sequence[TaggerInput]) -> TagColumns:
            vectors: list[NDArray[np.float32] | None] = []
            problems = {}
            for k, vector in enumerate(model.embed_pictures(inputs)):
                if isinstance(vector, TagProblem):
                    problems[k] = vector
                elif not np.isfinite(vector).all():
                    detail = "the embedding is not finite"
                    problems[k] = TagProblem(reason="score_not_finite", detail=detail)
                vectors.append(None if k in problems or isinstance(vector, TagProblem) else vector)
            return TagColumns(columns={self.column: vectors}, problems=problems)

        return tag


@TAGGERS.register("classes")
@dataclass(frozen=True, kw_only=True)
class Classes(Checked):
    """Pseudo-labels: the class name that a VLM finds most likely, and its uncertainty.

    Costs one short pass through the language model per picture and class; each picture is encoded
    once. Source: pseudo-labels guide what to label in PCB (Active Prompt Learning in
    Vision-Language Models, CVPR 2024), there from CLIP.
    """

    model: str = located()
    """Hugging Face folder of the VLM that answers."""

    question: str
    """The question about each picture."""

    classes: tuple[str, ...]
    """The possible answers, at least two, in the order of `class_probs`."""

    prior: Literal["model", "equal"] = "model"
    """Prior of the classes: that of the `model`, or `equal`, which removes the model's preference
    for some names independently of the picture."""

    column: str = "class"
    """Name of the column of the most likely class; others are COLUMN_probs, COLUMN_entropy (nats; 0
    is certain) and COLUMN_margin (largest minus second largest probability)."""

    needs_pictures: ClassVar[bool] = True
    data_version: ClassVar[str] = ""

    @rule
    def _classes_differ(self) -> Iterator[str]:
        if len(self.classes) < 2:
            yield f"classes: found {len(self.classes)}, expected at least two names"
        names = [name.strip() for name in self.classes]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated or "" in names:
            found = f"{', '.join(repeated)} more than once" if repeated else "an empty name"
            yield f"classes: found {found}; expected different names"

    @property
    def columns(self) -> Mapping[str, pa.DataType]:
        """Return the most likely class, and its uncertainty."""
        return {
            self.column: pa.string(),
            f"{self.column}_probs": pa.list_(pa.float32()),
            f"{self.column}_entropy": pa.float32(),
            f"{self.column}_margin": pa.float32(),
        }

    def open(self, open_model: ModelOpener) -> TagFunction:
        """Open the VLM, and score the classes once without a picture."""
        model = open_with_vision(open_model, self.model)
        (no_picture_A,) = model.answer_nlls(
            [ChoiceQuestion(question=self.question, answers=self.classes)]
        )
        if isinstance(no_picture_A, TagProblem):
            raise RecipeError(
                f"classes: {self.model} cannot be asked {self.question!r}: {no_picture_A.detail}"
            )
        prior_A = no_picture_A if self.prior == "equal" else np.zeros_like(no_picture_A)
        return lambda inputs: self._tag(model, prior_A, inputs)

    def _tag(
        self, model: TaggerModel, prior_A: NDArray[np.float64], inputs: Sequence[TaggerInput]
    ) -> TagColumns:
        pictures: dict[tuple[bytes, ...], TaggerInput] = {}
        for item in inputs:
            pictures.setdefault(item.image_keys, item)
        answers = model.answer_nlls(
            [
                ChoiceQuestion(question=self.question, answers=self.classes, picture=item)
                for item in pictures.values()
            ]
        )
        by_key = dict(zip(pictures, answers, strict=True))
        rows: list[tuple[Any, ...]] = []
        problems: dict[int, TagProblem] = {}
        for k, item in enumerate(inputs):
            nll_A = by_key[item.image_keys]
            if not isinstance(nll_A, TagProblem) and not np.isfinite(nll_A).all():
                detail = f"{self.column}: {np.isfinite(nll_A).sum()} of {len(nll_A)} finite"
                nll_A = TagProblem(reason="score_not_finite", detail=detail)
            if isinstance(nll_A, TagProblem):
                problems[k] = nll_A
                rows.append((None, None, None, None))
                continue
            prob_A = softmax(prior_A - nll_A)
            second, first = np.sort(prob_A)[-2:]
            rows.append(
                (self.classes[int(prob_A.argmax())], prob_A, entropy(prob_A), first - second)
            )
        columns = zip(*rows, strict=True) if rows else [()] * len(self.columns)
        return TagColumns(columns=dict(zip(self.columns, columns, strict=True)), problems=problems)


def entropy(prob_A: NDArray[np.float64]) -> float:
    """Return the entropy in nats: 0 if one class is certain, ln A if all are equally likely."""
    positive = prob_A[prob_A > 0]
    return float(-(positive * np.log(positive)).sum())
