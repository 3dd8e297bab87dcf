"""Embed images with a VLM's own vision encoder and projector: one vector per image.

A vector is the mean of the image's tokens as the language model would get them, scaled to length 1.
So no other model is needed, and any family that consomme scores with embeds: however many tiles and
tokens an image has, the width is the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from consomme.base.errors import CheckpointError
from consomme.base.sample import Turn
from consomme.engines.scoring.requests import NotScored
from consomme.engines.scoring.vision_cache import VisionFeatureCache
from consomme.models.chat import ChatEncoder
from consomme.models.chat_prefix import PrefixChatEncoder
from consomme.models.encoded import ImageRefusedError, Pixels

# Shapes: T image tokens, W width of the language model.

_TURNS = (Turn(role="user", content="a"), Turn(role="assistant", content="a"))
"""Processors prepare images as a part of a conversation; its text makes no difference."""


class ImageEmbedder:
    """Embeds images with an open model, such as a scorer's, so that it is loaded once."""

    def __init__(
        self, model: Any, chat: ChatEncoder | PrefixChatEncoder, *, batch_values: int = 1 << 20
    ) -> None:
        """Wrap a model.

        Args:
            model: A VLM in eval mode.
            chat: Its encoder of conversations, which prepares images.
            batch_values: Maximum numbers in the prepared images of one batch; bounds memory.

        Raises:
            CheckpointError: It has no vision encoder.
        """
        if not chat.has_vision:
            raise CheckpointError(
                f"{type(model).__name__} has no vision encoder and cannot embed images; expected"
                " the folder of a VLM"
            )
        self.chat, self.batch_values = chat, batch_values
        self.vision_cache = VisionFeatureCache(model, batch_values)

    def embed(self, images: Sequence[Image.Image]) -> list[NDArray[np.float32] | NotScored]:
        """Embed images in batches, in their order.

        Returns:
            For each image a vector (W,) of length 1, or why there is none.
        """
        results: dict[int, NDArray[np.float32] | NotScored] = {}
        batch: dict[int, Pixels] = {}
        size = 0
        for index, image in enumerate(images):
            try:
                pixels = self.chat.encode(_TURNS, [image]).pixels
            except ImageRefusedError as error:
                results[index] = NotScored(reason="image_not_encodable", detail=str(error))
                continue
            assert pixels is not None
            if batch and size + pixels.num_values > self.batch_values:
                results |= self._embed_batch(batch)
                batch, size = {}, 0
            batch[index] = pixels
            size += pixels.num_values
        results |= self._embed_batch(batch)
        return [results[index] for index in range(len(images))]

    def _embed_batch(self, batch: Mapping[int, Pixels]) -> dict[int, NDArray[np.float32]]:
        vectors = {}
        for index, (tokens_TW, *_) in self.vision_cache.encode(batch).items():
            mean_W = tokens_TW.float().mean(dim=0)
            vectors[index] = (mean_W / mean_W.norm()).cpu().numpy()
        return vectors
