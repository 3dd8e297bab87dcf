"""Compare captions with their images by the dual encoders that benchmarks name, on the cluster.

Captions are compared some at a time, and what was compared is kept in `<root>/cache/clip_scores` by
its content: a run that is killed goes on where it was.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

from consomme.evaluate.benchmark import Benchmark, parts_of
from consomme.evaluate.cache import ResultCache
from consomme.evaluate.clip_score import (
    ClipScore,
    Compared,
    HasClipScore,
    ToCompare,
    with_cosines,
)
from consomme.execution.errors import own_errors
from consomme.pipelines.evaluate.answers import AskedBenchmark
from consomme.pipelines.evaluate.judges import Judged
from consomme.storage.model_folder import model_folder, model_hash, portable_path
from consomme.storage.stores.open import open_store
from consomme.storage.stores.store import join_url

CAPTIONS_PER_TASK = 64


@dataclass(frozen=True, kw_only=True)
class _Task:
    """Some captions of one model, to be compared by one encoder."""

    encoder: str
    """Where any node finds it."""

    encoder_hash: str
    how: ClipScore
    question: int
    """Index of the model and benchmark."""

    some: Mapping[int, ToCompare]
    """By the number of the request."""

    @property
    def key(self) -> str:
        """Names what comes out, by all that decides it."""
        hashed = [
            [
                [hashlib.sha256(image).hexdigest() for image in one.images],
                one.caption,
                list(one.references),
            ]
            for one in self.some.values()
        ]
        content = [self.encoder_hash, self.how.dtype, self.how.prefix, hashed]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def encoders_of(benchmark: Benchmark) -> list[ClipScore]:
    """Return the dual encoders that a benchmark names, of all its parts."""
    return [
        one.clip_score
        for one in parts_of(benchmark)
        if isinstance(one, HasClipScore) and one.clip_score
    ]


def encoder_inputs(benchmark: Benchmark, key: str) -> dict[str, str]:
    """Return the hashes of the dual encoders that a benchmark names, as inputs of a run.

    Args:
        benchmark: The benchmark.
        key: Of the recipe that holds it.

    Raises:
        CheckpointError: One is another kind of model.
    """
    found = {}
    for number, one in enumerate(encoders_of(benchmark)):
        from consomme.models.image_models import check_dual_encoder

        encoder = portable_path(one.model)
        check_dual_encoder(model_folder(encoder, has_weights=False))
        found[f"{key}.clip_score[{number}]"] = model_hash(encoder)
    return found


def with_clip_scores(
    root: str,
    questions: Sequence[AskedBenchmark],
    answers: Sequence[Sequence[str]],
    judged: Sequence[Judged],
) -> list[Judged]:
    """Compare the captions among answers with their images; needs Ray if there are any.

    Args:
        root: Of the runs, with the cache.
        questions: Models and benchmarks.
        answers: Aligned with them.
        judged: The same, and what judges wrote.

    Returns:
        The same; where a benchmark has an encoder, with the cosines.
    """
    found: list[dict[int, Compared | None]] = [{} for _ in questions]
    tasks = list(_tasks(questions, answers))
    if tasks:
        cache = ResultCache(open_store(join_url(root, "cache")), "clip_scores")
        for task, compared in _compared(tasks, cache):
            found[task.question] |= zip(task.some, compared, strict=True)
    result = []
    for question, one, own in zip(questions, judged, found, strict=True):
        if not encoders_of(question.benchmark):
            result.append(one)
            continue
        replies = {number: json.dumps(asdict(each)) for number, each in own.items() if each}
        texts = list(one.texts)
        for number in own:
            texts[number] = with_cosines(texts[number], own[number])
        result.append(replace(one, texts=texts, replies={**one.replies, **replies}))
    return result


def _tasks(
    questions: Sequence[AskedBenchmark], answers: Sequence[Sequence[str]]
) -> Iterator[_Task]:
    for index, (question, given) in enumerate(zip(questions, answers, strict=True)):
        first = 0
        for part in parts_of(question.benchmark):
            size = len(part.items())
            if isinstance(part, HasClipScore) and part.clip_score:
                encoder = portable_path(part.clip_score.model)
                mark = model_hash(encoder)
                asked = part.to_compare(given[first : first + size])
                numbers = iter(asked)
                while some := list(islice(numbers, CAPTIONS_PER_TASK)):
                    yield _Task(
                        encoder=encoder,
                        encoder_hash=mark,
                        how=part.clip_score,
                        question=index,
                        some={first + number: asked[number] for number in some},
                    )
            first += size


def _compared(
    tasks: Sequence[_Task], cache: ResultCache
) -> Iterator[tuple[_Task, list[Compared | None]]]:
    """Yield each task with what came out, from the cache or from the cluster."""
    import ray

    def read(values: Mapping[str, Any]) -> list[Compared | None]:
        return [Compared(**one) if one else None for one in values["compared"]]

    missing = []
    for task in tasks:
        known = cache.get(task.key)
        if known is None:
            missing.append(task)
        else:
            yield task, read(known)
    resources = ray.cluster_resources()
    num_gpus = int(resources.get("GPU", 0))
    at_once = 2 * (num_gpus or max(1, int(resources.get("CPU", 1))))
    # Workers with a GPU would end after one task, and the next one would open the encoder again.
    remote = ray.remote(num_cpus=1, num_gpus=min(1, num_gpus), max_calls=0)(compare)
    left, running = iter(missing), dict[Any, _Task]()
    with own_errors():
        while True:
            for task in islice(left, at_once - len(running)):
                made = remote.remote(
                    task.encoder, task.how.dtype, task.how.prefix, list(task.some.values())
                )
                running[made] = task
            if not running:
                return
            (ready,), _ = ray.wait(list(running), num_returns=1)
            task, values = running.pop(ready), {"compared": ray.get(ready)}
            cache.put(task.key, values)
            yield task, read(values)


@functools.lru_cache(maxsize=1)
def _open(encoder: str, dtype: str) -> Any:
    from consomme.engines.scoring.image_models import ImageTextEmbedder

    return ImageTextEmbedder(model_folder(encoder), dtype)


def compare(
    encoder: str, dtype: str, prefix: str, some: Sequence[ToCompare]
) -> list[dict[str, Any] | None]:
    """Compare captions with their images, in this process.

    Args:
        encoder: Where any node finds it.
        dtype: Of its weights.
        prefix: Before each text.
        some: Captions.

    Returns:
        The fields of a `Compared` for each; None where the encoder cannot take an image.

    Raises:
        CheckpointError: The model is no dual encoder.
    """
    import numpy as np

    from consomme.engines.scoring.requests import NotScored
    from consomme.evaluate.lazy import LazyImages

    # Shapes: I images of a caption, W width of the embeddings.
    model = _open(encoder, dtype)
    images = list(dict.fromkeys(image for one in some for image in one.images))
    texts = list(
        dict.fromkeys(prefix + text for one in some for text in (one.caption, *one.references))
    )
    image_of = dict(zip(images, model.embed_images(LazyImages(images, blank=False)), strict=True))
    text_of = dict(zip(texts, model.embed_texts(texts), strict=True))
    found: list[dict[str, Any] | None] = []
    for one in some:
        seen = [image_of[image] for image in one.images]
        caption_W, is_cut = text_of[prefix + one.caption]
        cosines = [
            float(image_W @ caption_W) for image_W in seen if not isinstance(image_W, NotScored)
        ]
        if len(cosines) < len(seen) or not np.isfinite(cosines).all():
            found.append(None)
            continue
        references = [float(text_of[prefix + text][0] @ caption_W) for text in one.references]
        compared = Compared(
            image=float(np.mean(cosines)),
            reference=max(references) if references else None,
            is_cut=is_cut,
        )
        found.append(asdict(compared))
    return found
