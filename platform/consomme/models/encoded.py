"""Token ids, masks and pixels of a conversation: what a model gets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from consomme.base.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """One picture as its model wants it."""

    inputs: Mapping[str, Tensor]
    """`pixel_values` and what belongs to it; the first dimension counts pictures or patches."""

    num_tokens: int
    """Placeholder tokens it takes in the text."""

    @property
    def num_values(self) -> int:
        """Numbers in it, a measure of the work it is."""
        return sum(value.numel() for value in self.inputs.values())

    def to(self, dtype: torch.dtype) -> Pixels:
        """Round what is no whole number, as the model that looks at it would."""
        rounded = {
            name: value.to(dtype) if value.is_floating_point() else value
            for name, value in self.inputs.items()
        }
        return dataclasses.replace(self, inputs=rounded)


@dataclass(frozen=True, kw_only=True)
class EncodedChat:
    """One conversation in tokens."""

    input_ids: list[int]
    spans: list[tuple[int, int]]
    """Tokens of each assistant turn: first, and one after the last. The token that ends the turn is
    one of them, where the template has one."""

    token_types: list[int] = field(default_factory=list)
    """What kind each token is, for families that ask."""

    pixels: Pixels | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens the assistant spoke."""
        return sum(end - begin for begin, end in self.spans)


@dataclass(frozen=True, kw_only=True)
class EncodedPrompt:
    """One conversation in tokens, up to where the assistant begins to speak."""

    input_ids: list[int]
    token_types: list[int]
    """What kind each token is, for families that ask."""

    pixels: Pixels | None = None


class PictureRefusedError(DataError):
    """A model's own processor does not take a picture."""


def pad_and_join(parts: Sequence[Tensor]) -> Tensor:
    """Join tensors along their first dimension; smaller ones are padded with zeros to the largest.

    So are pictures of different sizes put together by the families' own processors.
    """
    largest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    padded = []
    for part in parts:
        if list(part.shape[1:]) == largest:
            padded.append(part)
            continue
        whole = part.new_zeros((part.shape[0], *largest))
        whole[tuple(slice(0, size) for size in part.shape)] = part
        padded.append(whole)
    return torch.cat(padded)
