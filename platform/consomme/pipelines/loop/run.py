"""Run a chain of stages from one recipe, each once, in rounds until a metric stops improving.

What is done is what has a run folder, so a loop that was interrupted, or gets one more round, goes
through the same chain and finds most of it done. All that a loop keeps of itself, until it is done,
are the commits of what it reads on the hub, without which its stages would not be found again.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from consomme.base.errors import DataError, RecipeError
from consomme.base.manifest import Manifest
from consomme.base.recipe import check_recipe
from consomme.base.sealed import sealed
from consomme.base.suggest import did_you_mean
from consomme.evaluate.guards import GuardFinding, check_kept
from consomme.evaluate.names import benchmark_name
from consomme.execution.capacity import check_capacity
from consomme.execution.runs import Run
from consomme.execution.session import shared_ray
from consomme.pipelines.loop.chain import Saturation, SummaryRow
from consomme.pipelines.loop.choice import (
    CHOICE,
    benchmarks_of,
    chain_problems,
    round_findings,
    round_value,
    start_value,
)
from consomme.pipelines.loop.pins import begun_pins, forget_pins, keep_begun_pins
from consomme.pipelines.loop.recipe import LoopRecipe
from consomme.pipelines.loop.rounds import best_of, is_saturated
from consomme.pipelines.loop.steps import (
    LoopStep,
    all_steps,
    first_steps,
    last_steps,
    references,
    round_steps,
    step_recipe,
    values_of,
)
from consomme.pipelines.verbs import VERBS, recipe_class, resolve
from consomme.storage.pins import pins_kept

logger = logging.getLogger(__name__)


def run(recipe: LoopRecipe) -> Manifest:
    """Run every stage that is not done, then write the report."""
    started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    for step in all_steps(recipe):
        check_capacity(step_recipe(step, recipe.root), f"stage {step.name}: ")
    chain = Chain(recipe)
    with pins_kept(begun_pins(recipe)):
        with shared_ray():
            chain.run()
        # The loop's own run can be opened only when its stages are done, but began before them.
        manifest = dataclasses.replace(_open(chain), started=started, clock=clock).once(_report)
    forget_pins(recipe)
    # A stage of a loop that is done may have been repaired.
    all_found = all(stage.is_found for stage in chain.manifests.values())
    return dataclasses.replace(manifest, is_found=manifest.is_found and all_found)


def open_run(recipe: LoopRecipe) -> Run[Chain]:
    """Open the loop's own run, whose stages must all be done; writes nothing.

    Raises:
        DataError: A stage is not done.
    """
    chain = Chain(recipe, only_find=True)
    chain.run()
    return _open(chain)


def _open(chain: Chain) -> Run[Chain]:
    stages = {f"stage {name}": manifest.url for name, manifest in chain.manifests.items()}
    return Run.open("loop", chain.recipe, chain, runs=stages)


def _report(run: Run[Chain]) -> Manifest:
    """Write table, report and manifest of a loop whose stages are done."""
    from consomme.pipelines.report.loop import loop_report

    recipe, chain = run.recipe, run.resolved
    table = [summary_row(row, chain.manifests) for row in recipe.summary]
    rounds = chain.rounds()
    page = loop_report(recipe, chain.manifests, table, rounds)
    run.folder.store.write("report.html", sealed(page))
    run.folder.store.write("summary.json", json.dumps(table, indent=1).encode())
    return run.finish(
        counts={"stages": len(chain.manifests)} | ({"rounds": chain.last} if rounds else {}),
        decisions={
            "summary": table,
            "rounds": rounds,
            "seconds": {name: m.seconds for name, m in chain.manifests.items()},
            "table": _shown(recipe.name, table, rounds),
        },
        outputs={"report": "report.html", "summary": "summary.json"},
    )


class Chain:
    """The stages of a loop, run or found in order, with their manifests."""

    def __init__(self, recipe: LoopRecipe, *, only_find: bool = False) -> None:
        self.recipe, self.only_find = recipe, only_find
        self.manifests: dict[str, Manifest] = {}
        self.last = 0
        """Number of rounds that are done."""

    @property
    def urls(self) -> dict[str, str]:
        """Run folders by name."""
        return {name: manifest.url for name, manifest in self.manifests.items()}

    def run(self) -> None:
        """Run everything, in order.

        Raises:
            RecipeError: What chooses in one stage reports in it or another one.
            DataError: Every round lost more than the guards allow.
        """
        self.check_disjoint()
        for step in first_steps(self.recipe):
            self.do(step)
        while self.wants_more:
            for step in round_steps(self.recipe, self.last + 1):
                self.do(step)
            self.end_round()
        self._check_kept()
        for step in last_steps(self.recipe, self.best, self.last):
            self.do(step)

    def do(self, step: LoopStep) -> None:
        """Run one stage, or find its finished run."""
        values = values_of(step, self.urls, self.recipe.root)
        if references([one.node for one in benchmarks_of(step.verb, "", step.recipe).all]):
            # Its questions are made by the loop itself, and are there only now.
            self.check_disjoint()
        node = check_recipe(recipe_class(step.verb), values, f"stage {step.name}")
        logger.info("stage %d: %s %s", len(self.manifests) + 1, step.verb, step.name)
        if not self.only_find:
            manifest = resolve(VERBS[step.verb].run)(node)
            self.manifests[step.name] = manifest
            if not manifest.is_found and manifest.pins:
                keep_begun_pins(self.recipe, manifest.pins)
            return
        run = resolve(VERBS[step.verb].open_run)(node)
        if not run.is_done:
            raise DataError(f"stage {step.name} is not done: {run.folder.url}; run the loop")
        self.manifests[step.name] = run.folder.manifest()

    def check_disjoint(self) -> None:
        """Check that nothing chooses and reports, as far as the benchmarks' files are there.

        Raises:
            RecipeError: Something does.
        """
        if self.recipe.reports_what_it_chose_by:
            return
        stages = [
            (step.name, step.verb, step.where, self._known_values(step))
            for step in all_steps(self.recipe)
        ]
        problems = list(
            chain_problems(self.recipe, stages, is_there=lambda node: not references(node))
        )
        if problems:
            raise RecipeError.from_problems(f"loop {self.recipe.name}", problems)

    def _known_values(self, step: LoopStep) -> Mapping[str, Any]:
        """Return a step's recipe, resolved if everything that it refers to is done."""
        needed = [step.names[name] for name in references(step.recipe)]
        if all(name in self.manifests for name in needed):
            return values_of(step, self.urls, self.recipe.root)
        return step.recipe

    def _check_kept(self) -> None:
        """Refuse rounds of which every one lost more than the guards allow, if they say so."""
        stop = self.recipe.rounds and self.recipe.rounds.early_stop
        if not stop or not stop.guards or self.last == 0:
            return
        if not any(map(self.passes, self._numbers)):
            best = max(self._numbers, key=lambda n: (self.score(n), -n))
            check_kept(stop.guards, [one.plain() for one in self.findings(best)])
            logger.warning("loop: every round lost more than its guards allow: the start is best")

    def score(self, number: int) -> float:
        """Return the main figure of a round on the benchmark that chooses."""
        stop = self.recipe.rounds.early_stop if self.recipe.rounds else None
        assert stop is not None
        return round_value(stop, self.manifests[f"{CHOICE}-{number}"])

    def passes(self, number: int) -> bool:
        """Whether the model of a round has lost no more than the guards allow."""
        return all(finding.passes for finding in self.findings(number))

    @property
    def _numbers(self) -> range:
        return range(1, self.last + 1)

    def findings(self, number: int) -> list[GuardFinding]:
        """Return what the model of a round has kept of the start, for each guard."""
        stop = self.recipe.rounds and self.recipe.rounds.early_stop
        if not stop or not stop.guards:
            return []
        return round_findings(stop, self.manifests[f"{CHOICE}-{number}"])

    def end_round(self) -> None:
        """Count a round as done."""
        self.last += 1
        stop = self.recipe.rounds and self.recipe.rounds.early_stop
        if stop:
            logger.info("round %d: %s", self.last, self.verdict(stop))

    @property
    def wants_more(self) -> bool:
        """Whether another round has to run."""
        rounds = self.recipe.rounds
        if rounds is None or self.last >= rounds.max_rounds:
            return False
        return rounds.early_stop is None or not is_saturated(self.values, rounds.early_stop)

    @property
    def values(self) -> list[float | None]:
        """Early-stopping metric of the start and of each round; None if there is no start."""
        stop = self.recipe.rounds and self.recipe.rounds.early_stop
        if not stop:
            return []
        if stop.benchmark is not None:
            # A round that lost too much is no improvement, and never the best.
            values = [self.score(n) if self.passes(n) else None for n in self._numbers]
            return [start_value(stop, self.manifests), *values]
        assert stop.metric is not None
        start = figure(stop.start, self.manifests) if stop.start else None
        later = [figure(_of_round(stop.metric, n), self.manifests) for n in self._numbers]
        return [start, *later]

    @property
    def best(self) -> int:
        """The best round; 0 if none beat the start, the last one without early stopping."""
        stop = self.recipe.rounds and self.recipe.rounds.early_stop
        return best_of(self.values, stop) if stop else self.last

    def verdict(self, stop: Saturation) -> str:
        """Describe the early-stopping metric of the rounds so far."""
        values = " → ".join("–" if value is None else f"{value:.4g}" for value in self.values)
        lost = [one.line for one in self.findings(self.last) if not one.passes]
        text = "; ".join([f"{measured_by(stop)} {values}", *lost])
        if is_saturated(self.values, stop):
            return f"{text}: saturated, round {self.best} is the best"
        return text

    def rounds(self) -> dict[str, Any]:
        """Return what the manifest records about the rounds; empty without rounds."""
        rounds = self.recipe.rounds
        if rounds is None:
            return {}
        rows = []
        for row in rounds.table:
            start, _, value = row.value.rpartition(" > ")
            cells = [figure(start, self.manifests) if start else None]
            cells += [
                figure(_of_round(value, number), self.manifests)
                for number in range(1, self.last + 1)
            ]
            rows.append({"label": row.label, "values": cells, "note": row.note})
        found: dict[str, Any] = {"num": self.last, "table": rows}
        if rounds.early_stop:
            is_over = is_saturated(self.values, rounds.early_stop)
            found |= {
                "metric": measured_by(rounds.early_stop),
                "values": self.values,
                "best": self.best,
                "ended": "saturated" if is_over else "all rounds were run",
            }
            if rounds.early_stop.guards:
                scores = [self.score(n) for n in self._numbers]
                findings = [[one.plain() for one in self.findings(n)] for n in self._numbers]
                found |= {"scores": scores, "guards": findings}
        return found


def measured_by(stop: Saturation) -> str:
    """Name what rounds are compared by."""
    return stop.metric or (benchmark_name(stop.benchmark) if stop.benchmark else "")


def figure(source: str, manifests: Mapping[str, Manifest]) -> float:
    """Return the metric that `stage:metric` names.

    Raises:
        RecipeError: The stage has no such metric.
    """
    stage, _, metric = source.partition(":")
    metrics = manifests[stage].metrics
    if metric not in metrics:
        hint = did_you_mean(metric, list(metrics))
        raise RecipeError(f"{source}: stage {stage} has no metric {metric!r}{hint}")
    return metrics[metric]


def summary_row(row: SummaryRow, manifests: Mapping[str, Manifest]) -> dict[str, Any]:
    """Compute one row of the final table."""
    values = [figure(source, manifests) for source in row.value.split(" | ")]
    return {"label": row.label, "values": values, "note": row.note}


def _of_round(source: str, number: int) -> str:
    stage, _, metric = source.partition(":")
    return f"{stage}-{number}:{metric}"


def _shown(
    name: str, table: Sequence[Mapping[str, Any]], rounds: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the table that is printed at the end."""
    rows = [(row["label"], row["values"]) for row in table]
    rows += [(f"{row['label']}, by round", row["values"]) for row in rounds.get("table", ())]
    return {
        "title": f"{name}: what came out",
        "columns": ["figure", "value"],
        "rows": [
            [label, " | ".join("–" if value is None else f"{value:.3g}" for value in values)]
            for label, values in rows
        ],
    }
