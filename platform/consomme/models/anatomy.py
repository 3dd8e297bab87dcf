"""Find the three parts of a VLM, and the layers of its language model, by structure.

One decision is made here: parts are found by the type of module graph, not by a model's name, so
freezing, layer selection, soups and pruning all speak of the same layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from consomme.base.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """Where the parts of one model are."""

    vision_encoder: nn.Module
    projector: nn.Module
    layers: nn.ModuleList
    """The language model's layers, in order."""

    rest: tuple[tuple[str, nn.Parameter], ...]
    """Parameters in none of these: embeddings, final norm, head."""


def anatomy(model: Any) -> Anatomy:
    """Take a VLM apart, without changing it.

    Raises:
        CheckpointError: The model has no vision encoder, projector and stack of layers.
    """
    inner = getattr(model, "model", model)
    encoder = getattr(inner, "vision_tower", None)
    projector = getattr(inner, "multi_modal_projector", None)
    layers = getattr(getattr(inner, "language_model", None), "layers", None)
    if encoder is None or projector is None or not isinstance(layers, nn.ModuleList):
        raise CheckpointError(
            f"{type(model).__name__} is not a VLM whose parts consomme can find: expected"
            " vision_tower, multi_modal_projector and language_model.layers (LLaVA)"
        )
    taken = {id(p) for part in (encoder, projector, layers) for p in part.parameters()}
    rest = tuple((name, p) for name, p in model.named_parameters() if id(p) not in taken)
    return Anatomy(vision_encoder=encoder, projector=projector, layers=layers, rest=rest)
