"""Conversations that begin alike, laid out as trees: what they share goes through the model once.

Two decisions are made here. All captions of one picture hang on one prefix, its picture and its
prompt; and all captions without a picture hang on their prompt alone. A token sees its prefix and
what stands before it on its own suffix, never another suffix, so each caption is scored as if it
stood alone. And a row is no longer than is cheap: attention costs what rows are long, squared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from consomme.engines.scoring.requests import EncodedConversation
from consomme.models.encoded import Pixels

# Shapes: B rows, T token positions.

_PAD = 0
_STEM, _NOTHING = 0, -1


@dataclass(kw_only=True)
class Suffix:
    """What follows a prefix, once for all passages that go on alike."""

    ids: tuple[int, ...]
    types: tuple[int, ...]
    spans: list[tuple[int, int]]
    """Spoken tokens, counted from the beginning of the conversation."""

    numbers: list[int] = field(default_factory=list)
    """Which passages."""


@dataclass(kw_only=True)
class PrefixTree:
    """A prefix and the suffixes on it: one row of a batch."""

    ids: tuple[int, ...]
    """Of the prefix."""

    types: tuple[int, ...]
    picture: object
    pixels: Pixels | None
    suffixes: list[Suffix]

    def __len__(self) -> int:
        """Count tokens."""
        return len(self.ids) + sum(len(suffix.ids) for suffix in self.suffixes)

    @property
    def is_plain(self) -> bool:
        """Whether it is one conversation as it stands."""
        return len(self.suffixes) == 1

    def halves(self) -> list[PrefixTree]:
        """Two trees with the same prefix and half of the suffixes each."""
        half = len(self.suffixes) // 2
        return [self._with(self.suffixes[:half]), self._with(self.suffixes[half:])]

    def _with(self, suffixes: list[Suffix]) -> PrefixTree:
        return PrefixTree(
            ids=self.ids,
            types=self.types,
            picture=self.picture,
            pixels=self.pixels,
            suffixes=suffixes,
        )


@dataclass(frozen=True, kw_only=True)
class PrefixLimits:
    """Limits of the length of a tree with several suffixes, in tokens."""

    cheap: int
    """Maximum tree length in tokens: this, or twice the prefix if that is longer."""

    most: int | None = None
    """Never longer: the window that attention looks through, where there is one."""

    def limit(self, prefix: int) -> int:
        """Say how long a tree with such a prefix may become."""
        limit = max(self.cheap, 2 * prefix)
        return limit if self.most is None else min(limit, self.most)


def build_trees(
    passages: Sequence[EncodedConversation], growth: PrefixLimits | None
) -> list[PrefixTree]:
    """Put passages on trees.

    Args:
        passages: In any order; trees come in the order of their first passages.
        growth: How long trees may become; None makes one tree of each passage.
    """
    grown: dict[Any, dict[Any, Suffix]] = {}
    firsts: dict[Any, EncodedConversation] = {}
    for number, passage in enumerate(passages):
        spoken = passage.spoken
        cut = spoken.spans[0][0]
        prefix = tuple(spoken.input_ids[:cut])
        suffix = Suffix(
            ids=tuple(spoken.input_ids[cut:]),
            types=tuple(spoken.token_types[cut:]),
            spans=spoken.spans,
        )
        key = (passage.picture, prefix) if growth is not None else number
        firsts.setdefault(key, passage)
        known = grown.setdefault(key, {})
        known.setdefault((suffix.ids, *suffix.spans), suffix).numbers.append(number)
    trees = []
    for key, suffixes in grown.items():
        first = firsts[key].spoken
        cut = first.spans[0][0]
        # In an order of their own, so that the order of passages does not matter.
        ordered = sorted(suffixes.values(), key=lambda one: (len(one.ids), one.ids))
        for some in _rows(ordered, cut, growth.limit(cut) if growth else 0):
            trees.append(
                PrefixTree(
                    ids=tuple(first.input_ids[:cut]),
                    types=tuple(first.token_types[:cut]),
                    picture=firsts[key].picture,
                    pixels=first.pixels,
                    suffixes=some,
                )
            )
    return trees


def _rows(suffixes: Iterable[Suffix], prefix: int, longest: int) -> list[list[Suffix]]:
    rows: list[list[Suffix]] = []
    size = 0
    for suffix in suffixes:
        if rows and size + len(suffix.ids) <= longest:
            rows[-1].append(suffix)
            size += len(suffix.ids)
        else:
            rows.append([suffix])
            size = prefix + len(suffix.ids)
    return rows


@dataclass(frozen=True, kw_only=True)
class TreeBatch:
    """Trees as the rows of a batch."""

    ids_BT: Tensor  # noqa: N815
    types_BT: Tensor  # noqa: N815

    mask: Tensor
    """(B, T) of ones where a token is, if every tree is plain; else (B, 1, T, T), to be added to
    attention: zero where a token may look."""

    positions: Tensor | None
    """(B, T), or (3, B, T) for families with three of them; None if every tree is plain."""

    rows: list[int]
    """Row of each spoken token, suffix by suffix."""

    predictors: list[int]
    """Place of the token it is predicted from."""

    labels: list[int]
    """The spoken tokens."""

    counts: list[int]
    """Spoken tokens of each suffix."""


def lay_out(
    trees: Sequence[PrefixTree], prefix_positions: Callable[[PrefixTree], Tensor] | None
) -> TreeBatch:
    """Lay trees out.

    Args:
        trees: One per row.
        prefix_positions: Positions (3, prefix) of a prefix with a picture, for families that have
            three; None if positions just count.
    """
    width = max(len(tree) for tree in trees)
    is_plain = all(tree.is_plain for tree in trees)
    ids_BT = torch.full((len(trees), width), _PAD)
    types_BT = torch.zeros((len(trees), width), dtype=torch.long)
    branch_BT = torch.full((len(trees), width), _NOTHING)
    axes = 1 if prefix_positions is None else 3
    positions_ABT = torch.zeros((axes, len(trees), width), dtype=torch.long)
    rows, predictors, labels, counts = [], [], [], []
    for row, tree in enumerate(trees):
        prefix = len(tree.ids)
        ids = list(tree.ids)
        types = list(tree.types)
        branch_BT[row, :prefix] = _STEM
        if not is_plain:
            first = _prefix(tree, prefix_positions)
            positions_ABT[:, row, :prefix] = first
            following = int(first.max()) + 1 if prefix else 0
        for number, suffix in enumerate(tree.suffixes):
            begin, length = len(ids), len(suffix.ids)
            ids += suffix.ids
            types += suffix.types
            branch_BT[row, begin : begin + length] = number + 1
            if not is_plain:
                positions_ABT[:, row, begin : begin + length] = torch.arange(
                    following, following + length
                )
            places = [
                t for first, last in suffix.spans for t in range(first - prefix, last - prefix)
            ]
            rows += [row] * len(places)
            # What follows the prefix is predicted from the prefix's last token.
            predictors += [begin + t - 1 if t else prefix - 1 for t in places]
            labels += [suffix.ids[t] for t in places]
            counts.append(len(places))
        ids_BT[row, : len(ids)] = torch.tensor(ids)
        types_BT[row, : len(types)] = torch.tensor(types)
    if is_plain:
        mask, positions = (branch_BT != _NOTHING).long(), None
    else:
        mask = _tree_mask(branch_BT)
        positions = positions_ABT if axes == 3 else positions_ABT[0]
    return TreeBatch(
        ids_BT=ids_BT,
        types_BT=types_BT,
        mask=mask,
        positions=positions,
        rows=rows,
        predictors=predictors,
        labels=labels,
        counts=counts,
    )


def _prefix(tree: PrefixTree, prefix_positions: Callable[[PrefixTree], Tensor] | None) -> Tensor:
    if prefix_positions is None or tree.pixels is None:
        return torch.arange(len(tree.ids))[None]
    return prefix_positions(tree)


def _tree_mask(branch_BT: Tensor) -> Tensor:
    """Say what each token may look at, as a number to be added: (B, 1, T, T), float32."""
    width = branch_BT.shape[1]
    key_B1T, query_BT1 = branch_BT[:, None, :], branch_BT[:, :, None]
    before_TT = torch.ones((width, width), dtype=torch.bool).tril()
    # Padding looks at the prefix, so that no row of the softmax is empty.
    sees_BTT = before_TT & ((key_B1T == _STEM) | (key_B1T == query_BT1))
    mask_BTT = torch.zeros(sees_BTT.shape)
    return mask_BTT.masked_fill_(~sees_BTT, torch.finfo(torch.float32).min)[:, None]
