"""The recipe of `soup`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from consomme.base.bounds import PositiveInt
from consomme.base.checked import Checked, rule
from consomme.base.schema import located, runtime, strategy
from consomme.storage.options import StorageOptions


@dataclass(frozen=True, kw_only=True)
class SoupRecipe(Checked):
    """Ingredients of a model soup, and how to choose among them."""

    name: str
    """Name of the run."""

    ingredients: dict[str, str] = located()
    """Label -> model: models fine-tuned from the same checkpoint."""

    benchmark: dict[str, Any] = strategy("consomme.evaluate.benchmarks:BENCHMARKS")
    """Held-out benchmark that decides which ingredients are used; report results on another one."""

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
