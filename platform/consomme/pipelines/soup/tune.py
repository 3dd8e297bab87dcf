"""Search soups with Ray Tune: what is not known of a candidate becomes a trial."""

from __future__ import annotations

import json
import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from queue import Queue
from typing import Any

from consomme.base.errors import ClusterError, DataError
from consomme.base.telemetry import Progress
from consomme.evaluate.guards import refusal
from consomme.execution.session import num_cpus
from consomme.execution.tune import run_trials
from consomme.pipelines.evaluate.answers import Answers
from consomme.pipelines.soup.candidates import CandidateCache
from consomme.pipelines.soup.racing import CHOICE
from consomme.pipelines.soup.worker import ANSWERS, BEAT, STOPPED, CandidateRunner
from consomme.soup.blends import Candidate, Grouping, from_plain, plain
from consomme.soup.search import SoupResult, SoupSearch
from consomme.storage.ledger.run_folder import RunFolder

logger = logging.getLogger(__name__)

_Asked = tuple[Candidate, tuple[int, ...], Candidate | None]
"""A candidate, the numbers of the benchmarks that it is asked, and what it has to beat to be asked
to the end."""


_AGAINST = "against"
"""Key of a trial: the candidate to beat."""


@dataclass(frozen=True, kw_only=True)
class SearchOutcome:
    """The results of all searches, and the name of the best one."""

    results: Mapping[str, SoupResult]
    best: str
    ignores_guards: bool = False
    """Whether every result lost more than the guards allow, and `otherwise` is `warn`."""


class CandidateSource:
    """Runs searches in a thread and turns what they want to know into trials.

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
            cache: What is known; new answers are added.
        """
        self.is_finished = False
        self.progress: Progress | None = None
        self._num_ingredients, self.cache = num_ingredients, cache
        self._requests: Queue[list[_Asked] | None] = Queue()
        """Candidates to ask, as many at a time as can be asked in parallel; None at the end."""

        self._waiting: deque[_Asked] = deque()
        self._num_running = 0
        self._answered: dict[_Asked, Future[None]] = {}
        self._outcome: Future[SearchOutcome] = Future()
        threading.Thread(target=self._search, args=(searches,), daemon=True).start()

    def ask(self) -> dict[str, Any] | None:
        """Return the next candidate; wait for the searches if no candidate is being scored."""
        while not self.is_finished and not self._requests.empty():
            self._receive()
        if not (self._waiting or self._num_running or self.is_finished):
            self._receive()
        if not self._waiting:
            return None
        candidate, numbers, beat = self._waiting.popleft()
        self._num_running += 1
        config = {**plain(candidate), "numbers": list(numbers)}
        if beat is not None:
            config |= {_AGAINST: plain(beat), BEAT: self.cache.scores_to_beat(beat)}
        return config

    def _receive(self) -> None:
        asked = self._requests.get()
        self.is_finished = asked is None
        self._waiting += asked or []

    def tell(self, config: dict[str, Any], result: Mapping[str, Any] | None) -> None:
        """Pass the answers of a candidate to the search that waits for them."""
        self._num_running -= 1
        candidate = from_plain(config)
        beat = from_plain(config[_AGAINST]) if _AGAINST in config else None
        asked = (candidate, tuple(config["numbers"]), beat)
        if result is not None and STOPPED in result:
            first = json.loads(result[STOPPED])
            self.cache.put_first(candidate, first["num_questions"], first["texts"])
            self._is_done(asked)
            return
        if result is None or ANSWERS not in result:
            failure = ClusterError(f"asking candidate {candidate} failed")
            self._answered[asked].set_exception(failure)
            return
        answers = json.loads(result[ANSWERS])
        self.cache.put(
            candidate, {int(number): Answers.from_dict(given) for number, given in answers.items()}
        )
        self._is_done(asked)

    def _is_done(self, asked: _Asked) -> None:
        if self.progress is not None:
            self.progress.advance()
        self._answered[asked].set_result(None)

    def outcome(self) -> SearchOutcome:
        """Return the result of every search.

        Raises:
            ClusterError: A trial failed, or Ray Tune ended before the searches did.
            DataError: Every result lost more than the guards allow.
        """
        wait([self._outcome], timeout=5)
        if not self._outcome.done():
            raise ClusterError("Ray Tune ended before the search did; run the same command again")
        return self._outcome.result()

    def _search(self, searches: Mapping[str, SoupSearch]) -> None:
        try:
            outcome = self._searched(searches)
            singles = [one.best_single for one in outcome.results.values() if one.best_single]
            reported: list[Candidate] = [one.soup for one in outcome.results.values()]
            reported += [(number,) for number, _ in singles]
            self._ask([(one, self.cache.reporting) for one in reported])
            self._outcome.set_result(outcome)
        except BaseException as error:  # noqa: BLE001 - raised again by `outcome`
            self._outcome.set_exception(error)
        self._requests.put(None)

    def _searched(self, searches: Mapping[str, SoupSearch]) -> SearchOutcome:
        """Run the searches; without regard to guards if nothing else can be chosen.

        Raises:
            DataError: Nothing passes, and a guard refuses that.
        """
        cache, count = self.cache, self._num_ingredients
        score = AskedScores(self, cache.guarded_score)
        results = {name: search(count, score) for name, search in searches.items()}
        best = max(results, key=lambda name: results[name].score)
        if cache.passes(results[best].soup):
            return SearchOutcome(results=results, best=best)
        score = AskedScores(self, cache.score)
        results = {name: search(count, score) for name, search in searches.items()}
        best = max(results, key=lambda name: results[name].score)
        findings = cache.findings(results[best].soup)
        if problem := refusal(cache.guards, [one.plain() for one in findings]):
            raise DataError(problem)
        for finding in findings:
            logger.warning("soup: no candidate passes: %s", finding.line)
        return SearchOutcome(results=results, best=best, ignores_guards=True)

    def measure_ahead(self, candidates: Sequence[Candidate], beat: Candidate | None = None) -> None:
        """Have candidates answer what chooses, and do not wait for them."""
        if beat is not None:
            # Here, where an error ends the search, and not where a trial is asked for.
            self.cache.scores_to_beat(beat)
            candidates = [one for one in candidates if not self.cache.stopped(one, beat)]
        self._ask([(one, self.cache.choosing) for one in candidates], needed=(), beat=beat)

    def measure(self, candidate: Candidate, beat: Candidate | None = None) -> bool:
        """Have a candidate answer what chooses; with the first single, all of them and the base.

        Args:
            candidate: The candidate.
            beat: What it has to beat to be asked to the end; None: it is.

        Returns:
            Whether it was asked to the end.
        """
        if beat is not None:
            self.cache.scores_to_beat(beat)
            if self.cache.stopped(candidate, beat):
                return False
            self._ask([(candidate, self.cache.choosing)], beat=beat)
            return not self.cache.stopped(candidate, beat)
        choosing, base = self.cache.choosing, self.cache.base
        is_single = isinstance(candidate, tuple) and len(candidate) == 1
        singles = [(k,) for k in range(self._num_ingredients)] if is_single else []
        wanted: list[tuple[Candidate, Sequence[int]]] = [
            (one, choosing) for one in dict.fromkeys([candidate, *singles])
        ]
        if base is not None:
            wanted.append((base, choosing[1:]))
        self._ask(wanted, needed=(candidate, base))
        return True

    def _ask(
        self,
        wanted: Iterable[tuple[Candidate, Sequence[int]]],
        needed: Sequence[Candidate | None] | None = None,
        beat: Candidate | None = None,
    ) -> None:
        """Have candidates answer what they have not answered yet, in parallel.

        Args:
            wanted: Candidates, and the numbers of benchmarks.
            needed: Those to wait for; None waits for all.
            beat: What they have to beat to be asked to the end.
        """
        asked = [
            (candidate, tuple(missing), beat if CHOICE in missing else None)
            for candidate, numbers in dict.fromkeys((one, tuple(n)) for one, n in wanted)
            if (missing := self.cache.missing(candidate, numbers))
        ]
        new = [one for one in asked if one not in self._answered]
        if new:
            self._answered |= {one: Future() for one in new}
            self._requests.put(new)
        for one in asked:
            if needed is None or one[0] in needed:
                self._answered[one].result()


@dataclass(frozen=True)
class AskedScores:
    """The score of a candidate, which is asked when it is needed or before; see `CachedScores`."""

    source: CandidateSource
    score: Callable[[Candidate], float]

    def __call__(self, candidate: Candidate, beat: Candidate | None = None) -> float:
        """Return the score of a candidate; waits until it has answered."""
        return self.score(candidate) if self.source.measure(candidate, beat) else -math.inf

    def ahead(self, candidates: Sequence[Candidate], beat: Candidate | None = None) -> None:
        """Have candidates answer at the same time."""
        self.source.measure_ahead(candidates, beat)

    @property
    def can_stop(self) -> bool:
        """Whether candidates that are hopeless are asked no more."""
        return self.source.cache.early_stop is not None

    def worth(self, candidate: Candidate) -> float:
        """Return a finite score."""
        return self.source.cache.worth(candidate)

    def objectives(self, candidate: Candidate) -> tuple[float, ...]:
        """Return what is to be as high as possible."""
        return self.source.cache.objectives(candidate)

    def num_groups(self, grouping: Grouping) -> int:
        """Return how many groups of tensors may have shares of their own."""
        return len(self.source.cache.groups[grouping].names)


def tune_searches(
    searches: Mapping[str, SoupSearch],
    models: Mapping[str, str],
    cache: CandidateCache,
    num_actors: int | None,
    run_folder: RunFolder,
    base: str | None = None,
    how: Mapping[str, Any] | None = None,
) -> SearchOutcome:
    """Run the searches, one after the other, with Ray Tune scoring their candidates.

    Args:
        searches: The strategies by name.
        models: The ingredients by label, as `model_folder` takes them on any machine.
        cache: What is known already; knows the benchmarks.
        num_actors: Maximum number of candidates scored at the same time; None takes one per GPU,
            or one per CPU with transformers, else one.
        run_folder: Of the run.
        base: The model that guards compare with and differences are taken from, as `models`.
        how: The `method` (registry node) and `dtype` of mixed weights; None: averages.

    Raises:
        Exception: What a trial raised, such as a CheckpointError of an ingredient.
        DataError: Every candidate lost more than the guards allow.
        ClusterError: A trial failed for a reason that is not the recipe's.
    """
    import ray

    from consomme.evaluate.benchmarks import portable_node

    source = CandidateSource(searches, len(models), cache)
    first, errors = source.ask(), []
    if first is not None:
        num_gpus = int(ray.cluster_resources().get("GPU", 0))
        num_small = num_cpus() if cache.engine["name"] == "transformers" else 1
        with Progress(None, "soup", "candidates") as progress:
            source.progress = progress
            errors = run_trials(
                source,
                first,
                CandidateRunner,
                {
                    "models": dict(models),
                    "benchmarks": [portable_node(node) for node in cache.nodes],
                    "model_hash": cache.ingredient_hashes[0],
                    "run_folder": run_folder,
                    "base": base,
                    "base_hash": cache.base_hash,
                    "groups": cache.groups,
                    "early_stop": cache.early_stop,
                    "engine": cache.engine,
                    **(how or {}),
                },
                resources={"CPU": 0.9, "GPU": 1.0 if num_gpus else 0.0},
                max_concurrent=num_actors or num_gpus or num_small,
            )
        # `outcome` only knows that a trial failed; trying again cannot help against these.
        for error in errors:
            if not isinstance(error, ClusterError):
                raise error
    try:
        return source.outcome()
    except ClusterError:
        for error in errors:
            raise error from None
        raise
