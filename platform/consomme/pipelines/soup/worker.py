"""Score candidate soups in a Ray actor: average in memory, then run the benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from consomme.soup.ingredients import open_ingredient
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.model_folder import model_folder

SCORE = "score"
"""Key of a report: the main figure of the benchmark."""


class CandidateRunner:
    """Scores one candidate soup per trial; the engine stays loaded between trials."""

    def __init__(
        self,
        models: Sequence[str],
        benchmark: Mapping[str, Any],
        *,
        model_hash: str,
        run_folder: RunFolder,
    ) -> None:
        """Load the engine, and check it with the first ingredient; all have one architecture.

        Args:
            models: All ingredients, as `model_folder` takes them on any machine.
            benchmark: Registry node of the held-out set.
            model_hash: Of the content of the first ingredient.
            run_folder: Of the run; the first actor writes the result of its self-check there.
        """
        from consomme.engines.generation.transformers import TransformersEngine
        from consomme.evaluate.benchmarks import BENCHMARKS

        folders = [model_folder(model) for model in models]
        self.engine = TransformersEngine(folders[0], dtype="float32", model_hash=model_hash)
        run_folder.keep_self_check(self.engine)
        self.ingredients = [open_ingredient(folder, folder) for folder in folders]
        self.benchmark = BENCHMARKS.build(benchmark)
        self.selection: list[int] = []

    def start(self, config: dict[str, Any]) -> None:
        """Take the selection of ingredients to score from `config["selection"]`."""
        self.selection = config["selection"]

    def step(self) -> dict[str, Any]:
        """Average the selected ingredients and measure the result."""
        from consomme.engines.generation.requests import Request
        from consomme.evaluate.benchmark import HasData, parts_of
        from consomme.soup.mixing import average_ingredients

        chosen = [self.ingredients[k] for k in self.selection]
        self.engine.load_weights(dict(average_ingredients(chosen)))
        answers: list[str] = []
        for part in parts_of(self.benchmark):
            requests = (Request(turns=one.turns, images=tuple(one.images)) for one in part.items())
            answers += self.engine.answer(
                requests, part.max_tokens, skips_refused=isinstance(part, HasData)
            )
        figures = self.benchmark.measure(answers)
        return {SCORE: next(iter(figures.values())), "done": True}

    def stop(self) -> None:
        """Keep the engine for the next trial."""
