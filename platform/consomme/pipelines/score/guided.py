"""The guided columns of `score`: how likely a caption is when the model is guided by regions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from consomme.base.sample import Sample

if TYPE_CHECKING:
    from consomme.engines.scoring.requests import NotScored, Score, ScoringRequest
    from consomme.vision.guidance import Guidance


@dataclass(frozen=True, kw_only=True)
class GuidedNll:
    """Nats of one sample's labelled texts under guidance."""

    nll: float
    is_guided: bool
    """Whether a region was masked; otherwise it is the plain nll."""


class GuidedScores:
    """Scores samples once more, guided by regions."""

    def __init__(self, guidance: Guidance, scorer: Any, open_writer: Callable[[], Any]) -> None:
        """Open what finds regions.

        Args:
            guidance: Of the recipe.
            scorer: The open `TransformersScorer`.
            open_writer: Opens the same model to write, if it is asked for its own boxes.
        """
        from consomme.engines.regions import open_finder

        self.guidance, self.scorer = guidance, scorer
        self.finder = open_finder(guidance, open_writer)

    def __call__(
        self,
        samples: Sequence[Sample],
        requests: Sequence[ScoringRequest],
        plain: Sequence[Score | NotScored],
    ) -> list[GuidedNll | NotScored]:
        """Score samples.

        Args:
            samples: Their metadata may hold boxes.
            requests: Aligned with them.
            plain: Their scores without guidance; what could not be scored is not scored again.
        """
        from consomme.engines.regions import RegionProblem, RegionQuestion, find_contrasts
        from consomme.engines.scoring.requests import NotScored

        questions = [
            RegionQuestion(images=one.images, text=_said(sample), meta=sample.meta)
            for sample, one in zip(samples, requests, strict=True)
        ]
        contrasts = find_contrasts(self.guidance, self.finder, questions)
        found: list[Any] = []
        guided: list[ScoringRequest] = []
        asked: list[int] = []
        for number, (contrast, score) in enumerate(zip(contrasts, plain, strict=True)):
            if isinstance(score, NotScored):
                found.append(score)
            elif isinstance(contrast, RegionProblem):
                found.append(NotScored(reason=contrast.reason, detail=contrast.detail))
            elif contrast is None:
                found.append(GuidedNll(nll=score.nll, is_guided=False))
            else:
                found.append(None)
                asked.append(number)
                guided.append(replace(requests[number], contrast=contrast))
        for number, score in zip(asked, self.scorer.score(guided), strict=True):
            found[number] = (
                score if isinstance(score, NotScored) else GuidedNll(nll=score.nll, is_guided=True)
            )
        return found


def _said(sample: Sample) -> str:
    """Return what is scored, which names the things whose regions matter."""
    return "\n".join(turn.text for turn in sample.turns if turn.role == "assistant")


def guided_columns(scores: Sequence[Score], guided: Sequence[GuidedNll]) -> dict[str, pa.Array]:
    """Put guided scores into columns.

    Returns:
        `guided_nll`, `guided_gain` (nats per token that guidance saves), `is_guided`.
    """
    gains = [(s.nll - one.nll) / s.num_tokens for s, one in zip(scores, guided, strict=True)]
    return {
        "guided_nll": pa.array([one.nll for one in guided], pa.float32()),
        "guided_gain": pa.array(gains, pa.float32()),
        "is_guided": pa.array([one.is_guided for one in guided], pa.bool_()),
    }
