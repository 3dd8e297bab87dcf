"""Find how pictures look to a VLM: one vector each, from its own vision encoder and projector.

One decision is made here: a vector is the mean of the picture's tokens as the language model would
get them, scaled to length 1. So it needs no other model, and any family that consomme scores with
embeds: however many tiles and tokens it makes of a picture, the width is the same.
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
from consomme.models.encoded import PictureRefusedError, Pixels

# Shapes: T picture tokens of all pictures, W width of the language model.

_TURNS = (Turn(role="user", content="a"), Turn(role="assistant", content="a"))
"""Processors prepare pictures as a part of something said. What it is makes no difference."""


class PictureEmbedder:
    """Embeds pictures with an open model, such as a scorer's, so that it is loaded once."""

    def __init__(
        self, model: Any, chat: ChatEncoder | PrefixChatEncoder, *, batch_values: int = 1 << 20
    ) -> None:
        """Look at the model.

        Args:
            model: A VLM in eval mode.
            chat: Its chat, which prepares pictures.
            batch_values: Numbers in the prepared pictures of one batch; bounds memory.

        Raises:
            CheckpointError: It is a language model without eyes.
        """
        if not chat.has_vision:
            raise CheckpointError(
                f"{type(model).__name__} is a language model without eyes and cannot embed"
                " pictures; expected the folder of a VLM"
            )
        self.chat, self.batch_values = chat, batch_values
        self.vision_cache = VisionFeatureCache(model, batch_values)

    def embed(self, pictures: Sequence[Image.Image]) -> list[NDArray[np.float32] | NotScored]:
        """Embed pictures, some at a time, in their order.

        Returns:
            For each picture a vector (W,) of length 1, or why there is none.
        """
        found: dict[int, NDArray[np.float32] | NotScored] = {}
        batch: dict[int, Pixels] = {}
        size = 0
        for number, picture in enumerate(pictures):
            try:
                pixels = self.chat.encode(_TURNS, picture).pixels
            except PictureRefusedError as error:
                found[number] = NotScored(reason="image_not_encodable", detail=str(error))
                continue
            assert pixels is not None
            if batch and size + pixels.num_values > self.batch_values:
                found |= self._embed(batch)
                batch, size = {}, 0
            batch[number] = pixels
            size += pixels.num_values
        found |= self._embed(batch)
        return [found[number] for number in range(len(pictures))]

    def _embed(self, batch: Mapping[int, Pixels]) -> dict[int, NDArray[np.float32]]:
        vectors = {}
        for number, (tokens_TW, *_) in self.vision_cache.encode(batch).items():
            mean_W = tokens_TW.float().mean(dim=0)
            vectors[number] = (mean_W / mean_W.norm()).cpu().numpy()
        return vectors
