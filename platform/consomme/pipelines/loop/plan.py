"""Show which stages of a loop are done and which would run, without running anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from consomme.base.recipe import check_recipe
from consomme.pipelines.loop.pins import begun_pins
from consomme.pipelines.loop.recipe import LoopRecipe
from consomme.pipelines.loop.run import Chain, measured_by
from consomme.pipelines.loop.steps import (
    LoopStep,
    first_steps,
    last_steps,
    references,
    round_steps,
    values_of,
)
from consomme.pipelines.verbs import VERBS, recipe_class, resolve
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.pins import pins_kept
from consomme.storage.plan import Plan


@dataclass(frozen=True, kw_only=True)
class LoopPlan:
    """The stages of a loop, and the state of each."""

    name: str
    table: dict[str, Any]
    """Title, columns and rows: each stage and its state."""

    notes: tuple[str, ...]
    """Remarks about the rounds."""


def plan(recipe: LoopRecipe) -> LoopPlan:
    """Look up which stages are done."""
    look = _PlanWalk(recipe)
    with pins_kept(begun_pins(recipe)):
        look.walk()
    return LoopPlan(
        name=recipe.name,
        table={
            "title": f"{recipe.name}: {look.num_done} of {len(look.rows)} stages are done",
            "columns": ["stage", "verb", "state"],
            "rows": look.rows,
        },
        notes=tuple(look.notes),
    )


class _PlanWalk:
    """Goes through a chain as far as it is done."""

    def __init__(self, recipe: LoopRecipe) -> None:
        self.recipe, self.chain = recipe, Chain(recipe)
        self.rows: list[list[str]] = []
        self.notes: list[str] = []

    @property
    def num_done(self) -> int:
        return len(self.chain.manifests)

    def walk(self) -> None:
        self.chain.check_disjoint()
        for step in first_steps(self.recipe):
            self.see(step)
        rounds = self.recipe.rounds
        number = 0
        # Early stopping can be evaluated when the stages before the rounds are done.
        is_known = self.num_done == len(self.rows)
        while rounds and number < rounds.max_rounds:
            if is_known and not self.chain.wants_more:
                break
            number += 1
            steps = round_steps(self.recipe, number)
            for step in steps:
                self.see(step)
            is_known = is_known and steps[-1].name in self.chain.manifests
            if is_known:
                self.chain.end_round()
        if rounds and rounds.early_stop:
            if self.chain.last:
                self.notes.append(self.chain.verdict(rounds.early_stop))
            if number > self.chain.last:
                self.notes.append(
                    f"rounds {self.chain.last + 1} to {number} run unless"
                    f" {measured_by(rounds.early_stop)} stops improving before"
                )
        best = self.chain.best if is_known else number
        for step in last_steps(self.recipe, best, number):
            self.see(step)

    def see(self, step: LoopStep) -> None:
        """Add one stage with its state."""
        self.rows.append([step.name, step.verb, self._state(step)])

    def _state(self, step: LoopStep) -> str:
        missing = sorted(
            {
                step.names[name]
                for name in references(step.recipe)
                if step.names[name] not in self.chain.manifests
            }
        )
        if missing:
            return f"to do, after {', '.join(missing)}"
        values = values_of(step, self.chain.urls, self.recipe.root)
        node = check_recipe(recipe_class(step.verb), values, f"stage {step.name}")
        run = resolve(VERBS[step.verb].open_run)(node)
        if not run.is_done:
            return _begun(run.folder)
        manifest = run.folder.manifest()
        self.chain.manifests[step.name] = manifest
        return f"done in {manifest.seconds:,.0f} s: {manifest.url}"


def _begun(folder: RunFolder) -> str:
    """Describe the state of an unfinished run."""
    there = Plan.load(folder.store)
    if there is None:
        return "to do"
    counts = folder.total_counts()
    done = counts.get("samples", 0) + counts.get("rejected", 0)
    return f"to do, begun: {done:,} of {there.num_rows:,} samples"
