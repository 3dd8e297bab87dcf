"""What chooses among rounds: the evaluations that a loop adds to each round, and their values.

With `early_stop.benchmark`, each round ends with an evaluation of its model, a run like any other,
and the model that the rounds start from is evaluated before them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from consomme.base.manifest import Manifest
from consomme.evaluate.benchmark import BENCHMARKS, main_figure
from consomme.evaluate.disjoint import NamedBenchmark, shared_problems
from consomme.evaluate.guards import GuardFinding
from consomme.evaluate.names import benchmark_name
from consomme.pipelines.evaluate.findings import findings_in
from consomme.pipelines.loop.chain import LoopChain, LoopStage, Saturation

CHOICE = "choice"
"""Name of the evaluation that is added; that of round 2 is called `choice-2`, of the start
`choice-0`."""

START = f"{CHOICE}-0"

_MODEL, _BASE = "model", "start"


def start_stage(stop: Saturation) -> LoopStage | None:
    """Return the stage that measures what the rounds start from; None if nothing names it."""
    if stop.benchmark is None or stop.start_model is None:
        return None
    return LoopStage(
        name=START,
        verb="evaluate",
        recipe={
            "models": {_BASE: stop.start_model},
            "benchmarks": [stop.benchmark],
            "template": dict(stop.template),
        },
    )


def round_stage(stop: Saturation) -> LoopStage | None:
    """Return the stage that measures the model of a round; None without a benchmark that chooses.

    Guards compare it with the start, whose answers are in the cache from the second round on.
    """
    if stop.benchmark is None:
        return None
    before = {_BASE: stop.start_model} if stop.guards else {}
    models = {**before, _MODEL: stop.model}
    return LoopStage(
        name=CHOICE,
        verb="evaluate",
        recipe={
            "models": models,
            "benchmarks": [stop.benchmark, *(guard.benchmark for guard in stop.guards)],
            "template": dict(stop.template),
        },
    )


def start_value(stop: Saturation, manifests: Mapping[str, Manifest]) -> float | None:
    """Return the main figure of what the rounds start from; None if nothing names it."""
    return _main(stop, manifests[START], _BASE) if stop.start_model else None


def round_value(stop: Saturation, manifest: Manifest) -> float:
    """Return the main figure of a round's model."""
    return _main(stop, manifest, _MODEL)


def _main(stop: Saturation, manifest: Manifest, label: str) -> float:
    assert stop.benchmark is not None
    figures = manifest.decisions["results"][label][benchmark_name(stop.benchmark)]
    return float(figures[main_figure(BENCHMARKS.build(stop.benchmark, "early_stop.benchmark"))])


def round_findings(stop: Saturation, manifest: Manifest) -> list[GuardFinding]:
    """Return what a round's model has kept of the start, for each guard."""
    return findings_in(stop.guards, manifest, _BASE, _MODEL)


@dataclass(frozen=True, kw_only=True)
class StageBenchmarks:
    """A stage's benchmarks: those that choose something, and those that report."""

    choosing: tuple[NamedBenchmark, ...] = ()
    reporting: tuple[NamedBenchmark, ...] = ()

    @property
    def all(self) -> tuple[NamedBenchmark, ...]:
        """Both."""
        return (*self.choosing, *self.reporting)


def benchmarks_of(verb: str, where: str, recipe: Mapping[str, Any]) -> StageBenchmarks:
    """Return the benchmarks of a stage.

    Args:
        verb: Of the stage.
        where: Key path of the stage.
        recipe: Its recipe, as plain values.
    """

    def named(key: str, nodes: Any) -> tuple[NamedBenchmark, ...]:
        nodes = [nodes] if isinstance(nodes, Mapping) else nodes or ()
        return tuple(
            NamedBenchmark(key=f"{where}.{key}[{number}]", node=node)
            for number, node in enumerate(nodes)
        )

    if verb == "soup":
        return StageBenchmarks(
            choosing=named("benchmark", recipe.get("benchmark")),
            reporting=named("report", recipe.get("report")),
        )
    if verb == "train":
        evaluation = recipe.get("evaluation") or {}
        return StageBenchmarks(
            choosing=named("evaluation.benchmark", evaluation.get("benchmark")),
            reporting=named("evaluation.report", evaluation.get("report")),
        )
    if verb == "sweep":
        compared, metric = recipe.get("benchmarks") or (), recipe.get("metric")
        named_by = str(metric or (benchmark_name(compared[0]) if compared else ""))
        nodes = named("benchmarks", compared)
        choosing = tuple(
            one for one in nodes if named_by.partition("/")[0] == benchmark_name(one.node)
        )
        evaluation = (recipe.get("train") or {}).get("evaluation") or {}
        return StageBenchmarks(
            choosing=(*choosing, *named("train.evaluation.benchmark", evaluation.get("benchmark"))),
            reporting=(
                *(one for one in nodes if one not in choosing),
                *named("train.evaluation.report", evaluation.get("report")),
            ),
        )
    if verb in ("evaluate", "prune"):
        return StageBenchmarks(reporting=named("benchmarks", recipe.get("benchmarks")))
    return StageBenchmarks()


def chain_problems(
    recipe: LoopChain,
    stages: Sequence[tuple[str, str, str, Mapping[str, Any]]],
    *,
    is_there: Callable[[Mapping[str, Any]], bool],
) -> Iterator[str]:
    """Yield what chooses in one stage of a loop and reports in it or in another one.

    Args:
        recipe: Of the loop.
        stages: Name, verb, key path and resolved recipe of each stage.
        is_there: Whether the data of a benchmark's node is there; those that a stage has yet to
            make are left out.
    """
    stop = recipe.rounds.early_stop if recipe.rounds else None
    choosing: dict[str, NamedBenchmark] = {}
    reporting: dict[str, NamedBenchmark] = {}
    for name, verb, where, values in stages:
        found = benchmarks_of(verb, where, values)
        for one in filter(lambda one: is_there(one.node), found.choosing):
            choosing.setdefault(_key(one), one)
        for one in filter(lambda one: is_there(one.node), found.reporting):
            if stop is not None and _chooses(stop, name, one.node):
                choosing.setdefault(_key(one), one)
            else:
                reporting.setdefault(_key(one), one)
    yield from shared_problems(choosing.values(), reporting.values())


def _key(one: NamedBenchmark) -> str:
    return json.dumps(one.node, sort_keys=True, default=str)


def _chooses(stop: Saturation, stage: str, node: Mapping[str, Any]) -> bool:
    """Whether a benchmark of an evaluation is what ends the rounds, or measures their start.

    Guards do not report: they only say whether a round may be chosen.
    """
    base, _, number = stage.rpartition("-")
    base = base if number.isdigit() else stage
    if stop.benchmark is not None:
        return base == CHOICE
    for source, own in ((stop.metric, base), (stop.start, stage)):
        named, _, metric = (source or "").partition(":")
        # evaluate/LABEL/BENCHMARK/FIGURE
        parts = metric.split("/")
        is_figure = metric.startswith("evaluate/") and len(parts) > 3
        if named and named in (own, stage) and is_figure and "name" in node:
            if parts[2] == benchmark_name(node):
                return True
    return False
