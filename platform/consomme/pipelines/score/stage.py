"""The stage of `score`: nll with and without the picture, as columns."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from consomme.base.sample import ImageRef, turns_of
from consomme.curate.caption.prompt_pools import PromptPools
from consomme.execution.stage import DecodedSample, Outcome, UnitSample, UnitStage, reject_of
from consomme.pipelines.score.guided import GuidedScores, guided_columns
from consomme.storage.model_folder import model_folder

if TYPE_CHECKING:
    from consomme.engines.scoring.requests import Score, ScoringEngine
    from consomme.pipelines.score.recipe import ScoreRecipe
    from consomme.storage.ledger.run_folder import RunFolder


TEXT_ONLY = "text_only"
"""Prefix of the sums over samples without images."""


class PerplexityStage(UnitStage):
    """Attach the columns of `score_columns`; loads the model once per actor."""

    def __init__(
        self,
        recipe: ScoreRecipe,
        model: str,
        *,
        model_hash: str | None = None,
        folder: RunFolder | None = None,
    ) -> None:
        """Load the scoring engine.

        Args:
            recipe: Of the run.
            model: As `model_folder` takes it on any machine.
            model_hash: Of its content, for the cache of self-checks.
            folder: Of the run; the first actor writes the result of its self-check there.
        """
        self.labels = recipe.labels
        self.prompts = PromptPools.read(recipe.prompts, recipe.prompt_key, recipe.prompt)
        self.keeps_prompts = bool(recipe.prompts)
        folder_here = model_folder(model)
        self.scorer = _open_engine(recipe, folder_here, model_hash)
        self.guided = (
            GuidedScores(recipe.guidance, self.scorer, lambda: _open_writer(recipe, folder_here))
            if recipe.guidance is not None
            else None
        )
        if folder is not None:
            folder.keep_self_check(self.scorer)

    def work(self, samples: Sequence[DecodedSample]) -> Outcome:
        """Score one unit."""
        from consomme.engines.scoring.requests import NotScored, ScoringRequest

        asked = [self.prompts.draw(item.sample.sample_id, item.sample.meta) for item in samples]
        questions = [
            ScoringRequest(
                turns=turns_of(item.sample, prompt),
                images=item.images,
                keys=tuple(
                    hashlib.blake2b(image.data, digest_size=16).digest()
                    for image in item.sample.images
                ),
            )
            for item, prompt in zip(samples, asked, strict=True)
        ]
        scores: list[Any] = list(self.scorer.score(questions))
        guided: list[Any] = [None] * len(samples)
        if self.guided is not None:
            guided = self.guided([item.sample for item in samples], questions, scores)
            # Without the guided score, a row would lack what the recipe asks for.
            scores = [
                one if isinstance(one, NotScored) else score
                for one, score in zip(guided, scores, strict=True)
            ]
        rejects, rows, prompts, guided_rows = [], [], [], []
        for item, score, prompt, one in zip(samples, scores, asked, guided, strict=True):
            if isinstance(score, NotScored):
                reject = reject_of(item.sample, score.reason, score.detail)
                rejects.append((item.row, reject))
                continue
            nats = score.nll + (score.nll_text or 0.0) + (one.nll if one is not None else 0.0)
            if not math.isfinite(nats):
                detail = f"nll {score.nll}, text-only {score.nll_text}"
                rejects.append((item.row, reject_of(item.sample, "score_not_finite", detail)))
                continue
            rows.append((item, score))
            prompts.append(prompt)
            guided_rows.append(one)
        columns: dict[str, Any] = {
            "row": pa.array([item.row for item, _ in rows], pa.int32()),
            "sample_id": pa.array([item.sample.sample_id for item, _ in rows], pa.string()),
            **score_columns([score for _, score in rows], [_num_bytes(item) for item, _ in rows]),
        }
        if self.guided is not None:
            columns |= guided_columns([score for _, score in rows], guided_rows)
        if self.keeps_prompts:
            columns["prompt"] = pa.array(prompts, pa.string())
        for label in self.labels:
            values = [item.sample.meta.get(label) for item, _ in rows]
            columns[label] = pa.array(
                [None if value is None else str(value) for value in values], pa.string()
            )
        sums = {
            "nll": math.fsum(s.nll for _, s in rows),
            "nll_text": math.fsum(s.nll_text for _, s in rows if s.nll_text is not None),
            "num_tokens": sum(s.num_tokens for _, s in rows),
        }
        if self.guided is not None:
            known = [
                (s, one) for (_, s), one in zip(rows, guided_rows, strict=True) if one.is_guided
            ]
            sums["guided/nll"] = math.fsum(one.nll for _, one in known)
            sums["guided/plain_nll"] = math.fsum(s.nll for s, _ in known)
            sums["guided/num_tokens"] = sum(s.num_tokens for s, _ in known)
            sums["guided/samples"] = len(known)
        texts = [score for _, score in rows if score.nll_text is None]
        if texts:
            sums[f"{TEXT_ONLY}/nll"] = math.fsum(score.nll for score in texts)
            sums[f"{TEXT_ONLY}/num_tokens"] = sum(score.num_tokens for score in texts)
        return Outcome(table=pa.table(columns), rejects=rejects, sums=sums)


def _open_engine(recipe: ScoreRecipe, model: str, model_hash: str | None) -> ScoringEngine:
    truncates = recipe.too_long == "truncate"
    if recipe.engine == "vllm":
        from consomme.engines.scoring.vllm import VLLMScorer
        from consomme.engines.vllm_engine import EngineOptions

        return VLLMScorer(
            model,
            max_caption_tokens=recipe.max_caption_tokens,
            truncates=truncates,
            options=EngineOptions(tensor_parallel=recipe.tensor_parallel),
            template=recipe.template,
        )
    from consomme.curate.perplexity import FORMULAS
    from consomme.engines.scoring.transformers import TransformersScorer

    return TransformersScorer(
        model,
        FORMULAS[recipe.formula],
        max_caption_tokens=recipe.max_caption_tokens,
        truncates=truncates,
        token_budget=recipe.token_budget,
        dtype=recipe.dtype,
        model_hash=model_hash,
        template=recipe.template,
    )


def _open_writer(recipe: ScoreRecipe, model: str) -> Any:
    """Open the same model to write its own boxes; its weights are in memory twice then."""
    from consomme.engines.generation.transformers import TransformersEngine

    return TransformersEngine(model, dtype=recipe.dtype, template=recipe.template)


def score_columns(scores: Sequence[Score], num_bytes: Sequence[int]) -> dict[str, pa.Array]:
    """Put scores into columns.

    Args:
        scores: What the engine found.
        num_bytes: UTF-8 bytes of what the assistant says in each.

    Returns:
        `nll`, `num_tokens`, `perplexity`, `nll_text`, `image_gain` (nats per token; these two are
        null of samples without images),
        `bits_per_byte` (comparable between tokenizers), `max_token_nll`, `is_truncated`, and by
        assistant turn `turn_nll`, `turn_nll_text`, `turn_tokens`.
    """
    floats = pa.list_(pa.float32())
    return {
        "nll": pa.array([s.nll for s in scores], pa.float32()),
        "num_tokens": pa.array([s.num_tokens for s in scores], pa.int32()),
        "perplexity": pa.array(
            [math.exp(min(s.nll / s.num_tokens, 80.0)) for s in scores], pa.float32()
        ),
        "nll_text": pa.array([s.nll_text for s in scores], pa.float32()),
        "image_gain": pa.array(
            [None if s.nll_text is None else (s.nll_text - s.nll) / s.num_tokens for s in scores],
            pa.float32(),
        ),
        "bits_per_byte": pa.array(
            [s.nll / math.log(2) / max(1, size) for s, size in zip(scores, num_bytes, strict=True)],
            pa.float32(),
        ),
        "max_token_nll": pa.array([s.max_token_nll for s in scores], pa.float32()),
        "is_truncated": pa.array([s.is_truncated for s in scores], pa.bool_()),
        "turn_nll": pa.array([[t.nll for t in s.turns] for s in scores], floats),
        "turn_nll_text": pa.array([[t.nll_text for t in s.turns] for s in scores], floats),
        "turn_tokens": pa.array(
            [[t.num_tokens for t in s.turns] for s in scores], pa.list_(pa.int32())
        ),
    }


def _num_bytes(item: UnitSample) -> int:
    """Return the UTF-8 bytes of what is scored."""
    if item.sample.is_document:
        parts = item.sample.turns[0].parts
        first = next(n for n, part in enumerate(parts) if isinstance(part, ImageRef))
        return sum(len(part.encode()) for part in parts[first:] if isinstance(part, str))
    return sum(
        len(turn.text.encode())
        for turn in item.sample.turns
        if turn.role == "assistant" and turn.is_labelled
    )
