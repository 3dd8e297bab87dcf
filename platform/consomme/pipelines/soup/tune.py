"""Search soups with Ray Tune: candidates are mixed and evaluated in place, by content cached."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import Queue
from typing import Any

from consomme.base.errors import ClusterError
from consomme.base.telemetry import Progress
from consomme.evaluate.cache import ResultCache, result_key, soup_content_hash
from consomme.execution.session import num_cpus
from consomme.soup.ingredients import open_ingredient
from consomme.soup.search import SoupResult, SoupSearch
from consomme.storage.stores.store import Store

Members = tuple[int, ...]


class CandidateCache:
    """Scores of candidates, kept by the content of their ingredients and of the benchmark."""

    def __init__(self, store: Store, prints: list[str], benchmark: Mapping[str, Any]) -> None:
        """Remember what the keys are made of."""
        from consomme.evaluate.benchmarks import BENCHMARKS, describe

        self.results, self.prints = ResultCache(store, "soups"), prints
        self.name = str(benchmark["name"])
        self.benchmark = describe(BENCHMARKS.build(benchmark))
        self.known: dict[Members, float] = {}
        self.num_scored = 0

    def _key(self, members: Members) -> str:
        shares = [1 / len(members)] * len(members)
        return result_key(
            model_hash=soup_content_hash([self.prints[k] for k in members], shares),
            benchmark=self.name,
            benchmark_hash=self.benchmark,
            decoding={"engine": "transformers", "temperature": 0},
        )

    def get(self, members: Members) -> float | None:
        """Score of a candidate, if it was scored before, by this run or another."""
        if members not in self.known:
            found = self.results.get(self._key(members))
            if found is not None:
                self.known[members] = float(found["score"])
        return self.known.get(members)

    def put(self, members: Members, score: float) -> None:
        """Keep a new score."""
        self.known[members] = score
        self.num_scored += 1
        self.results.put(self._key(members), {"score": score})


def tune_searches(
    searches: Mapping[str, SoupSearch],
    folders: list[str],
    benchmark: Mapping[str, Any],
    cache: CandidateCache,
    num_actors: int | None,
) -> dict[str, SoupResult]:
    """Let Ray Tune score what the searches ask for, one search after the other.

    A search is plain code that calls `score(members)`; it runs in a thread, and what it asks for
    becomes Tune's next trial. Singles are asked for ahead, so they are scored side by side.

    Args:
        searches: The strategies by name.
        folders: The ingredients' folders.
        benchmark: Registry node of the held-out set.
        cache: Scores that are known already.
        num_actors: Trials at once.

    Raises:
        ClusterError: A trial failed for a reason that is not the recipe's.
    """
    import ray
    from ray import tune

    asked: Queue[Members | None] = Queue()
    answers: dict[Members, Queue[Any]] = {}
    outcome: list[dict[str, SoupResult] | BaseException] = []

    def score(members: Members) -> float:
        found = cache.get(members)
        if found is not None:
            return found
        alone = [(k,) for k in range(len(folders))] if len(members) == 1 else []
        for wanted in [members, *alone]:
            if wanted not in answers and cache.get(wanted) is None:
                answers[wanted] = Queue()
                asked.put(wanted)
        value = answers[members].get()
        if isinstance(value, BaseException):
            raise value
        return float(value)

    def think() -> None:
        try:
            outcome.append({n: search(len(folders), score) for n, search in searches.items()})
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread below
            outcome.append(error)
        asked.put(None)

    thread = threading.Thread(target=think, daemon=True)
    thread.start()
    first = asked.get()
    if first is not None:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        trainable = tune.with_resources(
            tune.with_parameters(
                _candidate_trainable(), folders=folders, benchmark=dict(benchmark)
            ),
            {"CPU": 0.9, "GPU": 1.0 if gpus else 0.0},
        )
        limit = num_actors or gpus or num_cpus()
        with Progress(None, "soup", "candidates") as progress:

            def keep(members: Members, value: float) -> None:
                cache.put(members, value)
                progress.advance()

            searcher = _make_searcher(first, asked, answers, keep)
            tuner = tune.Tuner(
                trainable,
                tune_config=tune.TuneConfig(
                    metric="score",
                    mode="max",
                    search_alg=searcher,
                    num_samples=-1,
                    max_concurrent_trials=limit,
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(verbose=0, storage_path=_scratch()),
            )
            tuner.fit()
    thread.join(timeout=5)
    if not outcome:
        raise ClusterError("Ray Tune ended before the search did; run the same command again")
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def _scratch() -> str:
    import tempfile

    return tempfile.mkdtemp(prefix="consomme-tune-")


def _make_searcher(
    first: Members,
    asked: Queue[Members | None],
    answers: dict[Members, Queue[Any]],
    keep: Callable[[Members, float], None],
) -> Any:
    from ray.tune.search import Searcher

    class AskTell(Searcher):  # type: ignore[misc]
        """Hands the search's questions to Tune and Tune's results to the search."""

        def __init__(
            self,
            asked: Queue[Members | None],
            answers: dict[Members, Queue[Any]],
            keep: Callable[[Members, float], None],
        ) -> None:
            super().__init__(metric="score", mode="max")
            self.asked, self.answers, self.keep = asked, answers, keep
            self.waiting: list[Members | None] = [first]
            self.running: dict[str, Members] = {}

        def __getstate__(self) -> dict[str, Any]:
            """Tune pickles searchers to restore them; ours resumes from its cache of scores."""
            return {}

        def suggest(self, trial_id: str) -> Any:
            while not self.asked.empty():
                self.waiting.append(self.asked.get())
            if not self.waiting:
                if self.running:
                    return None
                self.waiting.append(self.asked.get())
            item = self.waiting.pop(0)
            if item is None:
                return Searcher.FINISHED
            self.running[trial_id] = item
            return {"members": list(item)}

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            members = self.running.pop(trial_id)
            if error or not result or "score" not in result:
                failure = ClusterError(f"scoring {members} failed; see the worker's log")
                self.answers[members].put(failure)
                return
            self.keep(members, float(result["score"]))
            self.answers[members].put(float(result["score"]))

        def save(self, checkpoint_path: str) -> None:
            Path(checkpoint_path).write_text("{}")

        def restore(self, checkpoint_path: str) -> None:
            Path(checkpoint_path).read_text()

    return AskTell(asked, answers, keep)


def _candidate_trainable() -> Any:
    from ray import tune

    class Candidate(tune.Trainable):  # type: ignore[misc]
        """Scores one candidate soup per trial; the engine stays loaded between trials."""

        def setup(self, config: dict[str, Any], folders: Any = None, benchmark: Any = None) -> None:
            from consomme.engines.generation.transformers import TransformersEngine
            from consomme.evaluate.benchmarks import BENCHMARKS

            self.engine = TransformersEngine(folders[0], dtype="float32")
            self.ingredients = [open_ingredient(folder, folder) for folder in folders]
            self.benchmark = BENCHMARKS.build(benchmark)
            self.members = config["members"]

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.members = new_config["members"]
            return True

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
            """Nothing to keep: a candidate is its members."""
            return {"members": list(self.members)}

        def load_checkpoint(self, checkpoint: Any) -> None:
            self.members = checkpoint["members"]

        def step(self) -> dict[str, Any]:
            from consomme.soup.mixing import average_ingredients

            chosen = [self.ingredients[k] for k in self.members]
            self.engine.load_weights(dict(average_ingredients(chosen)))
            items = self.benchmark.items()
            answers = self.engine.answer(
                [item.image for item in items],
                [item.prompt for item in items],
                self.benchmark.max_tokens,
            )
            figures = self.benchmark.measure(answers)
            return {"score": next(iter(figures.values())), "done": True}

    return Candidate
