"""Taggers by models that are no VLM: image-text similarity, and a user's image classifier.

A sample of several pictures has one value all the same: `images` says how it is made of them.
Samples without pictures have none.
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
from consomme.curate.tag.pictures import about_picture
from consomme.curate.tag.tagger import (
    TAGGERS,
    DualEncoder,
    ImageClassifier,
    ModelOpener,
    TagColumns,
    TagFunction,
    TaggerInput,
    TaggerPicture,
    TagProblem,
)

# Shapes: A labels, P pictures of a sample.


@TAGGERS.register("similarity")
@dataclass(frozen=True, kw_only=True)
class ImageTextSimilarity:
    """Cosine of the embeddings of picture and text, by a model such as CLIP or SigLIP.

    The text is that of all assistant turns. Source: CLIP score, arXiv 2104.08718, there times 2.5
    and not below 0; the threshold 0.3 of LAION-400M, arXiv 2111.02114, is for CLIP ViT-B/32, and
    each model has its own.
    """

    model: str = located()
    """A dual encoder, by folder or name: align, altclip, chinese_clip, clip, metaclip_2, siglip
    or siglip2."""

    column: str = "similarity"
    """Name of the column; COLUMN_is_cut says whether the text was longer than the model takes, so
    that its end counts for nothing (77 tokens of CLIP, 64 of SigLIP)."""

    images: Literal["mean", "min", "max", "first"] = "mean"
    """What a sample of several pictures gets: the `mean` of all its pictures' similarities with the
    whole text, the lowest, the highest, or that of the `first`."""

    needs_pictures: ClassVar[bool] = True
    data_version: ClassVar[str] = ""

    @property
    def columns(self) -> Mapping[str, pa.DataType]:
        """Return the cosine, and whether the text was cut."""
        return {self.column: pa.float32(), f"{self.column}_is_cut": pa.bool_()}

    def open(self, open_model: ModelOpener) -> TagFunction:
        """Open the dual encoder."""
        model = open_model.dual_encoder(self.model)
        return lambda inputs: self._tag(model, inputs)

    def _tag(self, model: DualEncoder, inputs: Sequence[TaggerInput]) -> TagColumns:
        texts = [item.assistant_text for item in inputs]
        last = 1 if self.images == "first" else None
        shown = [
            item.pictures[:last] if text.strip() else ()
            for item, text in zip(inputs, texts, strict=True)
        ]
        pairs = [
            (picture, text)
            for several, text in zip(shown, texts, strict=True)
            for picture in several
        ]
        results = iter(model.similarities(pairs))
        cosines: list[float | None] = []
        cut: list[bool | None] = []
        problems: dict[int, TagProblem] = {}
        for k, several in enumerate(shown):
            found = []
            for number in range(len(several)):
                one = next(results)
                if isinstance(one, TagProblem):
                    problems.setdefault(k, about_picture(one, number, inputs[k]))
                elif not np.isfinite(one.cosine):
                    detail = f"{self.column}: {one.cosine}"
                    problems.setdefault(k, TagProblem(reason="score_not_finite", detail=detail))
                else:
                    found.append(one)
            is_there = bool(found) and k not in problems
            cosines.append(self._joined([one.cosine for one in found]) if is_there else None)
            cut.append(found[0].is_cut if is_there else None)
        columns: dict[str, Sequence[Any]] = {self.column: cosines, f"{self.column}_is_cut": cut}
        return TagColumns(columns=columns, problems=problems)

    def _joined(self, cosine_P: Sequence[float]) -> float:
        if self.images in ("min", "max"):
            return min(cosine_P) if self.images == "min" else max(cosine_P)
        return float(np.mean(cosine_P))


@TAGGERS.register("classifier")
@dataclass(frozen=True, kw_only=True)
class Classifier(Checked):
    """The label that an image classifier gives, for example about safety or watermarks.

    Probabilities are the softmax of the model's outputs, or the sigmoid of each if its config says
    that the labels exclude nothing (`problem_type: multi_label_classification`).
    """

    model: str = located()
    """An image classifier (AutoModelForImageClassification), by folder or name."""

    labels: tuple[str, ...] = ()
    """Labels whose probability becomes COLUMN_score, such as [nsfw] or [watermark]; of several,
    their sum, or the largest if labels exclude nothing. None: no such column."""

    column: str = "label"
    """Name of the column of the most likely label; COLUMN_prob is its probability."""

    images: Literal["mean", "max", "first"] = "mean"
    """What a sample of several pictures gets: the `mean` of its pictures' probabilities; the
    highest of each label, so that one bad picture is found; or those of the `first`."""

    needs_pictures: ClassVar[bool] = True
    data_version: ClassVar[str] = ""

    @rule
    def _labels_differ(self) -> Iterator[str]:
        repeated = sorted({name for name in self.labels if self.labels.count(name) > 1})
        if repeated:
            yield f"labels: found {', '.join(repeated)} more than once; expected different labels"

    @property
    def columns(self) -> Mapping[str, pa.DataType]:
        """Return the most likely label, its probability, and that of the chosen labels."""
        kinds = {self.column: pa.string(), f"{self.column}_prob": pa.float32()}
        return kinds | ({f"{self.column}_score": pa.float32()} if self.labels else {})

    def open(self, open_model: ModelOpener) -> TagFunction:
        """Open the classifier.

        Raises:
            RecipeError: It has no such label.
        """
        model = open_model.classifier(self.model)
        unknown = [name for name in self.labels if name not in model.labels]
        if unknown:
            known = ", ".join(model.labels[:20]) + (", …" if len(model.labels) > 20 else "")
            raise RecipeError(
                f"labels: found {', '.join(unknown)}; expected labels of {self.model}: {known}"
            )
        return lambda inputs: self._tag(model, inputs)

    def _tag(self, model: ImageClassifier, inputs: Sequence[TaggerInput]) -> TagColumns:
        last = 1 if self.images == "first" else None
        shown = [item.pictures[:last] for item in inputs]
        distinct = {picture.key: picture for several in shown for picture in several}
        by_key = dict(zip(distinct, model.probs(list(distinct.values())), strict=True))
        rows: list[tuple[Any, ...]] = []
        problems: dict[int, TagProblem] = {}
        for k, several in enumerate(shown):
            prob_PA = self._probs_of(several, by_key, inputs[k])
            if isinstance(prob_PA, TagProblem):
                problems[k] = prob_PA
            if isinstance(prob_PA, TagProblem) or not prob_PA:
                rows.append((None,) * len(self.columns))
            else:
                rows.append(self._row(model, np.stack(prob_PA)))
        columns = zip(*rows, strict=True) if rows else [()] * len(self.columns)
        return TagColumns(columns=dict(zip(self.columns, columns, strict=True)), problems=problems)

    def _probs_of(
        self,
        pictures: Sequence[TaggerPicture],
        by_key: Mapping[bytes, NDArray[np.float64] | TagProblem],
        item: TaggerInput,
    ) -> list[NDArray[np.float64]] | TagProblem:
        found = []
        for number, picture in enumerate(pictures):
            prob_A = by_key[picture.key]
            if not isinstance(prob_A, TagProblem) and not np.isfinite(prob_A).all():
                detail = f"{self.column}: {np.isfinite(prob_A).sum()} of {len(prob_A)} finite"
                prob_A = TagProblem(reason="score_not_finite", detail=detail)
            if isinstance(prob_A, TagProblem):
                return about_picture(prob_A, number, item)
            found.append(prob_A)
        return found

    def _row(self, model: ImageClassifier, prob_PA: NDArray[np.float64]) -> tuple[Any, ...]:
        join = np.max if self.images == "max" else np.mean
        prob_A = join(prob_PA, axis=0)
        best = int(prob_A.argmax())
        row: tuple[Any, ...] = (model.labels[best], float(prob_A[best]))
        if not self.labels:
            return row
        chosen = [list(model.labels).index(name) for name in self.labels]
        together = np.max if model.is_multi_label else np.sum
        return (*row, float(join(together(prob_PA[:, chosen], axis=1))))
