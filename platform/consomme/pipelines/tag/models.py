"""The models of taggers, implemented by engines; each is opened once per process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from consomme.base.sample import Turn
from consomme.curate.perplexity import token_nll
from consomme.curate.tag.tagger import (
    ChoiceQuestion,
    DualEncoder,
    ImageClassifier,
    Similarity,
    TaggerModel,
    TaggerPicture,
    TagProblem,
)
from consomme.engines.scoring.embedding import ImageEmbedder
from consomme.engines.scoring.image_models import ImageTextEmbedder, LabelClassifier
from consomme.engines.scoring.requests import NotScored, ScoringRequest
from consomme.engines.scoring.transformers import TransformersScorer
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.model_folder import model_folder

# Shapes: A answers, W width of the language model.

_ANY_LENGTH = 1 << 30
"""No limit of our own on the length of answers; the model's limit applies."""


class OpenModels:
    """Opens models on first use, and keeps them open."""

    def __init__(
        self,
        folders: Mapping[str, str],
        token_budget: int | None,
        dtype: str,
        *,
        hashes: Mapping[str, str] | None = None,
        run_folder: RunFolder | None = None,
    ) -> None:
        """Store the settings.

        Args:
            folders: Name of a model in recipes -> where it is, as `model_folder` takes it on any
                machine.
            token_budget: As for a scorer.
            dtype: As for a scorer.
            hashes: Name of a model -> hash of its content, for the cache of self-checks.
            run_folder: Of the run; the results of self-checks are written there.
        """
        self.folders, self.token_budget, self.dtype = folders, token_budget, dtype
        self.hashes, self.run_folder = hashes or {}, run_folder
        self._open: dict[str, TaggerModel] = {}
        self._encoders: dict[str, DualEncoder] = {}
        self._classifiers: dict[str, ImageClassifier] = {}

    def __call__(self, name: str) -> TaggerModel:
        """Return the model of this name."""
        folder = model_folder(self.folders[name])
        if folder not in self._open:
            model_hash = self.hashes.get(name)
            opened = _ScorerModel(folder, self.token_budget, self.dtype, model_hash)
            if self.run_folder is not None and model_hash is not None:
                self.run_folder.keep_self_check(opened.scorer, model_hash)
            self._open[folder] = opened
        return self._open[folder]

    def dual_encoder(self, name: str) -> DualEncoder:
        """Return the dual encoder of this name."""
        folder = model_folder(self.folders[name])
        if folder not in self._encoders:
            self._encoders[folder] = _Encoder(ImageTextEmbedder(folder, self.dtype))
        return self._encoders[folder]

    def classifier(self, name: str) -> ImageClassifier:
        """Return the image classifier of this name."""
        folder = model_folder(self.folders[name])
        if folder not in self._classifiers:
            self._classifiers[folder] = _Classifier(LabelClassifier(folder, self.dtype))
        return self._classifiers[folder]


class _Encoder:
    """A `DualEncoder` on top of an embedder."""

    def __init__(self, embedder: ImageTextEmbedder) -> None:
        self.embedder = embedder

    def similarities(
        self, pairs: Sequence[tuple[TaggerPicture, str]]
    ) -> list[Similarity | TagProblem]:
        """Embed each distinct picture and text once."""
        images = {picture.key: picture.image for picture, _ in pairs}
        texts = list(dict.fromkeys(text for _, text in pairs))
        image_of = dict(zip(images, self.embedder.embed_images(list(images.values())), strict=True))
        text_of = dict(zip(texts, self.embedder.embed_texts(texts), strict=True))
        found: list[Similarity | TagProblem] = []
        for picture, text in pairs:
            image_W, (text_W, is_cut) = image_of[picture.key], text_of[text]
            if isinstance(image_W, NotScored):
                found.append(TagProblem(reason=image_W.reason, detail=image_W.detail))
            else:
                found.append(Similarity(cosine=float(image_W @ text_W), is_cut=is_cut))
        return found


class _Classifier:
    """An `ImageClassifier` on top of an engine."""

    def __init__(self, model: LabelClassifier) -> None:
        self.model, self.labels = model, model.labels
        self.is_multi_label = model.is_multi_label

    def probs(self, pictures: Sequence[TaggerPicture]) -> list[NDArray[np.float64] | TagProblem]:
        """Classify pictures."""
        return [
            TagProblem(reason=found.reason, detail=found.detail)
            if isinstance(found, NotScored)
            else found
            for found in self.model.probs([picture.image for picture in pictures])
        ]


class _ScorerModel:
    """A `TaggerModel` on top of a scoring engine."""

    def __init__(
        self, folder: str, token_budget: int | None, dtype: str, model_hash: str | None
    ) -> None:
        self.scorer = TransformersScorer(
            folder,
            token_nll,
            token_budget=token_budget,
            max_caption_tokens=_ANY_LENGTH,
            dtype=dtype,
            model_hash=model_hash,
        )
        self.has_vision = self.scorer.chat.has_vision
        self._embedder: ImageEmbedder | None = None

    def answer_nlls(
        self, choices: Sequence[ChoiceQuestion]
    ) -> list[NDArray[np.float64] | TagProblem]:
        """Score each answer separately; adjacent requests about a picture share its encoding."""
        requests = [
            ScoringRequest(
                turns=(
                    Turn(role="user", content=choice.question),
                    Turn(role="assistant", content=answer),
                ),
                images=tuple(picture.image for picture in choice.pictures),
                keys=tuple(picture.key for picture in choice.pictures) or None,
            )
            for choice in choices
            for answer in choice.answers
        ]
        scores = iter(self.scorer.score(requests))
        nlls: list[NDArray[np.float64] | TagProblem] = []
        for choice in choices:
            answer_scores = [next(scores) for _ in choice.answers]
            problems = [
                TagProblem(reason=score.reason, detail=f"answer {answer[:60]!r}: {score.detail}")
                for answer, score in zip(choice.answers, answer_scores, strict=True)
                if isinstance(score, NotScored)
            ]
            nll_A = np.array([s.nll for s in answer_scores if not isinstance(s, NotScored)])
            nlls.append(problems[0] if problems else nll_A)
        return nlls

    def embed_pictures(
        self, pictures: Sequence[TaggerPicture]
    ) -> list[NDArray[np.float32] | TagProblem]:
        """Embed each distinct picture once."""
        if self._embedder is None:
            # As many values per batch as the scorer passes to its own vision encoder.
            values = self.scorer.token_budget * 1024
            self._embedder = ImageEmbedder(self.scorer.model, self.scorer.chat, batch_values=values)
        images = {picture.key: picture.image for picture in pictures}
        vectors = dict(zip(images, self._embedder.embed(list(images.values())), strict=True))
        return [
            TagProblem(reason=vector.reason, detail=vector.detail)
            if isinstance(vector, NotScored)
            else vector
            for vector in (vectors[picture.key] for picture in pictures)
        ]
