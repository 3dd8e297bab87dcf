"""Answer benchmarks in this process, with weights that may be exchanged between two of them.

For those who choose among models that are not written anywhere: soups, and checkpoints of a
training. Unless another engine is named they answer with the one that `evaluate` takes, and their
answers go into its cache under the same keys.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from consomme.base.errors import DataError, RecipeError
from consomme.evaluate.benchmark import BENCHMARKS, Benchmark, is_written, parts_of
from consomme.evaluate.cache import ResultCache, result_key
from consomme.evaluate.engine_rules import DEFAULT_ENGINE
from consomme.pipelines.evaluate.answers import PASSING, Answers, engine_identity, joined
from consomme.pipelines.evaluate.guided import Guide
from consomme.pipelines.evaluate.stage import Answer, Refusal, likely_answers, written_answers
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.stores.open import open_store


class InMemoryAnswerer:
    """One model in the engine that writes, and in the one that scores, each opened when needed."""

    def __init__(
        self,
        folder: str,
        *,
        model_hash: str,
        template: Mapping[str, Any],
        run: RunFolder,
        engine: Mapping[str, Any] = DEFAULT_ENGINE,
    ) -> None:
        """Open nothing yet.

        Args:
            folder: Of the model, on this machine.
            model_hash: Of its content; self-checks are cached under it.
            template: Options of its chat template.
            run: Where the results of self-checks are kept.
            engine: Registry node of the engine; vLLM runs in this process.
        """
        self.folder, self.model_hash, self.run = folder, model_hash, run
        self.template, self.node = dict(template), dict(engine)
        if self.node["name"] == "vllm":
            # Weights are exchanged there without being copied to another process.
            self.node["own_process"] = False
        self._weights: Callable[[], Mapping[str, Any]] | None = None
        self._engines: dict[bool, Any] = {}
        """By whether it writes."""

    def load_weights(self, weights: Callable[[], Mapping[str, Any]]) -> None:
        """Replace the model's weights by others of the same architecture.

        Args:
            weights: Makes them, by the names of a checkpoint folder's tensors; called for each
                engine, and not kept in memory.
        """
        self._weights = weights
        # vLLM writes and scores with one engine.
        distinct = {id(getattr(one, "opened", one)): one for one in self._engines.values()}
        for engine in distinct.values():
            engine.load_weights(weights())

    def close(self) -> None:
        """Free the memory of the engines; the next question opens them again."""
        # The one that was opened first may own what the other one uses.
        for engine in reversed(self._engines.values()):
            if hasattr(engine, "close"):
                engine.close()
        self._engines.clear()
        gc.collect()

    def answer(self, benchmark: Benchmark) -> Answers:
        """Answer every request of a benchmark.

        Raises:
            DataError: The model can be asked nothing.
        """
        return joined([self._answer(part) for part in parts_of(benchmark)])

    def answer_some(
        self, benchmark: Benchmark, numbers: Sequence[int]
    ) -> dict[int, Answer | Refusal]:
        """Answer some requests of a benchmark.

        Args:
            benchmark: The benchmark.
            numbers: Of the requests, over all of its parts.
        """
        found: dict[int, Answer | Refusal] = {}
        start = 0
        for part in parts_of(benchmark):
            items = part.items()
            own = [number for number in numbers if start <= number < start + len(items)]
            if own:
                within = [number - start for number in own]
                found |= zip(own, self._found(part, within), strict=True)
            start += len(items)
        return found

    def _found(self, part: Benchmark, numbers: Sequence[int]) -> list[Answer | Refusal]:
        answer = written_answers if is_written(part) else likely_answers
        engine = self.engine(writes=is_written(part))
        guide = Guide(part, lambda: self.engine(writes=True))
        return answer(engine, part, part.items(), numbers, guide)

    def _answer(self, part: Benchmark) -> Answers:
        found = self._found(part, range(len(part.items())))
        return self.answers_of(part, found)

    @staticmethod
    def answers_of(benchmark: Benchmark, found: Sequence[Answer | Refusal]) -> Answers:
        """Put the answers to all requests together.

        Raises:
            DataError: The model can be asked nothing.
        """
        refused = {k: one for k, one in enumerate(found) if isinstance(one, Refusal)}
        if len(refused) == len(found):
            why = refused[0]
            raise DataError(
                f"no question of {type(benchmark).__name__} can be put to this model; {why.reason}:"
                f" {why.detail}"
            )
        return Answers(
            texts=[one.text if isinstance(one, Answer) else "" for one in found],
            refused={k: one.reason for k, one in refused.items()},
            cut=[k for k, one in enumerate(found) if isinstance(one, Answer) and one.is_cut],
        )

    def engine(self, *, writes: bool) -> Any:
        """Return the engine that writes, or the one that scores; opens it if need be."""
        if writes in self._engines:
            return self._engines[writes]
        from consomme.curate.perplexity import token_nll
        from consomme.engines.generation.registry import GENERATION_ENGINES
        from consomme.engines.generation.requests import Sampling

        choice = GENERATION_ENGINES.build(self.node, "engine")
        options: dict[str, Any] = {"model_hash": self.model_hash, "template": self.template}
        opened = [one.opened for one in self._engines.values() if hasattr(one, "opened")]
        if opened:
            options["opened"] = opened[0]
        engine: Any
        if writes:
            engine = choice(self.folder, Sampling(), **options)
        else:
            engine = choice.open_scorer(self.folder, token_nll, **options)
        self.run.keep_self_check(engine, self.model_hash)
        if self._weights is not None and not opened:
            engine.load_weights(self._weights())
        self._engines[writes] = engine
        return engine


class AnswerCache:
    """Answers of models by the content of model and benchmark, in the cache of `evaluate`."""

    def __init__(
        self, url: str, template: Mapping[str, Any], engine: Mapping[str, Any] = DEFAULT_ENGINE
    ) -> None:
        """Open the cache.

        Args:
            url: `<root>/cache`.
            template: Options of the models' chat templates.
            engine: Registry node of the engine.
        """
        self._results, self._template = ResultCache(open_store(url), "answers"), dict(template)
        self._engine = engine_identity(engine)

    def get(self, model_hash: str, node: Mapping[str, Any], described: str) -> Answers | None:
        """Return the answers of a model if it was asked before.

        Args:
            model_hash: Of its content.
            node: Of the benchmark.
            described: What `describe` says of it.
        """
        stored = self._results.get(self._key(model_hash, node, described))
        return None if stored is None else Answers.from_dict(stored)

    def put(
        self, model_hash: str, node: Mapping[str, Any], described: str, answers: Answers
    ) -> None:
        """Store answers, unless some are missing for a reason that another try might not have."""
        if not set(answers.refused.values()) & set(PASSING):
            self._results.put(self._key(model_hash, node, described), answers.to_dict())

    def _key(self, model_hash: str, node: Mapping[str, Any], described: str) -> str:
        return result_key(
            model_hash=model_hash,
            benchmark=str(node["name"]),
            benchmark_hash=described,
            decoding={
                "engine": self._engine,
                "temperature": 0,
                "template": self._template,
            },
        )


def answer_folder(
    cache: AnswerCache,
    folder: str,
    model_hash: str,
    nodes: Sequence[Mapping[str, Any]],
    *,
    template: Mapping[str, Any],
    run: RunFolder,
) -> list[Sequence[str]]:
    """Answer benchmarks with a model, if possible from the cache.

    Args:
        cache: Of answers.
        folder: Of the model, on this machine.
        model_hash: Of its content.
        nodes: Registry nodes.
        template: Options of its chat template.
        run: Where the results of self-checks are kept.

    Returns:
        The answers to each, empty where there is none.
    """
    from consomme.evaluate.benchmarks import describe

    answerer = InMemoryAnswerer(folder, model_hash=model_hash, template=template, run=run)
    found = []
    for node in nodes:
        benchmark = BENCHMARKS.build(node)
        described = describe(benchmark)
        answers = cache.get(model_hash, node, described)
        if answers is None:
            answers = answerer.answer(benchmark)
            cache.put(model_hash, node, described, answers)
        found.append(answers.texts)
    return found


def check_needs_no_judge(nodes: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that benchmarks are answered without another model that reads the answers.

    Args:
        nodes: Registry nodes by their key in the recipe.

    Raises:
        RecipeError: One has a judge.
    """
    for key, node in nodes.items():
        parts = parts_of(BENCHMARKS.build(node, key))
        for name in ("judge", "clip_score"):
            if any(getattr(one, name, None) for one in parts):
                raise RecipeError(
                    f"{key}.{name}: found one, but candidates are scored where they are made; leave"
                    " it out, or choose another metric"
                )
