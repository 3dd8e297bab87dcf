"""An image for passes that have none, so that every rank runs the vision encoder in every pass.

Ranks communicate about the parameters that a pass uses: ZeRO-3 gathers them, and all parallelisms
reduce the gradients of those that are trained. A rank whose samples have no image would leave the
others waiting. It gets a small image after the end of its shortest sample: no token before it
attends to it, and it has no label, so loss and gradients stay what they are, and those of the
vision encoder are zero. Where a family attends to later tokens, the image has a row of its own;
where even another row makes a difference, all ranks run their texts in the same passes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from consomme.base.errors import DataError
from consomme.models import selfcheck
from consomme.models.attention import longest_alike, max_positions
from consomme.models.encoded import EncodedChat

AFTER, OWN_ROW, OWN_PASS = "an image after a text", "an image in another row", "texts on their own"
"""How passes without an image get one, fastest first."""


@dataclass(frozen=True, kw_only=True)
class Filler:
    """An image of one model, for passes without one."""

    row: EncodedChat
    """A short unlabelled conversation about it."""

    way: str = AFTER
    """Where it stands; with `OWN_PASS`, it is added to no other sample."""

    max_tokens: int
    """Longest row that it may be added to."""

    is_in_every_pass: bool = True
    """Whether every pass without an image gets it; else the first pass of a step without any, so
    that the optimizer sees the same gradients as with several ranks."""

    has_row: bool = True
    """Whether it gets a row of its own if all rows are too long."""

    def passes(self, has_image: Sequence[bool]) -> set[int]:
        """Return the passes of a step to which the image is added.

        Args:
            has_image: Whether each pass of this rank has an image.
        """
        if self.way == OWN_PASS:
            return set()
        if self.is_in_every_pass:
            return {number for number, has in enumerate(has_image) if not has}
        return set() if any(has_image) else {0}

    def added_to(self, rows: Sequence[EncodedChat]) -> list[EncodedChat]:
        """Add the image to rows that are padded to a batch and have none.

        Raises:
            DataError: All rows are too long, and no other row can be in their batch.
        """
        if self.way == OWN_PASS:
            return list(rows)
        if self.way == OWN_ROW:
            return [*rows, self.row]
        shortest = min(range(len(rows)), key=lambda k: len(rows[k].input_ids))
        room = self.max_tokens - len(self.row.input_ids)
        if len(rows[shortest].input_ids) <= room:
            changed = list(rows)
            changed[shortest] = _joined(rows[shortest], self.row)
            return changed
        if self.has_row:
            return [*rows, self.row]
        raise DataError(
            f"a sample without an image has {len(rows[shortest].input_ids)} tokens, and"
            f" {len(self.row.input_ids)} of an image that every pass needs are too many for the"
            f" {self.max_tokens} of the model; set max_tokens to at most {room}"
        )


def make_filler(
    chat: Any,
    config: Any,
    way: str = AFTER,
    *,
    is_in_every_pass: bool = True,
    has_row: bool = True,
) -> Filler | None:
    """Make the filler of a model; None for a language model.

    Args:
        chat: The model's encoder of conversations.
        config: The model's.
        way: As in `Filler`.
        is_in_every_pass: As in `Filler`.
        has_row: As in `Filler`.
    """
    if not chat.has_vision:
        return None
    probe = next(one for one in selfcheck.make_probes(has_vision=True) if one.images)
    limits = (max_positions(config), longest_alike(config.get_text_config()))
    return Filler(
        row=dataclasses.replace(chat.encode(probe.turns, probe.images), spans=[]),
        way=way,
        max_tokens=min(limit for limit in limits if limit is not None),
        is_in_every_pass=is_in_every_pass,
        has_row=has_row,
    )


def _joined(row: EncodedChat, filler: EncodedChat) -> EncodedChat:
    """Return a row with the filler's tokens after its own."""
    token_inputs = {}
    for name in dict.fromkeys([*row.token_inputs, *filler.token_inputs]):
        some = row.token_inputs.get(name, filler.token_inputs.get(name))
        assert some is not None
        pieces = [
            one.token_inputs.get(name, some.new_zeros((len(one.input_ids), *some.shape[1:])))
            for one in (row, filler)
        ]
        token_inputs[name] = torch.cat(pieces)
    return dataclasses.replace(
        row,
        input_ids=[*row.input_ids, *filler.input_ids],
        token_types=[*row.token_types, *filler.token_types],
        token_inputs=token_inputs,
        pixels=filler.pixels,
    )
