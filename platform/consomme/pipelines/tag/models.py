"""Let taggers ask models: in the words of the engines, and each model open once per process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from consomme.base.sample import Turn
from consomme.curate.perplexity import token_nll
from consomme.curate.tag.tagger import ChoiceQuestion, Model, Subject, TagProblem
from consomme.engines.scoring.embedding import PictureEmbedder
from consomme.engines.scoring.requests import NotScored, ScoringRequest
from consomme.engines.scoring.transformers import TransformersScorer

# Shapes: A answers, W width of the language model.

_ANY_LENGTH = 1 << 30
"""Answers are as long as they are; the model's own limit holds."""


class OpenModels:
    """Opens models when they are first asked for, and keeps them."""

    def __init__(self, folders: Mapping[str, str], token_budget: int | None, dtype: str) -> None:
        """Remember where they are.

        Args:
            folders: What recipes call a model -> its folder on this machine.
            token_budget: As for a scorer.
            dtype: As for a scorer.
        """
        self.folders, self.token_budget, self.dtype = folders, token_budget, dtype
        self._open: dict[str, Model] = {}

    def __call__(self, name: str) -> Model:
        """Return the model that a recipe calls so."""
        folder = self.folders[name]
        if folder not in self._open:
            self._open[folder] = _ScorerModel(folder, self.token_budget, self.dtype)
        return self._open[folder]


class _ScorerModel:
    """A model that weighs answers by the likelihoods of a scorer."""

    def __init__(self, folder: str, token_budget: int | None, dtype: str) -> None:
        self.scorer = TransformersScorer(
            folder,
            token_nll,
            token_budget=token_budget,
            max_caption_tokens=_ANY_LENGTH,
            dtype=dtype,
        )
        self.has_vision = self.scorer.chat.has_vision
        self._embedder: PictureEmbedder | None = None

    def weigh(self, choices: Sequence[ChoiceQuestion]) -> list[NDArray[np.float64] | TagProblem]:
        """Score each answer by itself; neighbours about the same picture share its encoding."""
        asked = [
            ScoringRequest(
                turns=(
                    Turn(role="user", content=choice.question),
                    Turn(role="assistant", content=answer),
                ),
                image=choice.subject.image if choice.subject else None,
                key=choice.subject.key if choice.subject else None,
            )
            for choice in choices
            for answer in choice.answers
        ]
        scores = iter(self.scorer.score(asked))
        found: list[NDArray[np.float64] | TagProblem] = []
        for choice in choices:
            mine = [next(scores) for _ in choice.answers]
            problems = [
                TagProblem(reason=score.reason, detail=f"answer {answer[:60]!r}: {score.detail}")
                for answer, score in zip(choice.answers, mine, strict=True)
                if isinstance(score, NotScored)
            ]
            nll_A = np.array([s.nll for s in mine if not isinstance(s, NotScored)])
            found.append(problems[0] if problems else nll_A)
        return found

    def look(self, subjects: Sequence[Subject]) -> list[NDArray[np.float32] | TagProblem]:
        """Embed each different picture once."""
        if self._embedder is None:
            # As many numbers as the scorer gives its own vision encoder at a time.
            values = self.scorer.token_budget * 1024
            self._embedder = PictureEmbedder(
                self.scorer.model, self.scorer.chat, batch_values=values
            )
        pictures = {s.key: s.image for s in subjects if s.image is not None}
        found = dict(zip(pictures, self._embedder.embed(list(pictures.values())), strict=True))
        vectors = [found[subject.key] for subject in subjects]
        return [
            TagProblem(reason=vector.reason, detail=vector.detail)
            if isinstance(vector, NotScored)
            else vector
            for vector in vectors
        ]
