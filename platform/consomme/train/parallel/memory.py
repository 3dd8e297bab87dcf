"""The words in which a parallelism answers what it takes: tensors of a model, and bytes by kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

WEIGHTS, GRADIENTS, OPTIMIZER = "weights", "gradients", "optimizer"
BUFFERS, ACTIVATIONS = "buffers", "activations"
EXACT = (WEIGHTS, GRADIENTS, OPTIMIZER)
"""Kinds that follow from shapes alone; the others are estimates."""

FLOAT_BYTES = 4
"""Bytes of a weight and of a gradient: both are float32 in every precision."""

MOMENT_BYTES = 8
"""Bytes of AdamW's two moments of one parameter."""


class Bytes(NamedTuple):
    """Memory of one rank. Without a GPU, device and host are the same memory."""

    device: int = 0
    host: int = 0

    @property
    def total(self) -> int:
        """Device and host memory together."""
        return self.device + self.host


@dataclass(frozen=True, kw_only=True)
class ModelTensors:
    """Sizes of the tensors of a model, as far as sharding depends on them; one entry per tensor."""

    sizes: tuple[int, ...]
    """Number of elements."""

    rows: tuple[int, ...]
    """Length of the first dimension, which FSDP2 shards."""

    is_trained: tuple[bool, ...]
    layer: tuple[int | None, ...]
    """Layer of the language model; None outside."""

    group: tuple[int | None, ...]
    """Index of the optimizer's parameter group; None for frozen tensors."""

    @property
    def num_trained(self) -> int:
        """Elements that receive updates."""
        return sum(
            size for size, trained in zip(self.sizes, self.is_trained, strict=True) if trained
        )

    @property
    def num_elements(self) -> int:
        """All elements, adapters included."""
        return sum(self.sizes)
