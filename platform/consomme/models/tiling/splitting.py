"""Which option of a processor splits pictures, for training that splits some of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from consomme.base.errors import CheckpointError
from consomme.vision.tiling.registry import tiling_of
from consomme.vision.tiling.whole import SplitTiling


@dataclass(frozen=True, kw_only=True)
class SplitOption:
    """How a processor is told to split pictures, or not to."""

    name: str
    """Of the option of its image processor."""

    fraction: float | None = None
    """Share of the training samples that the processor itself names; None if it names none."""

    def value(self, *, is_split: bool) -> Mapping[str, Any]:
        """Return the option for one conversation."""
        return {self.name: is_split}


def split_option(processor: Any) -> SplitOption | None:
    """Return how a processor is told to split; None if it cannot be told.

    Args:
        processor: With consomme's tiling `split`; or of a family whose image processor has
            `do_image_splitting`, as those of Idefics2, Idefics3 and SmolVLM have.
    """
    images = getattr(processor, "image_processor", None)
    node = getattr(images, "tiling", None)
    if isinstance(node, Mapping):
        tiling = tiling_of(node)
        if isinstance(tiling, SplitTiling):
            return SplitOption(name="is_split", fraction=tiling.probability)
        return None
    if isinstance(getattr(images, "do_image_splitting", None), bool):
        return SplitOption(name="do_image_splitting")
    return None


def split_options_of(processor: Any, fraction: float | None) -> tuple[SplitOption, float] | None:
    """Return the option and the share of samples to split; None to split as the processor does.

    Args:
        processor: Of the model.
        fraction: That the recipe names, or None.

    Raises:
        CheckpointError: The recipe names one, and the processor cannot be told.
    """
    option = split_option(processor)
    if fraction is not None and option is None:
        raise CheckpointError(
            f"split_fraction: found {fraction}, but this model's {type(processor).__name__} cannot"
            " be told to split a picture; leave it out, or take a model with the tiling split, or"
            " of a family such as Idefics2 and SmolVLM"
        )
    share = option.fraction if option is not None and fraction is None else fraction
    return None if option is None or share is None else (option, share)
