"""Several benchmarks as one, so that whatever chooses by a benchmark can choose by several."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from consomme.base.bounds import PositiveFloat
from consomme.base.checked import Checked, rule
from consomme.base.schema import strategy
from consomme.evaluate.benchmark import (
    BENCHMARKS,
    Benchmark,
    BenchmarkItem,
    HasData,
    describe,
    outcomes_of,
)
from consomme.evaluate.metrics import Z_95


@dataclass(frozen=True, kw_only=True)
class WeightedPart:
    """One benchmark of a mean."""

    benchmark: dict[str, Any] = strategy("consomme.evaluate.benchmarks:BENCHMARKS")
    """The benchmark."""

    weight: PositiveFloat = 1.0
    """Its weight in the mean; weights are divided by their sum."""


@BENCHMARKS.register("weighted")
@dataclass(frozen=True, kw_only=True)
class Weighted(Checked):
    """The weighted mean of the main figures of several benchmarks.

    POINTS, arXiv 2409.04828, chooses by the plain mean of eight. Each figure of a part is kept too,
    named `PART/FIGURE` by the part's number from 0.
    """

    not_identity: ClassVar[tuple[str, ...]] = ("label",)

    parts: tuple[WeightedPart, ...]
    """Benchmarks and their weights."""

    label: str = ""
    """Name in tables; empty: `weighted`."""

    @rule
    def _has_parts(self) -> Iterator[str]:
        if len(self.parts) < 2:
            yield f"parts: found {len(self.parts)}, expected at least two benchmarks"

    @cached_property
    def benchmarks(self) -> tuple[Benchmark, ...]:
        """The benchmarks, built once for this object."""
        return tuple(
            BENCHMARKS.build(part.benchmark, f"parts[{k}].benchmark")
            for k, part in enumerate(self.parts)
        )

    @property
    def max_tokens(self) -> int:
        """Maximum answer length of any part; each is asked with its own."""
        return max(one.max_tokens for one in self.benchmarks)

    def identity(self) -> list[Any]:
        """Return what decides the figures, for cache keys."""
        return [
            [part.weight, describe(one)]
            for part, one in zip(self.parts, self.benchmarks, strict=True)
        ]

    def data_version(self) -> str:
        """Return a hash of the data of all parts that have any."""
        found = [one.data_version() for one in self.benchmarks if isinstance(one, HasData)]
        return hashlib.sha256("\n".join(found).encode()).hexdigest()

    def items(self) -> Sequence[BenchmarkItem]:
        """Requests of all parts, one part after the other."""
        return [item for one in self.benchmarks for item in one.items()]

    def verdicts(self, answers: Sequence[str]) -> list[float]:
        """One score in [0, 1] per request."""
        return [
            verdict
            for one, given in zip(self.benchmarks, self._split(answers), strict=True)
            for verdict in one.verdicts(given)
        ]

    def outcomes(self, answers: Sequence[str]) -> list[float]:
        """One score in [0, 1] per question."""
        return [
            outcome
            for one, given in zip(self.benchmarks, self._split(answers), strict=True)
            for outcome in outcomes_of(one, given)
        ]

    def measure(self, answers: Sequence[str]) -> dict[str, float]:
        """Weighted mean of the main figures, with its interval, and the figures of each part."""
        shares = [part.weight / sum(one.weight for one in self.parts) for part in self.parts]
        figures: dict[str, float] = {}
        score, variance = 0.0, 0.0
        for k, (one, given) in enumerate(zip(self.benchmarks, self._split(answers), strict=True)):
            found = one.measure(given)
            score += shares[k] * next(iter(found.values()))
            outcomes = np.asarray(outcomes_of(one, given), np.float64)
            variance += shares[k] ** 2 * float(outcomes.var()) / max(1, len(outcomes))
            figures |= {f"{k}/{name}": value for name, value in found.items()}
        half = Z_95 * math.sqrt(variance)
        mean = {
            "score_fraction": score,
            "score_low_fraction": max(0.0, score - half),
            "score_high_fraction": min(1.0, score + half),
        }
        return mean | figures

    def candidates(self, number: int) -> Mapping[str, str] | None:
        """Return possible answers to a request, if likelihood decides in its part."""
        one, within = self._part_of(number)
        return one.candidates(within) if isinstance(one, HasData) else None

    def choose(self, nlls: Mapping[str, float], number: int) -> str:
        """Return the answer that a request has in its part."""
        one, within = self._part_of(number)
        assert isinstance(one, HasData), "others are not chosen by likelihood"
        return one.choose(nlls, within)

    @cached_property
    def _sizes(self) -> list[int]:
        return [len(one.items()) for one in self.benchmarks]

    def _part_of(self, number: int) -> tuple[Benchmark, int]:
        for one, size in zip(self.benchmarks, self._sizes, strict=True):
            if number < size:
                return one, number
            number -= size
        raise IndexError(number)

    def _split(self, answers: Sequence[str]) -> list[Sequence[str]]:
        ends = np.cumsum(self._sizes).tolist()
        return [answers[end - size : end] for size, end in zip(self._sizes, ends, strict=True)]
