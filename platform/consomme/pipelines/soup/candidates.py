"""What is known of the candidates of a soup: their answers, cached by content, and their scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from consomme.evaluate.benchmark import Benchmark, main_figure
from consomme.evaluate.cache import soup_content_hash
from consomme.evaluate.early_stop import EarlyStop
from consomme.evaluate.engine_rules import DEFAULT_ENGINE
from consomme.evaluate.guards import Guard, GuardFinding, judge_guard
from consomme.evaluate.names import benchmark_name
from consomme.pipelines.evaluate.answers import Answers
from consomme.pipelines.evaluate.in_memory import AnswerCache
from consomme.pipelines.soup.racing import CHOICE, Race, Stopped
from consomme.soup.blends import Blend, Candidate, Grouping, TensorGroups


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
        groups: Mapping[Grouping, TensorGroups] | None = None,
        early_stop: EarlyStop | None = None,
        engine: Mapping[str, Any] = DEFAULT_ENGINE,
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
            groups: What the groupings of blends mean for these models.
            early_stop: When a candidate is asked no more; None: never.
            engine: Registry node of the engine that answers.
        """
        self.engine = dict(engine)
        self.early_stop = early_stop
        self._stopped: dict[Candidate, tuple[Stopped, Candidate]] = {}
        """What was not asked to the end, and what it had to beat."""

        self._to_beat: dict[Candidate, list[float]] = {}
        self._first: dict[Candidate, dict[int, Answers]] = {}
        """Answers to the first questions, by how many these are."""

        self._method, self.groups = method, dict(groups or {})
        self._cache, self.ingredient_hashes = AnswerCache(cache_url, {}, engine), ingredient_hashes
        self.guards, self.base_hash = tuple(guards), base_hash
        self.nodes = [benchmark, *(guard.benchmark for guard in guards), *report]
        self.num_choosing = 1 + len(self.guards)
        self._shares = shares_answers or [True] * len(ingredient_hashes)
        self._answers: dict[tuple[Candidate, int], Answers] = {}
        self._scores: dict[Candidate, float] = {}
        self._findings: dict[Candidate, list[GuardFinding]] = {}
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
    def base(self) -> Candidate | None:
        """The base that guards compare with: a selection of the index after the last one."""
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

    def _model(self, candidate: Candidate) -> str:
        """Return the hash of a candidate's content."""
        if candidate == self.base:
            assert self.base_hash is not None
            return self.base_hash
        if isinstance(candidate, Blend):
            return self._blended(candidate)
        # Other methods change a model that is mixed alone, too.
        if len(candidate) == 1 and self._shares[candidate[0]] and not self._method:
            return self.ingredient_hashes[candidate[0]]
        shares = [1 / len(candidate)] * len(candidate)
        hashes = [self.ingredient_hashes[k] for k in candidate]
        return soup_content_hash(hashes, shares, self._method)

    def _blended(self, candidate: Blend) -> str:
        """Return the hash of a blend's content."""
        shares_GN = candidate.shares()
        if len(shares_GN) == 1:
            return soup_content_hash(self.ingredient_hashes, shares_GN[0], self._method)
        groups = ["groups", self.groups[candidate.grouping].version]
        shares_NG = list(zip(*shares_GN, strict=True))
        return soup_content_hash(self.ingredient_hashes, shares_NG, [*self._method, *groups])

    def get(self, candidate: Candidate, number: int) -> Answers | None:
        """Return the answers of a candidate if this run or another one has asked it."""
        if (candidate, number) not in self._answers:
            stored = self._cache.get(
                self._model(candidate), self.nodes[number], self._described[number]
            )
            if stored is not None:
                self._answers[candidate, number] = stored
        return self._answers.get((candidate, number))

    def missing(self, candidate: Candidate, numbers: Sequence[int]) -> list[int]:
        """Return those of some benchmarks that a candidate has not answered."""
        return [number for number in numbers if self.get(candidate, number) is None]

    def put(self, candidate: Candidate, answers: Mapping[int, Answers]) -> None:
        """Store new answers, by the number of their benchmark."""
        self.num_scored += CHOICE in answers
        # At once: the searches look from another thread.
        self._answers |= {(candidate, number): given for number, given in answers.items()}
        for number, given in answers.items():
            self._cache.put(
                self._model(candidate), self.nodes[number], self._described[number], given
            )

    def figures(self, candidate: Candidate, number: int) -> dict[str, float]:
        """Return the figures of a candidate that has answered."""
        return self.benchmarks[number].measure(self._answered(candidate, number))

    @property
    def main_figures(self) -> dict[str, str]:
        """Name of the main figure of each benchmark that only reports."""
        return {self.name(k): main_figure(self.benchmarks[k]) for k in self.reporting}

    def score(self, candidate: Candidate) -> float:
        """Return the main figure of a candidate that has answered."""
        if candidate not in self._scores:
            self._scores[candidate] = next(iter(self.figures(candidate, CHOICE).values()))
        return self._scores[candidate]

    def findings(self, candidate: Candidate) -> list[GuardFinding]:
        """Return what a candidate has kept of each guard's benchmark."""
        if candidate not in self._findings:
            base = self.base
            assert base is not None or not self.guards
            self._findings[candidate] = [
                judge_guard(
                    guard,
                    self.name(number),
                    self._answered(base or (), number),
                    self._answered(candidate, number),
                    self.benchmarks[number],
                )
                for number, guard in enumerate(self.guards, 1)
            ]
        return self._findings[candidate]

    def passes(self, candidate: Candidate) -> bool:
        """Whether a candidate has lost no more than the guards allow."""
        return all(finding.passes for finding in self.findings(candidate))

    @cached_property
    def objective_names(self) -> tuple[str, ...]:
        """Names of what is to be as high as possible.

        The main figure of the benchmark that chooses, or of each of its parts if it is `weighted`;
        and that of each guard's.
        """
        parts = self.nodes[CHOICE].get("parts")
        nodes = [part["benchmark"] for part in parts] if parts else [self.nodes[CHOICE]]
        names = [*map(benchmark_name, nodes), *(self.name(k) for k in self.choosing[1:])]
        return tuple(
            f"{name} ({k})" if names.count(name) > 1 else name for k, name in enumerate(names)
        )

    def objectives(self, candidate: Candidate) -> tuple[float, ...]:
        """Return the figures of a candidate that has answered; see `objective_names`."""
        figures = self.figures(candidate, CHOICE)
        num_parts = len(self.objective_names) - len(self.guards)
        if num_parts == 1:
            found = [self.score(candidate)]
        else:
            # Figures of a part are named `PART/FIGURE`, the main one first.
            firsts = ((k, name) for k in range(num_parts) for name in figures)
            mains: dict[int, float] = {}
            for k, name in firsts:
                if name.startswith(f"{k}/"):
                    mains.setdefault(k, figures[name])
            found = [mains[k] for k in range(num_parts)]
        for number in self.choosing[1:]:
            found.append(next(iter(self.figures(candidate, number).values())))
        return tuple(found)

    @cached_property
    def race(self) -> Race:
        """Compares candidates question by question."""
        assert self.early_stop is not None
        return Race(self.benchmarks[CHOICE], self.early_stop)

    def scores_to_beat(self, candidate: Candidate) -> list[float]:
        """Return the weighted score of each question of a candidate that has answered.

        Raises:
            RecipeError: The main figure is not their mean.
        """
        if candidate not in self._to_beat:
            answers, questions = self._answered(candidate, CHOICE), self.race.questions
            questions.check(self.benchmarks[CHOICE], answers, self.score(candidate))
            self._to_beat[candidate] = questions.scores(self.benchmarks[CHOICE], answers)
        return self._to_beat[candidate]

    def put_first(self, candidate: Candidate, num_questions: int, texts: Sequence[str]) -> None:
        """Store the answers of a candidate that was asked so many questions only."""
        given = Answers(texts=texts)
        self._first.setdefault(candidate, {})[num_questions] = given
        model, described = self._model(candidate), self._first_questions(num_questions)
        self._cache.put(model, self.nodes[CHOICE], described, given)

    def stopped(self, candidate: Candidate, beat: Candidate) -> Stopped | None:
        """Return why a candidate need not be asked, or asked more, by what it has answered."""
        if self.get(candidate, CHOICE) is not None:
            return None
        for look in reversed(self.race.looks):
            given = self._first.get(candidate, {}).get(look) or self._cache.get(
                self._model(candidate), self.nodes[CHOICE], self._first_questions(look)
            )
            if given is None:
                continue
            scores = self.scores_to_beat(beat)
            for before in self.race.looks[: self.race.looks.index(look) + 1]:
                if found := self.race.judge(given.texts, before, scores):
                    self._stopped[candidate] = (found, beat)
                    return found
        return None

    def _first_questions(self, num_questions: int) -> str:
        assert self.early_stop is not None
        order = f"first {num_questions} questions by seed {self.early_stop.seed}"
        return f"{self._described[CHOICE]}\n{order}"

    def unfinished(self, candidate: Candidate) -> Stopped | None:
        """Return what is known of a candidate that was not asked to the end; None if it was."""
        if self.get(candidate, CHOICE) is not None or candidate not in self._stopped:
            return None
        return self._stopped[candidate][0]

    def known_score(self, candidate: Candidate) -> float:
        """Return the score of a candidate; an estimate if it was not asked to the end.

        That is the score of what it had to beat and the difference on the same questions.
        """
        if self.unfinished(candidate) is None:
            return self.score(candidate)
        found, beat = self._stopped[candidate]
        return self.score(beat) + found.gain

    def worth(self, candidate: Candidate) -> float:
        """Return a finite score: that of a candidate that lost too much is lowered by 1."""
        if self.unfinished(candidate) is not None:
            return self.known_score(candidate)
        return self.score(candidate) - (not self.passes(candidate))

    def guarded_score(self, candidate: Candidate) -> float:
        """Return the score of a candidate; minus infinity if it has lost too much."""
        return self.score(candidate) if self.passes(candidate) else -math.inf

    def _answered(self, candidate: Candidate, number: int) -> Sequence[str]:
        found = self.get(candidate, number)
        assert found is not None, f"{candidate} has not answered benchmark {number}"
        return found.texts
