"""The stage of `recaption`: request texts, apply guards, merge, and record the provenance.

Every random choice about a sample (whether it is recaptioned, its prompt, its seed, whether it is a
canary) is derived from its id. So the requests do not depend on how a run is cut into units or
resumed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from consomme.base.sample import Sample, Turn
from consomme.base.sample_tables import SAMPLE_SCHEMA
from consomme.datasets.truth import CAPTION_TRUTHS, CaptionTruth
from consomme.execution.queue_monitor import QueueMonitor
from consomme.execution.stage import DecodedSample, Gauge, Outcome, UnitStage, reject_of
from consomme.pipelines.recaption.guided import CaptionGuide
from consomme.pipelines.recaption.shown import blank, groups_of, swap_partners
from consomme.storage.captions import CAPTION_BEFORE, TURNS, turns_columns

if TYPE_CHECKING:
    from PIL import Image

    from consomme.curate.caption.prompts import CaptionPrompt
    from consomme.engines.generation.models import EngineModel
    from consomme.engines.generation.requests import (
        Generation,
        GenerationFailure,
        Request,
    )
    from consomme.pipelines.recaption.recipe import RecaptionRecipe
    from consomme.storage.ledger.run_folder import RunFolder

# Shapes: N samples.

_CHOICE, _PROMPT, _SEED = 101, 102, 103
"""Offsets of the recipe's seed, which make these choices independent of each other."""


class CaptionStage(UnitStage):
    """Generate one text per sample; starts one engine per actor."""

    is_shared = True

    def __init__(
        self,
        recipe: RecaptionRecipe,
        model: EngineModel,
        *,
        folder: RunFolder | None = None,
    ) -> None:
        """Start the engine.

        Args:
            recipe: Of the run.
            model: As `find_model` found it.
            folder: Of the run; the first actor writes the result of its self-check there.
        """
        from consomme.curate.caption.merges import MERGES
        from consomme.engines.generation.registry import GENERATION_ENGINES
        from consomme.pipelines.recaption.recipe import sampling_of

        self.recipe, self.model_hash = recipe, model.model_hash
        self.merge = MERGES.build(recipe.merge, "merge")
        self.guards = recipe.guards
        self.truth = CAPTION_TRUTHS.build(recipe.truth, "truth")
        path, open_engine = model.local(GENERATION_ENGINES.build(recipe.engine, "engine"))
        self.engine = open_engine(
            path, sampling_of(recipe), model_hash=self.model_hash, template=recipe.template
        )
        if folder is not None:
            folder.keep_self_check(self.engine)
        self.guide = CaptionGuide(recipe.guidance, self.engine)
        self.queue = QueueMonitor(self.engine.queue_load)

    def gauges(self) -> list[Gauge]:
        """Lengths of the engine's queue since the last call."""
        return self.queue.take()

    def work(self, samples: Sequence[DecodedSample]) -> Outcome:
        """Recaption samples of one unit."""
        from consomme.base.hashing import hash_ids, mix_hash
        from consomme.curate.caption.canary import choose_canaries
        from consomme.curate.caption.prompts import sample_prompts
        from consomme.engines.generation.requests import Generation

        if not samples:
            return self._outcome([], [], [], {}, [])
        recipe = self.recipe
        hash_N = hash_ids([item.sample.sample_id for item in samples])
        share_N = mix_hash(hash_N, recipe.seed + _CHOICE) / 2.0**64
        seeds = [int(value) % 2**31 for value in mix_hash(hash_N, recipe.seed + _SEED)]
        chosen = [n for n in range(len(samples)) if share_N[n] < recipe.fraction]
        skipped = {n: reason for n in chosen if (reason := self._skip_reason(samples[n].sample))}
        requested = [n for n in chosen if n not in skipped]
        guided = self.guide({n: samples[n] for n in requested if samples[n].images})
        requested = [n for n in requested if n not in guided.problems]
        prompts = sample_prompts(recipe.prompts, hash_N, recipe.seed + _PROMPT)
        groups = [groups_of(item.sample, recipe.images) for item in samples]
        first = [one[0] for one in groups]
        canaries: list[int] = []
        if recipe.shows_picture and recipe.canary_fraction:
            among_N = choose_canaries(hash_N, recipe.canary_fraction, recipe.seed)
            canaries = [n for n in requested if among_N[n] and samples[n].images]
        partners = swap_partners(samples, first, hash_N, canaries)
        requests = [
            replace(
                self._request(samples[n], prompts[n], seeds[n] + number, indices),
                contrast=guided.contrast(n, indices),
            )
            for n in requested
            for number, indices in enumerate(groups[n])
        ]
        for n in canaries:
            images = blank([samples[n].images[index] for index in first[n]])
            requests.append(self._request(samples[n], prompts[n], seeds[n], first[n], images))
        for n, other in partners.items():
            images = tuple(samples[other].images[index] for index in first[other])
            requests.append(self._request(samples[n], prompts[n], seeds[n], first[n], images))
        results = iter(self.engine.generate(requests))
        answers = {n: [next(results) for _ in groups[n]] for n in requested}
        canary_texts = {"blank": {n: _text_of(next(results)) for n in canaries}}
        canary_texts["swap"] = {n: _text_of(next(results)) for n in partners}
        rejects = []
        rows: list[dict[str, Any]] = []
        kept = []
        for n, item in enumerate(samples):
            failure = guided.problems.get(n) or _failure_of(answers.get(n, []))
            if failure is not None:
                reject = reject_of(item.sample, failure.reason, failure.detail)
                rejects.append((item.row, reject))
                continue
            kept.append(n)
            generations = [one for one in answers.get(n, []) if isinstance(one, Generation)]
            row = self._row(item, prompts[n], seeds[n], groups[n], generations)
            row["is_guided"] = guided.is_masked(n, item.images, groups[n])
            row["first"] = generations[0].text.strip() if generations else None
            rows.append(
                row | {f"canary_{kind}": texts.get(n) for kind, texts in canary_texts.items()}
            )
        outcome = self._outcome([samples[n] for n in kept], rows, rejects, canary_texts, kept)
        for reason in skipped.values():
            name = f"skipped/{reason}"
            outcome.counts[name] = outcome.counts.get(name, 0) + 1
        alone = [n for n in canaries if n not in partners and len(first[n]) > 1]
        if alone:
            outcome.sums["canary_swap_left_out"] = float(len(alone))
        return outcome

    def _skip_reason(self, sample: Sample) -> str | None:
        """Return why a sample is left as it is, if it is."""
        if not sample.images and self.recipe.text_only == "keep":
            return "text_only"
        if sample.is_document and not self.merge.takes_documents:
            return "document"
        return None

    def _request(
        self,
        item: DecodedSample,
        prompt: CaptionPrompt,
        seed: int,
        indices: Sequence[int],
        images: tuple[Image.Image, ...] | None = None,
    ) -> Request:
        """Build a request.

        Args:
            item: The sample.
            prompt: Its prompt.
            seed: Of the sampling.
            indices: Of the images that are shown.
            images: What is shown instead.
        """
        from consomme.curate.caption.merges import find_answer
        from consomme.engines.generation.requests import Request

        turns, groups = item.sample.turns, groups_of(item.sample, self.recipe.images)
        every = [index for group in groups for index in group]
        caption = text_of_turn(turns[find_answer(turns, every)])
        before = str(item.sample.meta.get(CAPTION_BEFORE, caption))
        text = prompt.fill(original=before, written=caption)
        shown = images or tuple(item.images[index] for index in indices)
        return Request(
            turns=(Turn(role="user", content=text),),
            images=shown if self.recipe.shows_picture else (),
            seed=seed % 2**31,
            pattern=prompt.pattern or None,
        )

    def _row(
        self,
        item: DecodedSample,
        prompt: CaptionPrompt,
        seed: int,
        groups: Sequence[Sequence[int]],
        answers: Sequence[Generation],
    ) -> dict[str, Any]:
        """Return the columns of one sample; `answers` are empty if it was not recaptioned."""
        from consomme.curate.caption.merges import find_answer

        turns, shown = item.sample.turns, [index for indices in groups for index in indices]
        answer = find_answer(turns, shown)
        before = text_of_turn(turns[answer])
        texts = [one.text.strip() for one in answers]
        doubts = [
            self.guards(
                text,
                one.finish_reason,
                prompt=prompt.text,
                original=before,
                has_boxes=prompt.has_boxes,
            )
            for text, one in zip(texts, answers, strict=True)
        ]
        guard = next((doubt for doubt in doubts if doubt is not None), None)
        is_new = bool(answers) and guard is None
        if is_new and self.recipe.images == "each" and item.sample.is_document:
            by_image = dict(zip(shown, texts, strict=True))
            turns = (self.merge.beside_images(turns[0], by_image),)
        elif is_new:
            turns = self.merge(
                turns,
                "\n".join(texts),
                answer=answer,
                prompt=prompt.text,
                question_for_caption=self.recipe.caption_question,
            )
        return {
            "row": item.row,
            "sample_id": item.sample.sample_id,
            "turns": turns,
            "caption": text_of_turn(turns[find_answer(turns, shown)]),
            "written": "\n".join(texts) if answers else None,
            "parent_caption": before,
            "guard": guard,
            "is_new": is_new,
            "num_tokens": sum(one.num_tokens for one in answers),
            "prompt_id": prompt.prompt_id if answers else None,
            "prompt_hash": prompt.text_hash if answers else None,
            "seed": seed if answers else None,
        }

    def _outcome(
        self,
        samples: Sequence[DecodedSample],
        rows: Sequence[dict[str, Any]],
        rejects: list[Any],
        canary_texts: dict[str, dict[int, str | None]],
        numbers: Sequence[int],
    ) -> Outcome:
        recipe, size = self.recipe, len(rows)
        turns = turns_columns([row["turns"] for row in rows])
        columns = {
            name: turns[name] if name == TURNS else pa.array([row[name] for row in rows], kind)
            for name, kind in OWN.items()
        }
        columns |= {
            "round": pa.array([recipe.round] * size, pa.int32()),
            "model_hash": pa.array([self.model_hash] * size, pa.string()),
            "merge": pa.array([recipe.merge["name"]] * size, pa.string()),
            "temperature": pa.array([recipe.temperature] * size, pa.float32()),
            "top_p": pa.array([recipe.top_p] * size, pa.float32()),
            "max_tokens": pa.array([recipe.max_tokens] * size, pa.int32()),
            "engine": pa.array([self.engine.version] * size, pa.string()),
        }
        columns |= turns
        if recipe.guidance is not None:
            columns["is_guided"] = pa.array([row["is_guided"] for row in rows], pa.bool_())
        flagged = [row["guard"] for row in rows if row["guard"]]
        counts = {f"guard/{reason}": flagged.count(reason) for reason in sorted(set(flagged))}
        requested = [
            (item.sample, row)
            for item, row in zip(samples, rows, strict=True)
            if row["written"] is not None
        ]
        counts |= {"asked": len(requested), "new": sum(row["is_new"] for row in rows)}
        if recipe.guidance is not None:
            counts["guided"] = sum(row["is_guided"] for row in rows)
        # Of the current caption, which is the old one if a guard flagged the new one.
        words = [len(row["caption"].split()) for _, row in requested]
        sums = {
            "num_tokens": float(sum(row["num_tokens"] for row in rows)),
            "words": float(sum(words)),
            "words_squared": float(sum(number**2 for number in words)),
            "words_before": float(sum(len(row["parent_caption"].split()) for _, row in requested)),
            **_claims(requested, self.truth),
            **_canary_sums(rows, canary_texts, numbers),
        }
        return Outcome(table=pa.table(columns), rejects=rejects, counts=counts, sums=sums)


OWN: dict[str, pa.DataType] = {
    "row": pa.int32(),
    "sample_id": pa.string(),
    TURNS: SAMPLE_SCHEMA.field("turns").type,
    "caption": pa.string(),
    "written": pa.string(),
    "parent_caption": pa.string(),
    "guard": pa.string(),
    "is_new": pa.bool_(),
    "num_tokens": pa.int32(),
    "prompt_id": pa.string(),
    "prompt_hash": pa.string(),
    "seed": pa.int64(),
    "canary_blank": pa.string(),
    "canary_swap": pa.string(),
}
"""Columns with a value per sample."""


def text_of_turn(turn: Turn) -> str:
    """Return the text of a turn; texts between images are lines of their own."""
    if not turn.image_indices:
        return turn.text
    return "\n".join(part.strip() for part in turn.parts if isinstance(part, str) and part.strip())


def _failure_of(answers: Sequence[Generation | GenerationFailure]) -> GenerationFailure | None:
    """Return the first failure of the requests about a sample; None if there is none."""
    from consomme.engines.generation.requests import GenerationFailure

    for number, answer in enumerate(answers, 1):
        if isinstance(answer, GenerationFailure):
            which = f"image {number} of {len(answers)}: " if len(answers) > 1 else ""
            return GenerationFailure(reason=answer.reason, detail=which + answer.detail)
    return None


def _text_of(answer: Generation | GenerationFailure) -> str | None:
    from consomme.engines.generation.requests import Generation

    return answer.text.strip() if isinstance(answer, Generation) else None


def _canary_sums(
    rows: Sequence[dict[str, Any]],
    canary_texts: dict[str, dict[int, str | None]],
    numbers: Sequence[int],
) -> dict[str, float]:
    """Count the canaries, and those with the same text for another image."""
    from consomme.curate.caption.canary import same_caption

    texts = dict(zip(numbers, (row["first"] for row in rows), strict=True))
    sums: dict[str, float] = {}
    for kind, seen in canary_texts.items():
        pairs = [(texts[n], text) for n, text in seen.items() if n in texts and text is not None]
        sums[f"canary_{kind}"] = float(len(pairs))
        sums[f"canary_{kind}_same"] = float(sum(same_caption(first, text) for first, text in pairs))
    return sums


def _claims(
    requested: Sequence[tuple[Sample, dict[str, Any]]], truth: CaptionTruth
) -> dict[str, float]:
    """Sum true, false and missing claims before and after, where the truth is known."""
    sums: dict[str, float] = {}
    for sample, row in requested:
        before = truth(sample, row["parent_caption"])
        after = truth(sample, row["caption"])
        if before is None or after is None:
            continue
        sums["judged"] = sums.get("judged", 0.0) + 1
        for when, verdict in (("before", before), ("after", after)):
            for what, number in zip(("true", "false", "missing"), verdict, strict=True):
                sums[f"{when}_{what}"] = math.fsum((sums.get(f"{when}_{what}", 0.0), number))
    return sums
