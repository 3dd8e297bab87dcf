"""How many pictures and turns a sample has, where the pictures stand, and how large they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pyarrow as pa

from consomme.base.sample import ImageFile, Sample
from consomme.curate.tag.tagger import (
    TAGGERS,
    ModelOpener,
    TagColumns,
    TagFunction,
    TaggerInput,
    TagProblem,
)
from consomme.vision.decode import DecodeProblem, upright_size


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


@TAGGERS.register("size")
@dataclass(frozen=True, kw_only=True)
class Size:
    """Width, height, aspect ratio and megabytes of the pictures, from their headers.

    No pixel is decoded. Width and height are those of the picture as it is shown, after EXIF
    orientation. Samples without pictures have no value.
    """

    images: Literal["limits", "first", "each"] = "limits"
    """What a sample of several pictures gets. `limits`: width and height of the picture with the
    shortest side, the largest aspect ratio, and the megabytes of all together, so that a filter
    with limits keeps samples all of whose pictures are within them. `first`: those of the first.
    `each`: lists, in order, which no filter can use."""

    model: ClassVar[str] = ""
    needs_pictures: ClassVar[bool] = False
    data_version: ClassVar[str] = ""

    @property
    def columns(self) -> Mapping[str, pa.DataType]:
        """Return pixels, the longer side over the shorter one, and millions of encoded bytes."""
        kinds = {
            "width": pa.int32(),
            "height": pa.int32(),
            "aspect": pa.float32(),
            "megabytes": pa.float32(),
        }
        return {k: pa.list_(v) for k, v in kinds.items()} if self.images == "each" else kinds

    def open(self, open_model: ModelOpener) -> TagFunction:
        """Need nothing."""
        del open_model
        return self._tag

    def _tag(self, inputs: Sequence[TaggerInput]) -> TagColumns:
        columns: dict[str, list[Any]] = {name: [] for name in self.columns}
        problems: dict[int, TagProblem] = {}
        for k, item in enumerate(inputs):
            files = item.sample.images[:1] if self.images == "first" else item.sample.images
            found = _sizes(files)
            if isinstance(found, TagProblem):
                problems[k], found = found, []
            for name, value in zip(columns, self._values(found, files), strict=True):
                columns[name].append(value)
        return TagColumns(columns=columns, problems=problems)

    def _values(
        self, sizes: Sequence[tuple[int, int]], files: Sequence[ImageFile]
    ) -> Sequence[Any]:
        """Return width, height, aspect ratio and megabytes; None if there is no picture."""
        if not sizes:
            return (None,) * 4
        megabytes = [len(file.data) / 1e6 for file in files]
        aspects = [max(size) / min(size) for size in sizes]
        if self.images == "each":
            widths, heights = zip(*sizes, strict=True)
            return widths, heights, aspects, megabytes
        return *min(sizes, key=min), max(aspects), sum(megabytes)


def _sizes(files: Sequence[ImageFile]) -> list[tuple[int, int]] | TagProblem:
    sizes = []
    for file in files:
        size = upright_size(file.data)
        if isinstance(size, DecodeProblem):
            about = f"{file.name}: " if len(files) > 1 else ""
            return TagProblem(reason=size.reason, detail=about + size.detail)
        sizes.append(size)
    return sizes
