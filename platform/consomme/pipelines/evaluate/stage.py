"""The stage of `evaluate`: let a model answer some requests of a benchmark."""

from __future__ import annotations

import functools
import hashlib
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from consomme.base.errors import DataError, RecipeError
from consomme.base.sample import Turn
from consomme.execution.queue_monitor import QueueMonitor
from consomme.execution.stage import DecodedSample, Gauge, Outcome, UnitStage, reject_of
from consomme.pipelines.evaluate.asked import Asked
from consomme.pipelines.evaluate.engine_slot import EngineSlot
from consomme.pipelines.evaluate.guided import Guide
from consomme.storage.ledger.run_folder import RunFolder

if TYPE_CHECKING:
    from PIL import Image

    from consomme.evaluate.benchmark import BenchmarkItem

ANSWERS = "answers"
"""Kind of the files with the answers of a unit."""

_KEPT_BENCHMARKS = 3
"""Benchmarks whose questions an actor keeps: its units may be of so many at the same time."""

_PIXELS_AT_A_TIME = 200_000_000
"""Of decoded images that wait in memory: 600 MB."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to one request."""

    text: str
    is_cut: bool = False
    """Whether the model reached its token limit before the end."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why there is no answer."""

    reason: str
    """One of `consomme.base.sample.REJECT_REASONS`."""

    detail: str


class AnswerStage(UnitStage):
    """Answers requests; opens an engine when the first unit of a model comes.

    The first one is opened before: a model that is too large then ends the process while it starts,
    and no unit of it is thought to be the reason.
    """

    is_shared = True

    def __init__(
        self,
        asked: Sequence[Asked],
        engine: Mapping[str, Any],
        template: Mapping[str, Any],
        *,
        folder: RunFolder,
    ) -> None:
        """Open the first engine.

        Args:
            asked: What is asked in any unit; what is answered first comes first.
            engine: Node of the recipe.
            template: Options of the models' chat templates.
            folder: Of the run.
        """
        self._asked = {one.source: one for one in asked}
        self._slot = EngineSlot(engine, template, folder)
        self._queue = QueueMonitor(self._slot.queue_load)
        self._lock = threading.Lock()
        self._built = functools.lru_cache(_KEPT_BENCHMARKS)(self._build)
        with self._slot.use(asked[0]):
            pass

    def gauges(self) -> list[Gauge]:
        """Lengths of the engine's queue since the last call."""
        return self._queue.take()

    def work(self, samples: Sequence[DecodedSample]) -> Outcome:
        """Answer the requests of one unit."""
        if not samples:
            return Outcome(table=_table([], []))
        asked = self._asked[samples[0].sample.source]
        # Two units of a benchmark that is not read yet read it once.
        with self._lock:
            benchmark, items = self._built(asked.source)
        numbers = [int(item.sample.sample_id) for item in samples]
        guide = Guide(benchmark, lambda: self._slot.writer(asked))
        with self._slot.use(asked) as engine:
            answer = written_answers if asked.is_written else likely_answers
            found = answer(engine, benchmark, items, numbers, guide)
        kept, answers, rejects = [], [], []
        for item, one in zip(samples, found, strict=True):
            if isinstance(one, Answer):
                kept.append(item)
                answers.append(one)
            else:
                rejects.append((item.row, reject_of(item.sample, one.reason, one.detail)))
        return Outcome(table=_table(kept, answers), rejects=rejects, counts=guide.counts)

    def _build(self, source: str) -> tuple[Any, Sequence[BenchmarkItem]]:
        benchmark = self._asked[source].build()
        return benchmark, benchmark.items()


def _table(samples: Sequence[DecodedSample], answers: Sequence[Answer]) -> pa.Table:
    return pa.table(
        {
            "row": pa.array([item.row for item in samples], pa.int32()),
            "sample_id": pa.array([item.sample.sample_id for item in samples], pa.string()),
            "answer": pa.array([one.text for one in answers], pa.string()),
            "is_cut": pa.array([one.is_cut for one in answers], pa.bool_()),
        }
    )


def written_answers(
    engine: Any,
    benchmark: Any,
    items: Sequence[BenchmarkItem],
    numbers: Sequence[int],
    guide: Guide | None = None,
) -> list[Answer | Refusal]:
    """Let an engine write answers, without white space around them.

    Args:
        engine: A `GenerationEngine`.
        benchmark: Of the requests.
        items: All of its requests.
        numbers: Those that are asked.
        guide: Guides the model by regions; None makes one that has the engine.

    Raises:
        DataError: A request of a benchmark of our own cannot be given to the model; one that stands
            in a user's file is answered wrongly.
    """
    from consomme.engines.generation.requests import GenerationFailure, Request
    from consomme.engines.regions import RegionProblem
    from consomme.evaluate.benchmark import HasData

    guide = guide or Guide(benchmark, lambda: engine)
    found: list[Answer | Refusal] = []
    for some in _portions(items, numbers):
        contrasts = guide([(one, images, one.prompt) for one, images in some])
        for contrast in contrasts:
            guide.count([contrast])
        requests = [
            Request(
                turns=one.turns,
                images=tuple(images),
                max_tokens=benchmark.max_tokens,
                contrast=None if isinstance(contrast, RegionProblem) else contrast,
            )
            for (one, images), contrast in zip(some, contrasts, strict=True)
        ]
        known = [k for k, one in enumerate(contrasts) if not isinstance(one, RegionProblem)]
        results: list[Any] = list(contrasts)
        for k, result in zip(known, engine.generate([requests[k] for k in known]), strict=True):
            results[k] = result
        for request, result in zip(requests, results, strict=True):
            if isinstance(result, GenerationFailure | RegionProblem):
                if not isinstance(benchmark, HasData):
                    raise DataError(
                        f"question {numbers[len(found)]}, {request.turns[-1].text[:80]!r}, cannot"
                        f" be put to this model: {result.reason}: {result.detail}"
                    )
                found.append(Refusal(reason=result.reason, detail=result.detail))
            else:
                is_cut = result.finish_reason == "length"
                found.append(Answer(text=result.text.strip(), is_cut=is_cut))
    return found


def likely_answers(
    scorer: Any,
    benchmark: Any,
    items: Sequence[BenchmarkItem],
    numbers: Sequence[int],
    guide: Guide | None = None,
) -> list[Answer | Refusal]:
    """Choose answers by their likelihood.

    Args:
        scorer: A `ScoringEngine`.
        benchmark: Of the requests; has their `candidates`.
        items: All of its requests.
        numbers: Those that are asked.
        guide: Guides the model by regions; None refuses a benchmark whose boxes the model writes.
    """
    from consomme.engines.regions import RegionProblem
    from consomme.engines.scoring.requests import NotScored, ScoringRequest

    guide = guide or Guide(benchmark, _no_writer)

    answers: list[Answer | Refusal] = []
    for some in _portions(items, numbers):
        candidates = [benchmark.candidates(n) for n in numbers[len(answers) :][: len(some)]]
        # Captions may name different things; options are answers to one question.
        by_candidate = getattr(benchmark, "candidates_name_regions", False)
        asked = [
            (item, images, text if by_candidate else item.prompt)
            for (item, images), texts in zip(some, candidates, strict=True)
            for text in (texts.values() if by_candidate else ("",))
        ]
        found_contrasts = iter(guide(asked))
        contrasts: list[Any] = []
        for texts in candidates:
            own = [next(found_contrasts) for _ in (texts if by_candidate else ("",))]
            guide.count(own)
            contrasts += own if by_candidate else own * len(texts)
        requests = [
            ScoringRequest(
                turns=(*item.turns, Turn(role="assistant", content=text)),
                images=images,
                keys=keys or None,
                scores_text=False,
            )
            for (item, images), texts in zip(some, candidates, strict=True)
            for keys in [tuple(map(_content_key, images))]
            for text in texts.values()
        ]
        results: list[Any] = list(contrasts)
        known = [k for k, one in enumerate(contrasts) if not isinstance(one, RegionProblem)]
        scored = scorer.score([replace(requests[k], contrast=contrasts[k]) for k in known])
        for k, one in zip(known, scored, strict=True):
            results[k] = one
        scores = iter(results)
        for names in candidates:
            found = {name: next(scores) for name in names}
            bad = (NotScored, RegionProblem)
            refused = [one for one in found.values() if isinstance(one, bad)]
            nlls = {name: one.nll for name, one in found.items() if not isinstance(one, bad)}
            if refused:
                answers.append(Refusal(reason=refused[0].reason, detail=refused[0].detail))
            elif not all(map(math.isfinite, nlls.values())):
                answers.append(Refusal(reason="score_not_finite", detail=f"nats: {nlls}"))
            else:
                answers.append(Answer(text=benchmark.choose(nlls, numbers[len(answers)])))
    return answers


def _no_writer() -> Any:
    raise RecipeError(
        "guidance.boxes: found the model's own boxes, but nothing here writes; take them from data"
        " or a detector"
    )


def _content_key(image: Image.Image) -> tuple[object, ...]:
    """Name an image by what is on it, as the scorer keeps prepared images by their names."""
    return image.size, hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def _portions(
    items: Sequence[BenchmarkItem], numbers: Sequence[int]
) -> Iterator[list[tuple[BenchmarkItem, tuple[Image.Image, ...]]]]:
    """Yield requests with their images, in portions that fit into memory."""
    portion: list[tuple[BenchmarkItem, tuple[Image.Image, ...]]] = []
    pixels = 0
    for number in numbers:
        images = tuple(items[number].images)
        size = sum(image.width * image.height for image in images)
        if portion and pixels + size > _PIXELS_AT_A_TIME:
            yield portion
            portion, pixels = [], 0
        portion.append((items[number], images))
        pixels += size
    if portion:
        yield portion
