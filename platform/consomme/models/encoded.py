"""Token ids, labelled spans and pixels of a conversation: what a model takes as input."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from consomme.base.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """One image, or all of a conversation, as its model's own processor prepares it."""

    inputs: Mapping[str, Tensor]
    """`pixel_values` and what belongs to it; the first dimension counts images or patches."""

    num_tokens: int
    """Image tokens (placeholders) it takes in the text."""

    @property
    def num_values(self) -> int:
        """Numbers in all tensors, a measure of the work of encoding it."""
        return sum(value.numel() for value in self.inputs.values())

    def to(self, dtype: torch.dtype) -> Pixels:
        """Cast floating-point tensors to the model's dtype; integers stay."""
        cast = {
            name: value.to(dtype) if value.is_floating_point() else value
            for name, value in self.inputs.items()
        }
        return dataclasses.replace(self, inputs=cast)


@dataclass(frozen=True, kw_only=True)
class EncodedChat:
    """One conversation in tokens."""

    input_ids: list[int]
    spans: list[tuple[int, int]]
    """Labelled tokens: for each labelled turn of the assistant its first token, and one after its
    last. The token that ends the turn is included, if the template has one. A text with images in
    it has a span for each text after the first of them."""

    token_types: list[int] = field(default_factory=list)
    """Type of each token, 1 for image tokens in most families; for positions of multimodal RoPE."""

    token_inputs: Mapping[str, Tensor] = field(default_factory=dict)
    """Further inputs of `forward` with a value for each token, (T, ...) each: all that the model's
    own tokenizer or processor gave, such as `token_type_ids`, and nothing else."""

    pixels: Pixels | None = None
    """All of its images, prepared together."""

    has_late_images: bool = False
    """Whether an image stands after the first labelled token."""

    images: tuple[Pixels, ...] = ()
    """Each of its images, prepared alone, in the order of their tokens; empty where a family
    prepares several images in another way than each alone."""

    @property
    def num_tokens(self) -> int:
        """Number of labelled tokens: those of the assistant's turns."""
        return sum(end - begin for begin, end in self.spans)


@dataclass(frozen=True, kw_only=True)
class EncodedPrompt:
    """One conversation in tokens, up to where the assistant's next turn begins."""

    input_ids: list[int]
    token_types: list[int]
    """Type of each token, as in `EncodedChat`."""

    token_inputs: Mapping[str, Tensor] = field(default_factory=dict)
    """As in `EncodedChat`."""

    pixels: Pixels | None = None


class ImageRefusedError(DataError):
    """A model's own processor does not accept an image."""


class LayoutRefusedError(DataError):
    """A model does not take this conversation with images where they stand."""


def refusal_reason(error: DataError) -> str:
    """Return the reject reason of a conversation that could not be encoded."""
    if isinstance(error, ImageRefusedError):
        return "image_not_encodable"
    if isinstance(error, LayoutRefusedError):
        return "conversation_unsupported"
    return "text_not_encodable"


def pad_token_inputs(
    rows: Sequence[Mapping[str, Tensor]], width: int, *, is_left: bool = False
) -> dict[str, Tensor]:
    """Pad the inputs that have a value for each token, with zeros.

    Args:
        rows: For each row of the batch its inputs, (T, ...) each; zero where a row has none.
        width: Length of the padded rows.
        is_left: Whether padding stands before the tokens.

    Returns:
        By name (B, width, ...).
    """
    padded = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        given = [row[name] for row in rows if name in row]
        largest = [max(sizes) for sizes in zip(*(one.shape[1:] for one in given), strict=True)]
        whole = given[0].new_zeros((len(rows), width, *largest))
        for number, row in enumerate(rows):
            if name in row:
                one = row[name]
                begin = width - len(one) if is_left else 0
                span = [slice(begin, begin + len(one)), *(slice(0, n) for n in one.shape[1:])]
                whole[number][tuple(span)] = one
        padded[name] = whole
    return padded


def pad_and_join(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate along the first dimension; smaller tensors are zero-padded to the largest.

    The families' own processors batch images of different sizes in the same way.
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
