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

A sample of several pictures has one value all the same: `images` says how it is made of them.
Samples without pictures have none: their columns are empty (null).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from consomme.base.checked import Checked, rule
from consomme.base.errors import RecipeError
from consomme.base.schema import added, located
from consomme.curate.tag.tagger import (
    TAGGERS,
    ChoiceQuestion,
    ModelOpener,
    TagColumns,
    TagFunction,
    TaggerInput,
    TaggerModel,
    TaggerPicture,
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
    """The VLM whose vision encoder and projector are used, by folder or name."""

    column: str = "embedding"
    """Name of the column: a list of float32 for each sample."""

    images: Literal["mean", "first", "each"] = added("mean")
    """What a sample of several pictures gets: the `mean` of their embeddings, scaled to norm 1; the
    embedding of the `first`; or a list with that of `each`, in order, which no filter can use."""

    needs_pictures: ClassVar[bool] = True
    data_version: ClassVar[str] = ""

    @property
    def columns(self) -> Mapping[str, pa.DataType]:
        """Return one column of vectors, or of lists of vectors."""
        vector = pa.list_(pa.float32())
        return {self.column: pa.list_(vector) if self.images == "each" else vector}

    def open(self, open_model: ModelOpener) -> TagFunction:
        """Open the VLM."""
        model = open_with_vision(open_model, self.model)
        return lambda inputs: self._tag(model, inputs)

    def _tag(self, model: TaggerModel, inputs: Sequence[TaggerInput]) -> TagColumns:
        last = 1 if self.images == "first" else None
        pictures = [item.pictures[:last] for item in inputs]
        embedded = iter(model.embed_pictures([one for several in pictures for one in several]))
        values: list[Any] = []
        problems: dict[int, TagProblem] = {}
        for k, shown in enumerate(pictures):
            vectors = []
            for number in range(len(shown)):
                vector = next(embedded)
                if not isinstance(vector, TagProblem) and not np.isfinite(vector).all():
                    vector = TagProblem(
                        reason="score_not_finite", detail="the embedding is not finite"
                    )
                if isinstance(vector, TagProblem):
                    problems.setdefault(k, about_picture(vector, number, inputs[k]))
                else:
                    vectors.append(vector)
            value = self._joined(vectors) if vectors and k not in problems else None
            if value is None and vectors and k not in problems:
                detail = "the mean of the pictures' embeddings is zero"
                problems[k] = TagProblem(reason="score_not_finite", detail=detail)
            values.append(value)
        return TagColumns(columns={self.column: values}, problems=problems)

    def _joined(self, vectors: Sequence[NDArray[np.float32]]) -> Any:
        """Return what a sample gets; None if it is no direction."""
        if self.images == "each":
            return list(vectors)
        if len(vectors) == 1:
            return vectors[0]
        mean_W = np.mean(vectors, axis=0, dtype=np.float64)
        norm = np.linalg.norm(mean_W)
        return (mean_W / norm).astype(np.float32) if norm else None


def about_picture(problem: TagProblem, number: int, item: TaggerInput) -> TagProblem:
    """Say which picture of a sample the problem is about, if it has several."""
    total = len(item.sample.images)
    if total == 1:
        return problem
    return replace(problem, detail=f"picture {number + 1} of {total}: {problem.detail}")


@TAGGERS.register("classes")
@dataclass(frozen=True, kw_only=True)
class Classes(Checked):
    """Pseudo-labels: the class name that a VLM finds most likely, and its uncertainty.

    Costs one short pass through the language model per picture and class; each picture is encoded
    once. A sample without pictures has no class. Source: pseudo-labels guide what to label in PCB
    (Active Prompt Learning in Vision-Language Models, CVPR 2024), there from CLIP.
    """

    model: str = located()
    """The VLM that answers, by folder or name."""

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

    images: Literal["mean", "first", "all"] = added("mean")
    """How a sample of several pictures is asked about: each by itself, and the `mean` of their
    probabilities is the sample's; the `first` only; or once about `all`, shown before the question,
    which a model that takes one picture refuses."""

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
        shown = [self._shown(item) for item in inputs]
        distinct = {_keys(pictures): pictures for several in shown for pictures in several}
        answers = model.answer_nlls(
            [
                ChoiceQuestion(question=self.question, answers=self.classes, pictures=pictures)
                for pictures in distinct.values()
            ]
        )
        by_key = dict(zip(distinct, answers, strict=True))
        rows: list[tuple[Any, ...]] = []
        problems: dict[int, TagProblem] = {}
        for k, several in enumerate(shown):
            probs = []
            for number, pictures in enumerate(several):
                nll_A = by_key[_keys(pictures)]
                if not isinstance(nll_A, TagProblem) and not np.isfinite(nll_A).all():
                    detail = f"{self.column}: {np.isfinite(nll_A).sum()} of {len(nll_A)} finite"
                    nll_A = TagProblem(reason="score_not_finite", detail=detail)
                if isinstance(nll_A, TagProblem):
                    is_about_one = self.images != "all"
                    problem = about_picture(nll_A, number, inputs[k]) if is_about_one else nll_A
                    problems.setdefault(k, problem)
                else:
                    probs.append(softmax(prior_A - nll_A))
            if k in problems or not probs:
                rows.append((None, None, None, None))
                continue
            prob_A = np.mean(probs, axis=0)
            second, first = np.sort(prob_A)[-2:]
            rows.append(
                (self.classes[int(prob_A.argmax())], prob_A, entropy(prob_A), first - second)
            )
        columns = zip(*rows, strict=True) if rows else [()] * len(self.columns)
        return TagColumns(columns=dict(zip(self.columns, columns, strict=True)), problems=problems)

    def _shown(self, item: TaggerInput) -> list[tuple[TaggerPicture, ...]]:
        """Return the pictures of each question that is asked about a sample."""
        if self.images == "all":
            return [item.pictures] if item.pictures else []
        one_by_one: list[tuple[TaggerPicture, ...]] = [(picture,) for picture in item.pictures]
        return one_by_one[:1] if self.images == "first" else one_by_one


def _keys(pictures: Sequence[TaggerPicture]) -> tuple[bytes, ...]:
    return tuple(picture.key for picture in pictures)


def entropy(prob_A: NDArray[np.float64]) -> float:
    """Return the entropy in nats: 0 if one class is certain, ln A if all are equally likely."""
    positive = prob_A[prob_A > 0]
    return float(-(positive * np.log(positive)).sum())
