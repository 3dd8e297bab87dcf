"""Guide the requests of a benchmark by regions, if it says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from consomme.evaluate.benchmark import guidance_of

if TYPE_CHECKING:
    from PIL import Image

    from consomme.engines.contrast import Contrast
    from consomme.engines.regions import RegionProblem
    from consomme.evaluate.benchmark import BenchmarkItem

AskedText = tuple["BenchmarkItem", "tuple[Image.Image, ...]", str]
"""A request, its images, and the text that names what regions are looked for."""


@dataclass
class Guide:
    """Finds the contrasts of one benchmark's requests, and counts them."""

    benchmark: Any
    open_writer: Callable[[], Any]
    """Opens the guided model, to write its own boxes."""

    num_guided: int = 0
    num_unguided: int = 0
    """Requests without a region, which the model answers as it is."""

    def __call__(self, asked: Sequence[AskedText]) -> list[Contrast | RegionProblem | None]:
        """Return the contrast of each request; None where the model is not guided."""
        from consomme.engines.regions import RegionQuestion, find_contrasts, open_finder

        guidance = guidance_of(self.benchmark)
        if guidance is None:
            return [None] * len(asked)
        questions = [
            RegionQuestion(images=images, text=text, meta=item.meta) for item, images, text in asked
        ]
        return find_contrasts(guidance, open_finder(guidance, self.open_writer), questions)

    def count(self, contrasts: Sequence[Any]) -> None:
        """Count a request by the contrasts of its answers; one whose boxes are wrong is neither."""
        from consomme.engines.contrast import Contrast

        self.num_guided += any(isinstance(one, Contrast) for one in contrasts)
        self.num_unguided += all(one is None for one in contrasts)

    @property
    def counts(self) -> dict[str, int]:
        """Return the numbers of requests that were guided, and that had no region; of a unit."""
        if guidance_of(self.benchmark) is None:
            return {}
        return {"guided": self.num_guided, "not_guided": self.num_unguided}
