"""How many pictures and turns a sample has, and where the pictures stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from consomme.base.sample import Sample
from consomme.curate.tag.tagger import TAGGERS, ModelOpener, TagColumns, TagFunction, TaggerInput


@TAGGERS.register("layout")
@dataclass(frozen=True, kw_only=True)
class Layout:
    """Number of pictures and turns, and what they make: text, caption, conversation or document.

    Nothing is decoded. Useful to filter samples of each layout separately, and to limit pictures.
    """

    model: ClassVar[str] = ""
    needs_pictures: ClassVar[bool] = False
    data_version: ClassVar[str] = ""

    @property
    def columns(self) -> Mapping[str, pa.DataType]:
        """Return two numbers and a name."""
        return {"num_images": pa.int32(), "num_turns": pa.int32(), "layout": pa.string()}

    def open(self, open_model: ModelOpener) -> TagFunction:
        """Need nothing."""
        del open_model

        def tag(inputs: Sequence[TaggerInput]) -> TagColumns:
            samples = [item.sample for item in inputs]
            return TagColumns(
                columns={
                    "num_images": [len(sample.images) for sample in samples],
                    "num_turns": [len(sample.turns) for sample in samples],
                    "layout": [layout_of(sample) for sample in samples],
                },
                problems={},
            )

        return tag


def layout_of(sample: Sample) -> str:
    """Return `text` without pictures, `caption`, `document`, or else `conversation`."""
    if not sample.images:
        return "text"
    if sample.is_document:
        return "document"
    return "caption" if len(sample.turns) == 1 else "conversation"
