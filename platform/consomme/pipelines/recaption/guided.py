"""Guide the model that captions by regions of the images, if the recipe says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from consomme.execution.stage import DecodedSample

if TYPE_CHECKING:
    from consomme.engines.contrast import Contrast
    from consomme.engines.generation.requests import GenerationFailure
    from consomme.vision.guidance import Guidance


@dataclass(frozen=True, kw_only=True)
class GuidedSamples:
    """What guides the captions of a unit's samples."""

    contrasts: Mapping[int, Contrast] = field(default_factory=dict)
    """Number of a sample with a masked region -> its images without, all of them."""

    problems: Mapping[int, GenerationFailure] = field(default_factory=dict)
    """Number of a sample -> why its regions cannot be known."""

    def contrast(self, number: int, indices: Sequence[int]) -> Contrast | None:
        """Return the contrast of a request about some of a sample's images."""
        from consomme.engines.contrast import Contrast

        found = self.contrasts.get(number)
        if found is None:
            return None
        return Contrast(alpha=found.alpha, images=tuple(found.images[k] for k in indices))

    def is_masked(
        self, number: int, images: Sequence[Any], groups: Sequence[Sequence[int]]
    ) -> bool:
        """Whether an image that the model is shown has a masked region."""
        found = self.contrasts.get(number)
        shown = [index for indices in groups for index in indices]
        return found is not None and any(found.images[k] is not images[k] for k in shown)


class CaptionGuide:
    """Finds the regions that guide captions; of a recipe without guidance, none."""

    def __init__(self, guidance: Guidance | None, engine: Any) -> None:
        """Open what finds regions.

        Args:
            guidance: Of the recipe.
            engine: Writes the model's own boxes, if these are asked for.
        """
        self.guidance = guidance
        if guidance is not None:
            from consomme.engines.regions import open_finder

            self.finder = open_finder(guidance, lambda: engine)

    def __call__(self, samples: Mapping[int, DecodedSample]) -> GuidedSamples:
        """Find the regions of samples; what their texts name is what a detector looks for."""
        if self.guidance is None:
            return GuidedSamples()
        from consomme.engines.contrast import Contrast
        from consomme.engines.generation.requests import GenerationFailure
        from consomme.engines.regions import RegionProblem, RegionQuestion, find_contrasts

        questions = [
            RegionQuestion(
                images=tuple(item.images),
                text="\n".join(t.text for t in item.sample.turns if t.role == "assistant"),
                meta=item.sample.meta,
            )
            for item in samples.values()
        ]
        found = dict(
            zip(samples, find_contrasts(self.guidance, self.finder, questions), strict=True)
        )
        return GuidedSamples(
            contrasts={n: one for n, one in found.items() if isinstance(one, Contrast)},
            problems={
                n: GenerationFailure(reason=one.reason, detail=one.detail)
                for n, one in found.items()
                if isinstance(one, RegionProblem)
            },
        )
