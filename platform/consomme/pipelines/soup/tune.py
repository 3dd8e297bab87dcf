"""Search soups with Ray Tune: every new candidate becomes a trial; scores are cached by content."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from queue import Queue
from typing import Any

from consomme.base.errors import EXIT_USER, ClusterError, ConsommeError
from consomme.base.telemetry import Progress
from consomme.evaluate.cache import ResultCache, result_key, soup_content_hash
from consomme.execution.session import num_cpus
from consomme.execution.tune import run_trials
from consomme.pipelines.soup.worker import SCORE, CandidateRunner
from consomme.soup.search import SoupResult, SoupSearch
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.stores.store import Store

Selection = tuple[int, ...]
"""A candidate soup: indices of its ingredients, ascending."""


class CandidateCache:
    """Scores of candidates, stored under the content of their ingredients and the benchmark."""

    def __init__(
        self, store: Store, ingredient_hashes: Sequence[str], benchmark: Mapping[str, Any]
    ) -> None:
        """Open the cache.

        Args:
            store: Where results of all runs are cached.
            ingredient_hashes: Content hash of each ingredient.
            benchmark: Registry node of the held-out set.
        """
        from consomme.evaluate.benchmarks import BENCHMARKS, describe

        self.results, self.ingredient_hashes = ResultCache(store, "soups"), ingredient_hashes
        self.benchmark_name = str(benchmark["name"])
        self.benchmark_hash = describe(BENCHMARKS.build(benchmark))
        self.scores: dict[Selection, float] = {}
        self.num_scored = 0

    def _key(self, selection: Selection) -> str:
        shares = [1 / len(selection)] * len(selection)
        return result_key(
            model_hash=soup_content_hash([self.ingredient_hashes[k] for k in selection], shares),
            benchmark=self.benchmark_name,
            benchmark_hash=self.benchmark_hash,
            decoding={"engine": "transformers", "temperature": 0, "template": {}},
        )

    def get(self, selection: Selection) -> float | None:
        """Return the score of a candidate if this run or another one has scored it."""
        if selection not in self.scores:
            stored = self.results.get(self._key(selection))
            if stored is not None:
                self.scores[selection] = float(stored["score"])
        return self.scores.get(selection)

    def put(self, selection: Selection, score: float) -> None:
        """Store a new score."""
        self.scores[selection] = score
        self.num_scored += 1
        self.results.put(self._key(selection), {"score": score})


class CandidateSource:
    """Runs searches in a thread and turns what they want scored into trials.

    A search is plain code that calls `score(selection)`, which blocks until the score is there. The
    first request for a single ingredient requests all of them, so they are scored in parallel.
    """

    def __init__(
        self, searches: Mapping[str, SoupSearch], num_ingredients: int, cache: CandidateCache
    ) -> None:
        """Start the searches, one after the other.

        Args:
            searches: The strategies by name.
            num_ingredients: How many there are to choose from.
            cache: Known scores; new ones are added.
        """
        self.is_finished = False
        self.progress: Progress | None = None
        self._num_ingredients, self._cache = num_ingredients, cache
        self._requests: Queue[list[Selection] | None] = Queue()
        """Candidates to score, as many at a time as can be scored in parallel; None at the end."""

        self._waiting: deque[Selection] = deque()
        self._num_running = 0
        self._scores: dict[Selection, Future[float]] = {}
        self._results: Future[dict[str, SoupResult]] = Future()
        threading.Thread(target=self._search, args=(searches,), daemon=True).start()

    def ask(self) -> dict[str, Any] | None:
        """Return the next candidate; wait for the searches if no candidate is being scored."""
        while not self.is_finished and not self._requests.empty():
            self._receive()
        if not (self._waiting or self._num_running or self.is_finished):
            self._receive()
        if not self._waiting:
            return None
        selection = self._waiting.popleft()
        self._num_running += 1
        return {"selection": list(selection)}

    def _receive(self) -> None:
        selections = self._requests.get()
        self.is_finished = selections is None
        self._waiting += selections or []

    def tell(self, config: dict[str, Any], result: Mapping[str, Any] | None) -> None:
        """Pass the score of a candidate to the search that waits for it."""
        self._num_running -= 1
        selection = tuple(config["selection"])
        if result is None or SCORE not in result:
            failure = ClusterError(f"scoring {selection} failed; see the worker's log")
            self._scores[selection].set_exception(failure)
            return
        self._cache.put(selection, float(result[SCORE]))
        if self.progress is not None:
            self.progress.advance()
        self._scores[selection].set_result(float(result[SCORE]))

    def results(self) -> dict[str, SoupResult]:
        """Return the result of every search.

        Raises:
            ClusterError: A trial failed, or Ray Tune ended before the searches did.
        """
        wait([self._results], timeout=5)
        if not self._results.done():
            raise ClusterError("Ray Tune ended before the search did; run the same command again")
        return self._results.result()

    def _search(self, searches: Mapping[str, SoupSearch]) -> None:
        try:
            count = self._num_ingredients
            self._results.set_result({n: s(count, self._score) for n, s in searches.items()})
        except BaseException as error:  # noqa: BLE001 - raised again by `results`
            self._results.set_exception(error)
        self._requests.put(None)

    def _score(self, selection: Selection) -> float:
        known = self._cache.get(selection)
        if known is not None:
            return known
        singles = [(k,) for k in range(self._num_ingredients)] if len(selection) == 1 else []
        requests = [
            request
            for request in dict.fromkeys([selection, *singles])
            if request not in self._scores and self._cache.get(request) is None
        ]
        if requests:
            self._scores |= {request: Future() for request in requests}
            self._requests.put(requests)
        return self._scores[selection].result()


def tune_searches(
    searches: Mapping[str, SoupSearch],
    models: Sequence[str],
    benchmark: Mapping[str, Any],
    cache: CandidateCache,
    num_actors: int | None,
    run_folder: RunFolder,
) -> dict[str, SoupResult]:
    """Run the searches, one after the other, with Ray Tune scoring their candidates.

    Args:
        searches: The strategies by name.
        models: The ingredients, as `model_folder` takes them on any machine.
        benchmark: Registry node of the held-out set.
        cache: Scores that are known already.
        num_actors: Maximum number of candidates scored at the same time; None takes one per GPU,
            or one per CPU.
        run_folder: Of the run.

    Raises:
        CheckpointError: An ingredient is unsuitable, as a trial found.
        ClusterError: A trial failed for a reason that is not the recipe's.
    """
    import ray

    from consomme.evaluate.benchmarks import portable_node

    source = CandidateSource(searches, len(models), cache)
    first = source.ask()
    if first is not None:
        num_gpus = int(ray.cluster_resources().get("GPU", 0))
        with Progress(None, "soup", "candidates") as progress:
            source.progress = progress
            errors = run_trials(
                source,
                first,
                CandidateRunner,
                {
                    "models": list(models),
                    "benchmark": portable_node(benchmark),
                    "model_hash": cache.ingredient_hashes[0],
                    "run_folder": run_folder,
                },
                resources={"CPU": 0.9, "GPU": 1.0 if num_gpus else 0.0},
                max_concurrent=num_actors or num_gpus or num_cpus(),
            )
        # `results` only knows that a trial failed; trying again cannot help against these.
        for error in errors:
            if isinstance(error, ConsommeError) and error.exit_code == EXIT_USER:
                raise error
    return source.results()
