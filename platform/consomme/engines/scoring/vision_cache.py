"""Encode images with a VLM's own vision encoder once, and feed the features to its language model.

What families return differently (one tensor or several, grids, features for deeper layers) is split
image by image, and joined again for any choice of images.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from consomme.base.errors import CheckpointError
from consomme.engines.memory import batch_by_budget, halve_on_oom
from consomme.models.encoded import Pixels, pad_and_join

# Shapes: W width of the language model.


class VisionFeatureCache:
    """Computes an open VLM's image features apart from its language model."""

    def __init__(self, model: Any, batch_values: int) -> None:
        """Inspect the model's `get_image_features` and `forward`.

        Args:
            model: A VLM in eval mode.
            batch_values: Maximum numbers in the prepared images of one batch; bounds memory.

        Raises:
            CheckpointError: Its `forward` does not accept image features.
        """
        self.model, self.batch_values = model, batch_values
        base: Any = getattr(model, "model", model)
        self.base_model = base if hasattr(base, "get_image_features") else model
        self._forward_args = frozenset(inspect.signature(self.base_model.forward).parameters)
        get_features = getattr(self.base_model, "get_image_features", None)
        if get_features is None or "mm_encoder_outputs" not in self._forward_args:
            raise CheckpointError(
                f"{type(model).__name__} does not accept image features that were computed before"
            )
        self._encoder_args = frozenset(inspect.signature(inspect.unwrap(get_features)).parameters)

    @torch.inference_mode()
    def encode(self, images: Mapping[Any, Pixels]) -> dict[Any, list[Tensor]]:
        """Encode each image once.

        Returns:
            For each key its image tokens (tokens, W), and features of the same shape for deeper
            layers, in families that have them.
        """
        features: dict[Any, list[Tensor]] = {}
        keys = list(images)
        sizes = [images[key].num_values for key in keys]
        for batch in batch_by_budget(sizes, self.batch_values):
            batch_keys = [keys[k] for k in batch]
            parts = halve_on_oom(self._encode_batch, [images[key] for key in batch_keys])
            features |= dict(zip(batch_keys, parts, strict=True))
        return features

    def _encode_batch(self, pixels: Sequence[Pixels]) -> list[list[Tensor]]:
        names = [name for name in pixels[0].inputs if name in self._encoder_args]
        inputs = {name: pad_and_join([one.inputs[name] for one in pixels]) for name in names}
        device, dtype = self.model.device, self.model.dtype
        inputs = {
            name: value.to(device, dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }
        output = self.base_model.get_image_features(**inputs, return_dict=True)
        streams = [_flatten(output.pooler_output)]
        streams += [_flatten(deep) for deep in getattr(output, "deepstack_features", None) or []]
        counts = [one.num_tokens for one in pixels]
        split = [torch.split(stream, counts) for stream in streams]
        self._template = output
        return [list(parts) for parts in zip(*split, strict=True)]

    def other_inputs(self, pixels: Sequence[Pixels]) -> dict[str, Tensor]:
        """Return the inputs of `forward` about images besides their pixels, such as grids."""
        wanted = self._forward_args - {"pixel_values", "pixel_attention_mask"}
        names = [name for name in pixels[0].inputs if name in wanted]
        return {name: pad_and_join([one.inputs[name] for one in pixels]) for name in names}

    def join(self, features: Sequence[list[Tensor]]) -> Any:
        """Join the features of some images into an output like that of the family's encoder."""
        streams = [torch.cat(stream) for stream in zip(*features, strict=True)]
        output = copy.copy(self._template)
        pooler_output = self._template.pooler_output
        if isinstance(pooler_output, Tensor):
            output.pooler_output = streams[0].reshape(-1, *pooler_output.shape[1:])
        else:
            output.pooler_output = [streams[0]]
        if len(streams) > 1:
            output.deepstack_features = [[stream] for stream in streams[1:]]
        return output


def _flatten(features: Any) -> Tensor:
    """Concatenate image tokens: (tokens, W)."""
    whole = features if isinstance(features, Tensor) else torch.cat(list(features))
    return whole.reshape(-1, whole.shape[-1])
