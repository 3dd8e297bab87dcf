"""The recipe of `soup`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from consomme.base.bounds import PositiveInt
from consomme.base.checked import Checked, rule
from consomme.base.schema import added, located, runtime, strategy
from consomme.evaluate.guards import Guard
from consomme.storage.options import StorageOptions


@dataclass(frozen=True, kw_only=True)
class SoupRecipe(Checked):
    """Ingredients of a model soup, and how to choose among them."""

    name: str
    """Name of the run."""

    ingredients: dict[str, str] = located()
    """Label -> model: models fine-tuned from the same checkpoint."""

    benchmark: dict[str, Any] = strategy("consomme.evaluate.benchmarks:BENCHMARKS")
    """Held-out benchmark that decides which ingredients are used, by its main figure; `weighted`
    takes several. A `likelihood` of held-out answers chooses by their loss."""

    report: tuple[dict[str, Any], ...] = strategy(
        "consomme.evaluate.benchmarks:BENCHMARKS", default=(), was_added=True
    )
    """Benchmarks that report the soup of each search and the best single ingredient, and choose
    nothing; their questions must not be among those of `benchmark`."""

    reports_what_it_chose_by: bool = runtime(False)
    """Allow `report` to have questions of `benchmark`."""

    base: str | None = located(None)
    """The model that the ingredients were tuned from, which `guards` compare with."""

    guards: tuple[Guard, ...] = added(())
    """Benchmarks, such as one of texts alone, on which a soup may be only so much worse than
    `base`; candidates that lose more are not chosen."""

    root: str = runtime("runs")
    """Where run folders are created: a local path or a URL."""

    storage: StorageOptions = runtime(StorageOptions())
    """How patient the run is with its storage."""

    searches: tuple[dict[str, Any], ...] = strategy(
        "consomme.soup.search:SEARCHES", default=({"name": "uniform"}, {"name": "greedy"})
    )
    """Ways to choose ingredients; the best result of all becomes the soup."""

    num_actors: PositiveInt | None = runtime(None)
    """Candidates to score in parallel; None: one per GPU, or one per CPU."""

    @rule
    def _has_ingredients(self) -> Iterator[str]:
        if len(self.ingredients) < 2:
            yield f"ingredients: found {len(self.ingredients)}, a soup needs at least two"

    @rule
    def _has_searches(self) -> Iterator[str]:
        if not self.searches:
            yield "searches: found none, expected at least one {name: …}"

    @rule
    def _guards_have_a_base(self) -> Iterator[str]:
        if self.guards and self.base is None:
            yield (
                "base: missing; guards say how much a soup may be worse than the model that its"
                " ingredients were tuned from, so name that model"
            )
        if self.base is not None and not self.guards:
            yield "base: found a model, but no guards that compare with it"
