"""Guards: what a model must not lose while something else is being improved.

A model that is trained on images may lose its language without any visual benchmark showing it. A
guard is a benchmark, of texts alone as a rule, on which a tuned model may be only so much worse
than the model that it was tuned from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from consomme.base.bounds import NonNegativeFloat
from consomme.base.checked import Checked, rule
from consomme.base.errors import DataError
from consomme.base.schema import runtime, strategy
from consomme.evaluate.benchmark import BENCHMARKS, Benchmark, outcomes_of
from consomme.evaluate.comparison import compare


@dataclass(frozen=True, kw_only=True)
class Guard(Checked):
    """A benchmark on which the tuned model may be only so much worse than its start."""

    benchmark: dict[str, Any] = strategy("consomme.evaluate.benchmarks:BENCHMARKS")
    """The benchmark: `multiple_choice` by likelihood, `likelihood` of texts, or any other."""

    at_most_worse: NonNegativeFloat = 0.02
    """How much lower the mean score of a question, from 0 to 1, may be: 0.02 of accuracy are two
    questions of a hundred. With 0, nothing may be lost at all."""

    otherwise: Literal["refuse", "warn"] = runtime("refuse")
    """What is done if every candidate loses more: `refuse` fails the run, `warn` takes the best one
    all the same. As long as one passes, those that lose more are not chosen, whatever is set here.
    A run that was refused goes on from its measurements with `warn`."""

    @rule
    def _is_one_benchmark(self) -> Iterator[str]:
        if self.benchmark.get("name") == "weighted":
            yield (
                "benchmark: found weighted, in which a gain of one part hides what another lost;"
                " name each part as a guard of its own"
            )


@dataclass(frozen=True, kw_only=True)
class GuardFinding:
    """What a tuned model has kept of a guard's benchmark."""

    benchmark: str
    """Name in tables."""

    figure: str
    """Name of the benchmark's main figure."""

    base: float
    """Main figure of the model that was tuned."""

    tuned: float
    """That of the tuned model."""

    difference: float
    """Mean score of a question: the tuned model's minus that of the other."""

    low: float
    """Lower end of the difference's 95 % interval."""

    high: float
    """Upper end."""

    p_value: float
    """Of the difference; see `Comparison`."""

    resolvable: float
    """Smallest difference that the questions could show."""

    at_most_worse: float
    """What may be lost."""

    passes: bool
    """Whether no more than that is lost."""

    base_figures: Mapping[str, float]
    """All figures of the model that was tuned."""

    tuned_figures: Mapping[str, float]
    """All figures of the tuned model."""

    @property
    def line(self) -> str:
        """The finding in a sentence."""
        what = "within" if self.passes else "worse by more than"
        return (
            f"{self.benchmark} {self.figure} {self.base:.4f} -> {self.tuned:.4f}, difference"
            f" {self.difference:+.4f} (95 %: {self.low:+.4f} to {self.high:+.4f}), {what}"
            f" at_most_worse={self.at_most_worse:g}"
        )

    def plain(self) -> dict[str, Any]:
        """Return plain values, for manifests."""
        return {**asdict(self), "line": self.line}


def judge_guard(
    guard: Guard,
    name: str,
    base_answers: Sequence[str],
    tuned_answers: Sequence[str],
    benchmark: Benchmark | None = None,
) -> GuardFinding:
    """Compare a tuned model with the model that it was tuned from.

    Args:
        guard: The guard.
        name: Of its benchmark in tables.
        base_answers: Of the model that was tuned.
        tuned_answers: Of the tuned model, to the same questions.
        benchmark: The guard's benchmark if it is built already.

    Raises:
        DataError: The benchmark has no questions.
    """
    built = benchmark or BENCHMARKS.build(guard.benchmark, "benchmark")
    found = compare(outcomes_of(built, base_answers), outcomes_of(built, tuned_answers))
    base, tuned = built.measure(base_answers), built.measure(tuned_answers)
    return finding_of(guard, name, next(iter(base)), base, tuned, asdict(found))


def finding_of(
    guard: Guard,
    name: str,
    figure: str,
    base: Mapping[str, float],
    tuned: Mapping[str, float],
    comparison: Mapping[str, float],
) -> GuardFinding:
    """Judge a guard by what was measured.

    Args:
        guard: The guard.
        name: Of its benchmark in tables.
        figure: Name of the main figure.
        base: Figures of the model that was tuned.
        tuned: Those of the tuned model.
        comparison: `Comparison` of both, in this order, as plain values.
    """
    return GuardFinding(
        benchmark=name,
        figure=figure,
        base=base[figure],
        tuned=tuned[figure],
        difference=comparison["difference"],
        low=comparison["low"],
        high=comparison["high"],
        p_value=comparison["p_value"],
        resolvable=comparison["resolvable"],
        at_most_worse=guard.at_most_worse,
        # A loss of exactly what may be lost passes, whatever the sum of floats makes of it.
        passes=comparison["difference"] >= -guard.at_most_worse - 1e-9,
        base_figures=dict(base),
        tuned_figures=dict(tuned),
    )


def refusal(guards: Sequence[Guard], findings: Sequence[Mapping[str, Any]]) -> str | None:
    """Return why nothing may be chosen, given the findings of the best candidate; None if it may.

    Args:
        guards: Of the recipe.
        findings: One for each, as plain values.
    """
    for guard, found in zip(guards, findings, strict=True):
        if not found["passes"] and guard.otherwise == "refuse":
            return (
                f"language was lost, and nothing else can be chosen: {found['line']}. Train more"
                " gently, mix texts into the data, allow more by at_most_worse, or take it all the"
                " same with otherwise=warn"
            )
    return None


def check_kept(guards: Sequence[Guard], findings: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a model that lost more than a guard allows, if the guard says so.

    Raises:
        DataError: It did.
    """
    if problem := refusal(guards, findings):
        raise DataError(problem)
