"""What is known of the candidates of a soup: their answers, cached by content, and their scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from consomme.evaluate.benchmark import Benchmark, main_figure
from consomme.evaluate.cache import soup_content_hash
from consomme.evaluate.guards import Guard, GuardFinding, judge_guard
from consomme.evaluate.names import benchmark_name
from consomme.pipelines.evaluate.answers import Answers
from consomme.pipelines.evaluate.in_memory import AnswerCache

Selection = tuple[int, ...]
"""A candidate soup: indices of its ingredients, ascending. The index after the last ingredient,
alone, is the base that guards compare with."""

CHOICE = 0
"""Number of the benchmark that chooses."""


class CandidateCache:
    """Answers of candidates, stored under the content of their ingredients and the benchmark.

    Benchmarks have numbers: `CHOICE`, then one for each guard, then those that only report.
    """

    def __init__(
        self,
        cache_url: str,
        ingredient_hashes: Sequence[str],
        benchmark: Mapping[str, Any],
        *,
        guards: Sequence[Guard] = (),
        report: Sequence[Mapping[str, Any]] = (),
        base_hash: str | None = None,
        shares_answers: Sequence[bool] | None = None,
        method: Sequence[Any] = (),
    ) -> None:
        """Open the cache.

        Args:
            cache_url: Where answers of all runs are cached.
            ingredient_hashes: Content hash of each ingredient.
            benchmark: Registry node of the benchmark that chooses.
            guards: What soups may not lose.
            report: Registry nodes of benchmarks that report.
            base_hash: Content hash of the model that guards compare with.
            shares_answers: Whether each ingredient alone answers as `evaluate` has it answer, so
                that both may share its answers. It does if it differs from the first one, in whose
                engine candidates answer, in nothing but its weights. None: all do.
            method: What else decides how candidates are mixed; nothing for an average.
        """
        self._method = method
        self._cache, self.ingredient_hashes = AnswerCache(cache_url, {}), ingredient_hashes
        self.guards, self.base_hash = tuple(guards), base_hash
        self.nodes = [benchmark, *(guard.benchmark for guard in guards), *report]
        self.num_choosing = 1 + len(self.guards)
        self._shares = shares_answers or [True] * len(ingredient_hashes)
        self._answers: dict[tuple[Selection, int], Answers] = {}
        self._scores: dict[Selection, float] = {}
        self._findings: dict[Selection, list[GuardFinding]] = {}
        self.num_scored = 0

    @property
    def choosing(self) -> list[int]:
        """Numbers of the benchmarks that choose: the first one, and guards."""
        return list(range(self.num_choosing))

    @property
    def reporting(self) -> list[int]:
        """Numbers of the benchmarks that only report."""
        return list(range(self.num_choosing, len(self.nodes)))

    @property
    def base(self) -> Selection | None:
        """The base as a selection of its own."""
        return None if self.base_hash is None else (len(self.ingredient_hashes),)

    @cached_property
    def benchmarks(self) -> list[Benchmark]:
        """The benchmarks by number."""
        from consomme.evaluate.benchmarks import BENCHMARKS

        return [BENCHMARKS.build(node) for node in self.nodes]

    @cached_property
    def _described(self) -> list[str]:
        from consomme.evaluate.benchmarks import describe

        return [describe(one) for one in self.benchmarks]

    def name(self, number: int) -> str:
        """Return a benchmark's name in tables."""
        return benchmark_name(self.nodes[number])

    def _model(self, selection: Selection) -> str:
        """Return the hash of a candidate's content."""
        if selection == self.base:
            assert self.base_hash is not None
            return self.base_hash
        # Other methods change a model that is mixed alone, too.
        if len(selection) == 1 and self._shares[selection[0]] and not self._method:
            return self.ingredient_hashes[selection[0]]
        shares = [1 / len(selection)] * len(selection)
        hashes = [self.ingredient_hashes[k] for k in selection]
        return soup_content_hash(hashes, shares, self._method)

    def get(self, selection: Selection, number: int) -> Answers | None:
        """Return the answers of a candidate if this run or another one has asked it."""
        if (selection, number) not in self._answers:
            stored = self._cache.get(
                self._model(selection), self.nodes[number], self._described[number]
            )
            if stored is not None:
                self._answers[selection, number] = stored
        return self._answers.get((selection, number))

    def missing(self, selection: Selection, numbers: Sequence[int]) -> list[int]:
        """Return those of some benchmarks that a candidate has not answered."""
        return [number for number in numbers if self.get(selection, number) is None]

    def put(self, selection: Selection, answers: Mapping[int, Answers]) -> None:
        """Store new answers, by the number of their benchmark."""
        self.num_scored += CHOICE in answers
        # At once: the searches look from another thread.
        self._answers |= {(selection, number): given for number, given in answers.items()}
        for number, given in answers.items():
            self._cache.put(
                self._model(selection), self.nodes[number], self._described[number], given
            )

    def figures(self, selection: Selection, number: int) -> dict[str, float]:
        """Return the figures of a candidate that has answered."""
        return self.benchmarks[number].measure(self._answered(selection, number))

    @property
    def main_figures(self) -> dict[str, str]:
        """Name of the main figure of each benchmark that only reports."""
        return {self.name(k): main_figure(self.benchmarks[k]) for k in self.reporting}

    def score(self, selection: Selection) -> float:
        """Return the main figure of a candidate that has answered."""
        if selection not in self._scores:
            self._scores[selection] = next(iter(self.figures(selection, CHOICE).values()))
        return self._scores[selection]

    def findings(self, selection: Selection) -> list[GuardFinding]:
        """Return what a candidate has kept of each guard's benchmark."""
        if selection not in self._findings:
            base = self.base
            assert base is not None or not self.guards
            self._findings[selection] = [
                judge_guard(
                    guard,
                    self.name(number),
                    self._answered(base or (), number),
                    self._answered(selection, number),
                    self.benchmarks[number],
                )
                for number, guard in enumerate(self.guards, 1)
            ]
        return self._findings[selection]

    def passes(self, selection: Selection) -> bool:
        """Whether a candidate has lost no more than the guards allow."""
        return all(finding.passes for finding in self.findings(selection))

    def guarded_score(self, selection: Selection) -> float:
        """Return the score of a candidate; minus infinity if it has lost too much."""
        return self.score(selection) if self.passes(selection) else -math.inf

    def _answered(self, selection: Selection, number: int) -> Sequence[str]:
        found = self.get(selection, number)
        assert found is not None, f"{selection} has not answered benchmark {number}"
        return found.texts
