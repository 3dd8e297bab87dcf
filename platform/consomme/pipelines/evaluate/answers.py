"""Let models answer the items of benchmarks, on a pool of actors."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from consomme.base.errors import DataError
from consomme.base.sample import Turn
from consomme.base.telemetry import Progress
from consomme.evaluate.cache import ResultCache, result_key
from consomme.execution.session import num_cpus, ray_session
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.model_folder import model_folder
from consomme.storage.stores.open import open_store
from consomme.storage.stores.store import join_url

_LOG = logging.getLogger(__name__)


class Answerer:
    """An actor that loads one model at a time and answers benchmarks."""

    def __init__(self, template: Mapping[str, Any], folder: RunFolder) -> None:
        """Start without a model.

        Args:
            template: Options of the models' chat templates.
            folder: Of the run; the results of self-checks are written there.
        """
        self.template, self.folder = dict(template), folder
        self.loaded: tuple[str, bool] | None = None
        self.engine: Any = None

    def answer(
        self, number: int, model: str, model_hash: str, benchmark: dict[str, Any]
    ) -> tuple[int, list[str]]:
        """Answer every request of a benchmark with one model; `number` comes back with them.

        Args:
            number: Of the request.
            model: As `model_folder` takes it on any machine.
            model_hash: Of its content.
            benchmark: Registry node.
        """
        from consomme.engines.generation.requests import Request
        from consomme.evaluate.benchmark import HasData, is_written, parts_of
        from consomme.evaluate.benchmarks import BENCHMARKS

        answers: list[str] = []
        for part in parts_of(BENCHMARKS.build(benchmark)):
            self._load(model, model_hash, writes=is_written(part))
            if is_written(part):
                requests = (Request(turns=one.turns, images=one.images) for one in part.items())
                # A question of a user's file that the model cannot be given is answered wrongly.
                answers += self.engine.answer(
                    requests, part.max_tokens, skips_refused=isinstance(part, HasData)
                )
            else:
                answers += likeliest_answers(self.engine, part)
        return number, answers

    def _load(self, model: str, model_hash: str, *, writes: bool) -> None:
        """Open a model in the engine that writes, or in the one that scores."""
        from consomme.curate.perplexity import token_nll
        from consomme.engines.generation.transformers import TransformersEngine
        from consomme.engines.scoring.transformers import TransformersScorer

        if self.loaded == (model, writes):
            return
        self.engine = self.loaded = None
        folder = model_folder(model)
        if writes:
            self.engine = TransformersEngine(
                folder, dtype="float32", model_hash=model_hash, template=self.template
            )
        else:
            self.engine = TransformersScorer(
                folder,
                token_nll,
                dtype="float32",
                model_hash=model_hash,
                template=self.template,
                max_caption_tokens=_ANY_LENGTH,
            )
        self.folder.keep_self_check(self.engine, model_hash)
        self.loaded = (model, writes)


_ANY_LENGTH = 1 << 30
"""No limit of our own on the length of an option; the model's limit applies."""

_ITEMS_AT_A_TIME = 64


def _content_key(image: Image.Image) -> tuple[object, ...]:
    """Name an image by what is on it, as the scorer keeps prepared images by their names."""
    return image.size, hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def likeliest_answers(scorer: Any, benchmark: Any) -> list[str]:
    """Return the most likely answer to each request; empty where the model cannot be asked.

    Raises:
        DataError: The model can be asked nothing.
    """
    from consomme.engines.scoring.requests import NotScored, ScoringRequest

    answers: list[str] = []
    problem = ""
    items = benchmark.items()
    for start in range(0, len(items), _ITEMS_AT_A_TIME):
        some = items[start : start + _ITEMS_AT_A_TIME]
        candidates = [benchmark.candidates(start + k) for k in range(len(some))]
        requests = [
            ScoringRequest(
                turns=(*item.turns, Turn(role="assistant", content=text)),
                images=item.images,
                keys=keys or None,
            )
            for k, item in enumerate(some)
            for keys in [tuple(map(_content_key, item.images))]
            for text in candidates[k].values()
        ]
        scores = iter(scorer.score(requests))
        for k, names in enumerate(candidates):
            found = {name: next(scores) for name in names}
            nlls = {n: one.nll for n, one in found.items() if not isinstance(one, NotScored)}
            if len(nlls) < len(found):
                refused = next(one for one in found.values() if isinstance(one, NotScored))
                problem = problem or f"{refused.reason}: {refused.detail}"
                answers.append("")
            else:
                answers.append(benchmark.choose(nlls, start + k))
    if not any(answers):
        raise DataError(f"the model cannot be asked any question of this benchmark: {problem}")
    if problem:
        _LOG.warning("%d of %d: %s", answers.count(""), len(answers), problem)
    return answers


def answer_all(
    root: str,
    folder: RunFolder,
    requests: Sequence[tuple[str, str, Mapping[str, Any]]],
    num_actors: int | None,
    template: Mapping[str, Any],
) -> list[list[str]]:
    """Answer (model, model fingerprint, benchmark) requests, if possible from the cache.

    The cache lies in `<root>/cache/answers`, keyed by the content of the model and the benchmark: a
    new checkpoint written to an old path is a new key.
    """
    from consomme.evaluate.benchmarks import BENCHMARKS, describe, portable_node

    cache = ResultCache(open_store(join_url(root, "cache")), "answers")
    # Describing a benchmark reads its data.
    described: dict[str, str] = {}
    for _, _, node in requests:
        text = json.dumps(node, sort_keys=True)
        described[text] = described.get(text) or describe(BENCHMARKS.build(node))
    keys = [
        result_key(
            model_hash=print_,
            benchmark=str(node["name"]),
            benchmark_hash=described[json.dumps(node, sort_keys=True)],
            decoding={"engine": "transformers", "temperature": 0, "template": dict(template)},
        )
        for _, print_, node in requests
    ]
    known = {key: found for key in dict.fromkeys(keys) if (found := cache.get(key)) is not None}
    missing = [n for n, key in enumerate(keys) if key not in known]
    if missing:
        with ray_session(), Progress(len(missing), "evaluate", "benchmarks") as progress:
            import ray

            gpus = int(ray.cluster_resources().get("GPU", 0))
            size = min(len(missing), num_actors or gpus or num_cpus())
            # "DEFAULT": an actor must not inherit the placement group of a sweep's trial, which
            # reserves nothing.
            actor = ray.remote(
                num_cpus=0.9, num_gpus=1 if gpus else 0, scheduling_strategy="DEFAULT"
            )(Answerer)
            pool = ray.util.ActorPool([actor.remote(template, folder) for _ in range(size)])
            for number in missing:
                model, model_hash, node = requests[number]
                pool.submit(
                    lambda member, given: member.answer.remote(*given),
                    (number, model, model_hash, portable_node(node)),
                )
            while pool.has_next():
                number, given = pool.get_next_unordered()
                known[keys[number]] = {"answers": given}
                cache.put(keys[number], known[keys[number]])
                progress.advance()
    return [known[key]["answers"] for key in keys]
