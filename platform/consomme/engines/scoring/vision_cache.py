"""Encode pictures with a VLM's own vision encoder, once, and hand them to its language model later.

One decision is made here: what families give differently (one tensor or several, grids, what deeper
layers get) is taken apart picture by picture, and put together again for any choice of pictures.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from consomme.base.errors import CheckpointError
from consomme.engines.memory import groups, halving
from consomme.models.encoded import Pixels, pad_and_join

# Shapes: W width of the language model.


class VisionFeatureCache:
    """The part of an open VLM that looks."""

    def __init__(self, model: Any, batch_values: int) -> None:
        """Look at the model.

        Args:
            model: A VLM in eval mode.
            batch_values: Numbers in the prepared pictures of one batch; bounds memory.

        Raises:
            CheckpointError: It is none that can be given pictures that were encoded before.
        """
        self.model, self.body, self.batch_values = model, model.model, batch_values
        self._body_takes = frozenset(inspect.signature(self.body.forward).parameters)
        look = getattr(self.body, "get_image_features", None)
        if look is None or "mm_encoder_outputs" not in self._body_takes:
            raise CheckpointError(
                f"{type(model).__name__} cannot be given pictures that were encoded before; it is"
                " no family that consomme scores with"
            )
        self._takes = frozenset(inspect.signature(inspect.unwrap(look)).parameters)

    @torch.inference_mode()
    def encode(self, pictures: Mapping[Any, Pixels]) -> dict[Any, list[Tensor]]:
        """Encode each picture once.

        Returns:
            By picture: its tokens (tokens, W), and what deeper layers get, for families that have
            it.
        """
        found: dict[Any, list[Tensor]] = {}
        keys = list(pictures)
        weights = [(k, pictures[key].num_values) for k, key in enumerate(keys)]
        for group in groups(weights, self.batch_values):
            chosen = [keys[k] for k in group]
            parts = halving(self._look, [pictures[key] for key in chosen])
            found |= dict(zip(chosen, parts, strict=True))
        return found

    def _look(self, pixels: Sequence[Pixels]) -> list[list[Tensor]]:
        names = [name for name in pixels[0].inputs if name in self._takes]
        inputs = {name: pad_and_join([one.inputs[name] for one in pixels]) for name in names}
        device, dtype = self.model.device, self.model.dtype
        inputs = {
            name: value.to(device, dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }
        output = self.body.get_image_features(**inputs, return_dict=True)
        streams = [_flat(output.pooler_output)]
        streams += [_flat(deep) for deep in getattr(output, "deepstack_features", None) or []]
        counts = [one.num_tokens for one in pixels]
        split = [torch.split(stream, counts) for stream in streams]
        self._example = output
        return [list(parts) for parts in zip(*split, strict=True)]

    def beside(self, pixels: Sequence[Pixels]) -> dict[str, Tensor]:
        """Return what the language model wants to know of pictures, such as their grids."""
        wanted = self._body_takes - {"pixel_values", "pixel_attention_mask"}
        names = [name for name in pixels[0].inputs if name in wanted]
        return {name: pad_and_join([one.inputs[name] for one in pixels]) for name in names}

    def joined(self, parts: Sequence[list[Tensor]]) -> Any:
        """Put the tokens of some pictures together as the family's own encoder would."""
        streams = [torch.cat(stream) for stream in zip(*parts, strict=True)]
        output = copy.copy(self._example)
        like = self._example.pooler_output
        first = streams[0]
        if isinstance(like, Tensor):
            output.pooler_output = first.reshape(-1, *like.shape[1:])
        else:
            output.pooler_output = [first]
        if len(streams) > 1:
            output.deepstack_features = [[stream] for stream in streams[1:]]
        return output


def _flat(value: Any) -> Tensor:
    """Lay out picture tokens one below the other: (tokens, W)."""
    whole = value if isinstance(value, Tensor) else torch.cat(list(value))
    return whole.reshape(-1, whole.shape[-1])
