"""Batch conversations with a common prefix as prefix trees: the model computes the prefix once.

All captions of one image share a prefix, its image tokens and prompt; all captions without an image
share their prompt. A token attends to its prefix and to earlier tokens of its own suffix, never to
another suffix, so each caption gets the score that it would get alone. The length of a row is
limited, because the cost of attention grows with its square.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from consomme.engines.scoring.requests import EncodedConversation, MaskedImages
from consomme.models.encoded import Pixels, pad_token_inputs

# Shapes: B rows, T token positions, A position axes: 1, or 3 with multimodal RoPE.

_PAD_ID = 0
_PREFIX, _PADDING = 0, -1
"""Values of `segment_BT`; suffixes count from 1."""


@dataclass(kw_only=True)
class Suffix:
    """What follows a prefix; conversations with equal tokens share one suffix."""

    ids: tuple[int, ...]
    token_inputs: Mapping[str, Tensor]
    """Further inputs of its tokens, (tokens, ...) each."""

    spans: list[tuple[int, int]]
    """Scored tokens, counted from the beginning of the conversation."""

    indices: list[int] = field(default_factory=list)
    """Indices of the conversations."""


@dataclass(kw_only=True)
class PrefixTree:
    """A prefix and its suffixes: one row of a batch."""

    ids: tuple[int, ...]
    """Token ids of the prefix."""

    types: tuple[int, ...]
    token_inputs: Mapping[str, Tensor]
    """Further inputs of its tokens, (tokens, ...) each."""

    image_keys: tuple[object, ...]
    images: tuple[Pixels, ...]
    """Of the whole conversation, each prepared alone."""

    suffixes: list[Suffix]

    has_late_images: bool = False
    """Whether an image stands in its only suffix; its positions are the family's own then."""

    masked: MaskedImages | None = None
    """What the second branch of all its conversations sees, under guidance."""

    def __len__(self) -> int:
        """Return the number of tokens in the row."""
        return len(self.ids) + sum(len(suffix.ids) for suffix in self.suffixes)

    @property
    def is_single(self) -> bool:
        """Whether it has one suffix, so the row is a plain sequence."""
        return len(self.suffixes) == 1

    def masked_branch(self) -> PrefixTree:
        """Return the same row with masked images."""
        assert self.masked is not None
        tree = self._with(self.suffixes)
        tree.image_keys, tree.images = self.masked.image_keys, self.masked.chat.images
        tree.has_late_images = self.has_late_images
        return tree

    def halves(self) -> list[PrefixTree]:
        """Return two trees with the same prefix and half of the suffixes each."""
        half = len(self.suffixes) // 2
        return [self._with(self.suffixes[:half]), self._with(self.suffixes[half:])]

    def _with(self, suffixes: list[Suffix]) -> PrefixTree:
        return PrefixTree(
            ids=self.ids,
            types=self.types,
            token_inputs=self.token_inputs,
            image_keys=self.image_keys,
            images=self.images,
            suffixes=suffixes,
            masked=self.masked,
        )


@dataclass(frozen=True, kw_only=True)
class PrefixLimits:
    """Maximum length of a tree with several suffixes, in tokens."""

    max_tokens: int
    """Maximum tree length in tokens: this, or twice the prefix if that is longer."""

    window: int | None = None
    """Upper bound in any case: the model's sliding attention window, if it has one. Within it, a
    token attends to all tokens before it, in every layer."""

    def limit(self, prefix_length: int) -> int:
        """Return the maximum length of a tree with a prefix of this length."""
        limit = max(self.max_tokens, 2 * prefix_length)
        return limit if self.window is None else min(limit, self.window)


def build_trees(
    conversations: Sequence[EncodedConversation], limits: PrefixLimits | None
) -> list[PrefixTree]:
    """Group conversations with equal prefixes into trees.

    Args:
        conversations: In any order; trees are in the order of their first conversations.
        limits: Maximum length of a tree; None makes one tree of each conversation.
    """
    suffixes_of: dict[Any, dict[Any, Suffix]] = {}
    first_of: dict[Any, EncodedConversation] = {}
    for index, conversation in enumerate(conversations):
        chat = conversation.chat
        length = chat.spans[0][0]
        prefix = tuple(chat.input_ids[:length])
        suffix = Suffix(
            ids=tuple(chat.input_ids[length:]),
            token_inputs={name: value[length:] for name, value in chat.token_inputs.items()},
            spans=chat.spans,
        )
        is_shared = limits is not None and not chat.has_late_images
        masked = conversation.masked
        seen = (conversation.image_keys, masked and (masked.image_keys, masked.alpha))
        key = (*seen, prefix) if is_shared else index
        first_of.setdefault(key, conversation)
        suffixes = suffixes_of.setdefault(key, {})
        suffixes.setdefault((suffix.ids, *suffix.spans), suffix).indices.append(index)
    trees = []
    for key, suffixes in suffixes_of.items():
        first = first_of[key].chat
        length = first.spans[0][0]
        # Sorted, so that the order of conversations does not matter.
        ordered = sorted(suffixes.values(), key=lambda one: (len(one.ids), one.ids))
        for row in _split_into_rows(ordered, length, limits.limit(length) if limits else 0):
            trees.append(
                PrefixTree(
                    ids=tuple(first.input_ids[:length]),
                    types=tuple(first.token_types[:length]),
                    token_inputs={n: v[:length] for n, v in first.token_inputs.items()},
                    image_keys=first_of[key].image_keys,
                    images=first.images,
                    suffixes=row,
                    has_late_images=first.has_late_images,
                    masked=first_of[key].masked,
                )
            )
    return trees


def _split_into_rows(
    suffixes: Iterable[Suffix], prefix_length: int, max_length: int
) -> list[list[Suffix]]:
    rows: list[list[Suffix]] = []
    size = 0
    for suffix in suffixes:
        if rows and size + len(suffix.ids) <= max_length:
            rows[-1].append(suffix)
            size += len(suffix.ids)
        else:
            rows.append([suffix])
            size = prefix_length + len(suffix.ids)
    return rows


@dataclass(frozen=True, kw_only=True)
class TreeBatch:
    """Trees as the rows of a batch, and where their scored tokens are."""

    ids_BT: Tensor  # noqa: N815
    token_inputs: dict[str, Tensor]
    """Further inputs of tokens, (B, T, ...) each."""

    mask: Tensor
    """Attention mask: (B, T), 1 for tokens and 0 for padding, if every tree is single; else an
    additive mask (B, 1, T, T), 0 where a token attends."""

    positions: Tensor | None
    """(B, T), or (3, B, T) with multimodal RoPE; None if every tree is single."""

    rows: list[int]
    """Row of each scored token, suffix by suffix."""

    predictors: list[int]
    """Position of the token that predicts it."""

    labels: list[int]
    """Ids of the scored tokens."""

    counts: list[int]
    """Number of scored tokens of each suffix."""


def batch_trees(
    trees: Sequence[PrefixTree], image_positions: Callable[[PrefixTree], Tensor] | None
) -> TreeBatch:
    """Put trees into a batch, padded on the right.

    Args:
        trees: One per row.
        image_positions: Returns the positions (3, prefix length) of a prefix with images, for
            families with multimodal RoPE; None if positions are consecutive.
    """
    width = max(len(tree) for tree in trees)
    is_plain = all(tree.is_single for tree in trees)
    ids_BT = torch.full((len(trees), width), _PAD_ID)
    segment_BT = torch.full((len(trees), width), _PADDING)
    num_axes = 1 if image_positions is None else 3
    positions_ABT = torch.zeros((num_axes, len(trees), width), dtype=torch.long)
    rows, predictors, labels, counts = [], [], [], []
    for row, tree in enumerate(trees):
        prefix_length = len(tree.ids)
        ids = list(tree.ids)
        segment_BT[row, :prefix_length] = _PREFIX
        if not is_plain:
            prefix_positions = _prefix_positions(tree, image_positions)
            positions_ABT[:, row, :prefix_length] = prefix_positions
            next_position = int(prefix_positions.max()) + 1 if prefix_length else 0
        for number, suffix in enumerate(tree.suffixes):
            begin, length = len(ids), len(suffix.ids)
            ids += suffix.ids
            segment_BT[row, begin : begin + length] = number + 1
            if not is_plain:
                positions_ABT[:, row, begin : begin + length] = torch.arange(
                    next_position, next_position + length
                )
            scored = [
                t
                for first, last in suffix.spans
                for t in range(first - prefix_length, last - prefix_length)
            ]
            rows += [row] * len(scored)
            # The first token of a suffix is predicted from the last one of the prefix.
            predictors += [begin + t - 1 if t else prefix_length - 1 for t in scored]
            labels += [suffix.ids[t] for t in scored]
            counts.append(len(scored))
        ids_BT[row, : len(ids)] = torch.tensor(ids)
    if is_plain:
        mask, positions = (segment_BT != _PADDING).long(), None
    else:
        mask = _tree_mask(segment_BT)
        positions = positions_ABT if num_axes == 3 else positions_ABT[0]
    return TreeBatch(
        ids_BT=ids_BT,
        token_inputs=pad_token_inputs([_token_inputs(tree) for tree in trees], width),
        mask=mask,
        positions=positions,
        rows=rows,
        predictors=predictors,
        labels=labels,
        counts=counts,
    )


def _token_inputs(tree: PrefixTree) -> dict[str, Tensor]:
    """Join the further inputs of a prefix and its suffixes, which all have the same names."""
    return {
        name: torch.cat([value, *(suffix.token_inputs[name] for suffix in tree.suffixes)])
        for name, value in tree.token_inputs.items()
    }


def _prefix_positions(
    tree: PrefixTree, image_positions: Callable[[PrefixTree], Tensor] | None
) -> Tensor:
    if image_positions is None or not tree.images:
        return torch.arange(len(tree.ids))[None]
    return image_positions(tree)


def _tree_mask(segment_BT: Tensor) -> Tensor:
    """Return the additive attention mask of trees: (B, 1, T, T), float32."""
    width = segment_BT.shape[1]
    key_B1T, query_BT1 = segment_BT[:, None, :], segment_BT[:, :, None]
    causal_TT = torch.ones((width, width), dtype=torch.bool).tril()
    # Padding attends to the prefix, so that no row of the softmax is empty.
    attends_BTT = causal_TT & ((key_B1T == _PREFIX) | (key_B1T == query_BT1))
    mask_BTT = torch.zeros(attends_BTT.shape)
    return mask_BTT.masked_fill_(~attends_BTT, torch.finfo(torch.float32).min)[:, None]
