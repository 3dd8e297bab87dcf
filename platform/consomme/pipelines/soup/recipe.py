"""What a recipe of `soup` may say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from consomme.base.schema import runtime, strategy


@dataclass(frozen=True, kw_only=True)
class SoupRecipe:
    """Which models are offered, and how the soup is chosen."""

    name: str
    """Name of the run."""

    ingredients: dict[str, str]
    """Label -> model: fine-tunes of one and the same start."""

    benchmark: dict[str, Any] = strategy("consomme.evaluate.benchmarks:BENCHMARKS")
    """Held-out set the choice is made by; report another one."""

    root: str = runtime("runs")
    """Where run folders are made: a local path or a URL."""

    searches: tuple[dict[str, Any], ...] = strategy(
        "consomme.soup.search:SEARCHES", default=({"name": "uniform"}, {"name": "greedy"})
    )
    """How to choose; the best result of them all becomes the soup."""

    num_actors: int | None = runtime(None)
    """Candidates scored at once; None takes one per GPU, or one per CPU."""
