"""Searches among the shares of ingredients, by Optuna.

The shares of the whole model, or of each of its parts and of groups of its layers, are numbers that
a study proposes: what is below zero leaves an ingredient out. A study is told of every ingredient
alone and of the average of all first, and the best candidate that was scored is the result, so it
is never worse on the score than these. Candidates are proposed some at a time, as many as the
search says and not as many as there are actors, so what is proposed depends on the seed and the
scores only; a search that was interrupted asks for the same candidates again, whose answers are in
the cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Interval

from consomme.base.bounds import NonNegativeInt, PositiveFloat, PositiveInt
from consomme.base.checked import Checked, rule
from consomme.base.errors import RecipeError
from consomme.base.study import Study, sampler
from consomme.soup.blends import Candidate, Grouping, blend, whole_shares
from consomme.soup.search import SEARCHES, CachedScores, ScoreFunction, SoupResult, SoupStep

_LOW, _HIGH = -0.5, 1.0
"""Range of the proposed numbers: a third of them leaves an ingredient out."""

_MAX_REPEATS = 100
"""A search ends when so many proposals in a row were known."""


@dataclass(frozen=True, kw_only=True)
class WeightsSearch(Checked):
    """What searches by numbers have in common."""

    max_evaluations: PositiveInt = 100
    """Different candidates that are scored, those found in the cache included."""

    max_hours: PositiveFloat | None = None
    """No new candidates are proposed after so much time; None: no limit. What was scored before an
    interruption takes no time when the search goes on."""

    per_part: bool = False
    """Whether vision encoder, projector and language model have shares of their own."""

    layer_groups: PositiveInt = 1
    """Groups of consecutive layers of the language model that have shares of their own; more than
    one needs `per_part`."""

    resolution: Annotated[int, Interval(ge=2, le=10_000)] = 100
    """Shares are multiples of one divided by this."""

    seed: NonNegativeInt = 0
    """Of the proposals."""

    @rule
    def _layers_are_parts(self) -> Iterator[str]:
        if self.layer_groups > 1 and not self.per_part:
            yield f"layer_groups: found {self.layer_groups} without per_part; expected 1, or both"

    @property
    def grouping(self) -> Grouping:
        """Which tensors have shares in common."""
        return Grouping(per_part=self.per_part, layer_groups=self.layer_groups)

    def _searched(
        self,
        count: int,
        score: ScoreFunction,
        make: Any,
        batch: int,
        *,
        has_objectives: bool = False,
    ) -> tuple[CachedScores, list[SoupStep], Candidate]:
        """Score candidates until the budget is used up.

        Args:
            count: Of the ingredients.
            score: Of a candidate.
            make: Makes a sampler of Optuna from a seed.
            batch: Candidates that are proposed at a time.
            has_objectives: Whether the study is told several figures instead of the score.

        Returns:
            What was scored, every step, and the best candidate.
        """
        cached = CachedScores(score, count)
        starts: list[Candidate] = [(k,) for k in range(count)]
        starts += [tuple(range(count))] if count > 1 else []
        if self.max_evaluations < len(starts):
            raise RecipeError(
                f"max_evaluations: found {self.max_evaluations}, expected at least {len(starts)}:"
                " every ingredient alone and the average of all are scored first"
            )
        cached.ahead(starts)
        num_objectives = len(cached.objectives(starts[0])) if has_objectives else 1
        if has_objectives and num_objectives < 2:
            raise RecipeError(
                "nsga2: found one objective, expected several: guards, or a weighted benchmark"
            )
        study = Study(["maximize"] * num_objectives, make, seed=self.seed)
        proposals = _Proposals(self, count, cached.num_groups(self.grouping), study)
        best: Candidate | None = None
        trace: list[SoupStep] = []

        def told(number: int, candidate: Candidate, beat: Candidate | None) -> None:
            nonlocal best
            value = cached(candidate, beat=beat)
            if has_objectives:
                study.tell(number, cached.objectives(candidate))
            else:
                study.tell(number, cached.worth(candidate))
            if candidate in traced:
                return
            traced.add(candidate)
            before = None if best is None else cached(best)
            accepted = before is None or value > before
            trace.append(
                cached.step(candidate, candidate=None, best_before=before, accepted=accepted)
            )
            best = candidate if accepted else best

        traced: set[Candidate] = set()
        for candidate in starts:
            told(proposals.start(candidate), candidate, None)
        num_repeats = 0
        while len(cached) < self.max_evaluations and num_repeats < _MAX_REPEATS:
            if self.max_hours is not None and cached.hours >= self.max_hours:
                break
            asked = [proposals.ask() for _ in range(batch)]
            left = self.max_evaluations - len(cached)
            new = list(dict.fromkeys(one for _, one in asked if one not in cached))[:left]
            num_repeats = 0 if new else num_repeats + batch
            # With several objectives, what is worse in one may be the best in another.
            beat = None if has_objectives else best
            cached.ahead(new, beat=beat)
            for number, candidate in asked:
                if candidate in cached or candidate in new:
                    told(number, candidate, beat)
        assert best is not None
        return cached, trace, best


class _Proposals:
    """The candidates that a study proposes."""

    def __init__(self, settings: WeightsSearch, count: int, num_groups: int, study: Study) -> None:
        self.settings, self.study = settings, study
        self.names = [[f"{group}.{k}" for k in range(count)] for group in range(num_groups)]

    def start(self, candidate: Candidate) -> int:
        """Let the study try a selection; returns the number of the trial."""
        assert isinstance(candidate, tuple)
        count = len(self.names[0])
        # In the middle of what leaves out, and of what does not.
        inside = (_LOW + _HIGH) / 2 if len(candidate) == count else _HIGH / 2
        self.study.enqueue(
            {
                name: inside if k in candidate else _LOW / 2
                for names in self.names
                for k, name in enumerate(names)
            }
        )
        return self.ask()[0]

    def ask(self) -> tuple[int, Candidate]:
        """Return number and candidate of the next trial."""
        number = len(self.study)
        numbers = self.study.ask(
            lambda trial: [
                [float(trial.suggest_float(name, _LOW, _HIGH)) for name in names]
                for names in self.names
            ]
        )
        units = [whole_shares(some, self.settings.resolution) for some in numbers]
        return number, blend(self.settings.grouping, units)


@SEARCHES.register("tpe")
@dataclass(frozen=True, kw_only=True)
class TpeWeights(WeightsSearch):
    """Search shares with the tree-structured Parzen estimator.

    Source: Bergstra et al., NeurIPS 2011; Optuna's implementation with `constant_liar`.
    """

    num_random: NonNegativeInt = 10
    """Candidates that are drawn at random first, after the ingredients and their average."""

    batch: PositiveInt = 4
    """Candidates that are proposed at a time; more than the actors make no use of them."""

    def __call__(self, count: int, score: ScoreFunction) -> SoupResult:
        """Search.

        Raises:
            RecipeError: The budget does not suffice for what is scored first.
        """
        make = sampler("TPESampler", n_startup_trials=count + 1 + self.num_random)
        cached, trace, best = self._searched(count, score, make, self.batch)
        return cached.result(best, trace)


@SEARCHES.register("cma_es")
@dataclass(frozen=True, kw_only=True)
class CmaEsWeights(WeightsSearch):
    """Search shares with the covariance matrix adaptation evolution strategy.

    It begins around the average of all ingredients.
    Source: Hansen and Ostermeier, Evolutionary Computation 9 (2001); Optuna's implementation.
    """

    population: Annotated[int, Interval(ge=3, le=1000)] | None = None
    """Candidates of a generation, which are proposed together; None: 4 + 3 ln(numbers searched)."""

    def __call__(self, count: int, score: ScoreFunction) -> SoupResult:
        """Search.

        Raises:
            RecipeError: The budget does not suffice for what is scored first.
        """
        num_groups = CachedScores(score, count).num_groups(self.grouping)
        population = self.population or 4 + math.floor(3 * math.log(count * num_groups))
        make = sampler("CmaEsSampler", popsize=population)
        cached, trace, best = self._searched(count, score, make, population)
        return cached.result(best, trace)


@SEARCHES.register("nsga2")
@dataclass(frozen=True, kw_only=True)
class Nsga2Weights(WeightsSearch):
    """Search shares for several objectives, and keep those that no other candidate excels.

    The objectives are the main figures of the benchmark that chooses, or of its parts if it is
    `weighted`, and of each guard. Of the candidates that pass all guards, the one with the best
    main figure of the benchmark becomes the soup; the others of the front are in the report.
    Source: Deb et al., IEEE Transactions on Evolutionary Computation 6 (2002); Optuna's
    implementation.
    """

    population: Annotated[int, Interval(ge=4, le=1000)] = 16
    """Candidates of a generation, which are proposed together."""

    def __call__(self, count: int, score: ScoreFunction) -> SoupResult:
        """Search.

        Raises:
            RecipeError: The budget does not suffice for what is scored first, or there is one
                objective.
        """
        make = sampler("NSGAIISampler", population_size=self.population)
        cached, trace, best = self._searched(
            count, score, make, self.population, has_objectives=True
        )
        return cached.result(best, trace, front_of(list(cached), cached.objectives))


def front_of(candidates: Sequence[Candidate], objectives: Any) -> list[Candidate]:
    """Return the candidates that no other one excels, in falling order of the first objective.

    One excels another if it is at least as good in every objective and better in one; of equal ones
    the first is kept.

    Args:
        candidates: In the order in which they were scored.
        objectives: Returns the objectives of a candidate, each as high as possible.
    """
    values = {one: tuple(objectives(one)) for one in candidates}
    front: dict[tuple[float, ...], Candidate] = {}
    for one, own in values.items():
        is_excelled = any(
            other != own and all(a >= b for a, b in zip(other, own, strict=True))
            for other in values.values()
        )
        if not is_excelled:
            front.setdefault(own, one)
    return [front[own] for own in sorted(front, reverse=True)]
