"""What a recipe of `evaluate` may say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from consomme.base.schema import runtime, strategy


@dataclass(frozen=True, kw_only=True)
class EvaluateRecipe:
    """Which models are measured on what."""

    name: str
    """Name of the run."""

    models: dict[str, str]
    """Label -> model: a Hugging Face folder, a run folder, or `package://models/nano`."""

    benchmarks: tuple[dict[str, Any], ...] = strategy("consomme.evaluate.benchmarks:BENCHMARKS")
    """What they are measured on; see consomme/evaluate/benchmarks.py."""

    root: str = runtime("runs")
    """Where run folders are made: a local path or a URL."""

    num_actors: int | None = runtime(None)
    """Actors; None takes one per GPU, or one per CPU."""


def benchmark_name(node: Mapping[str, Any]) -> str:
    """Name a benchmark in tables: its registered name and what tells it from others."""
    marks = [str(node[key]) for key in ("style",) if key in node]
    if node.get("kinds"):
        marks.append("+".join(node["kinds"]))
    return "_".join([str(node["name"]), *marks, *(["blank"] if node.get("blank") else [])])
