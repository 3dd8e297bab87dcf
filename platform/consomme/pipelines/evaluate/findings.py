"""What a finished evaluation says of guards."""

from __future__ import annotations

from collections.abc import Sequence

from consomme.base.manifest import Manifest
from consomme.evaluate.benchmark import BENCHMARKS, main_figure
from consomme.evaluate.guards import Guard, GuardFinding, finding_of
from consomme.evaluate.names import benchmark_name


def findings_in(
    guards: Sequence[Guard], evaluated: Manifest, base: str, tuned: str
) -> list[GuardFinding]:
    """Return what a tuned model has kept of each guard's benchmark.

    Args:
        guards: Whose benchmarks were evaluated.
        evaluated: The evaluation, which has `base` before `tuned`.
        base: Label of the model that was tuned.
        tuned: Label of the tuned model.
    """
    results, comparisons = (evaluated.decisions[key] for key in ("results", "comparisons"))
    found = []
    for guard in guards:
        name = benchmark_name(guard.benchmark)
        (comparison,) = (
            one
            for one in comparisons
            if one["benchmark"] == name and list(one["models"]) == [base, tuned]
        )
        figure = main_figure(BENCHMARKS.build(guard.benchmark, "benchmark"))
        found.append(
            finding_of(guard, name, figure, results[base][name], results[tuned][name], comparison)
        )
    return found
