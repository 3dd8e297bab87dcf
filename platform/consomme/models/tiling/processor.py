"""The processor: writes as many image tokens for a picture as its tiles take.

Text and pixels follow one plan, so they cannot disagree; and the plan follows from a picture's size
alone, so the tokens are known from its file header.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from consomme.models.imports import import_transformers


def __getattr__(name: str) -> Any:
    """Make the class when it is asked for: importing this module imports no transformers."""
    if name == "ConsommeTilingProcessor":
        return processor_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def processor_class() -> Any:
    """Return the class `ConsommeTilingProcessor`."""
    processing: Any = import_transformers().processing_utils
    options: Any = processing.ProcessingKwargs
    mixin: Any = processing.ProcessorMixin

    class TilingProcessorKwargs(options, total=False):  # type: ignore[misc,call-arg]
        """Options of a call, as those of LLaVA's processor."""

        _defaults = {  # noqa: RUF012 - as in transformers
            "text_kwargs": {"padding": False, "return_mm_token_type_ids": False},
        }

    class ConsommeTilingProcessor(mixin):  # type: ignore[misc]
        """A tokenizer, and an image processor that cuts pictures by a tiling.

        In the text, each picture stands as one `image_token`. It is replaced by `begin_image`; the
        tokens of the tiles, row by row, with `between_tiles` and `between_rows`; the tokens of the
        thumbnail after `before_thumbnail`; and `end_image`.
        """

        valid_processor_kwargs = TilingProcessorKwargs

        def __init__(
            self,
            image_processor: Any = None,
            tokenizer: Any = None,
            chat_template: str | None = None,
            image_token: str = "<image>",
            tokens_per_tile: int | None = None,
            begin_image: str = "",
            between_tiles: str = "",
            between_rows: str = "",
            before_thumbnail: str = "",
            end_image: str = "",
            **kwargs: Any,
        ) -> None:
            """Put the parts together.

            Args:
                image_processor: A `ConsommeTilingImageProcessor`.
                tokenizer: Of the model.
                chat_template: Of the model.
                image_token: That stands for a picture in the text, and later for each feature.
                tokens_per_tile: Features that the model makes of one tile; None for one per patch,
                    with a tiling that counts patches.
                begin_image: Text before a picture, and so on.
                between_tiles: Between the tiles of a row.
                between_rows: Between the rows of tiles.
                before_thumbnail: Between the last tile and the thumbnail.
                end_image: After a picture.
                kwargs: Of `ProcessorMixin`.
            """
            self.image_token = image_token
            self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
            self.tokens_per_tile = tokens_per_tile
            self.begin_image, self.end_image = begin_image, end_image
            self.between_tiles, self.between_rows = between_tiles, between_rows
            self.before_thumbnail = before_thumbnail
            super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

        def replace_image_token(
            self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any
        ) -> str:
            """Return what stands in the text for a picture that was prepared."""
            columns, rows = (int(side) for side in image_inputs["tile_grids"][image_idx])
            counts = [int(count) for count in image_inputs["num_tiles"]]
            begin, num_tiles = sum(counts[:image_idx]), counts[image_idx]
            tiling = self.image_processor.tiling_with(kwargs)
            sizes = [(tiling.tile_px, tiling.tile_px)] * num_tiles
            if "image_sizes" in image_inputs:
                found = image_inputs["image_sizes"][begin : begin + num_tiles]
                sizes = [(int(width), int(height)) for height, width in found]
            return self._written(
                columns, rows, [tiling.tokens_of(size, self.tokens_per_tile) for size in sizes]
            )

        def _written(self, columns: int, rows: int, tokens: Sequence[int]) -> str:
            tiles = [self.image_token * count for count in tokens]
            lines = [
                self.between_tiles.join(tiles[row * columns : (row + 1) * columns])
                for row in range(rows)
            ]
            text = self.between_rows.join(lines)
            if len(tiles) > columns * rows:
                text += self.before_thumbnail + tiles[-1]
            return self.begin_image + text + self.end_image

        def _get_num_multimodal_tokens(
            self, image_sizes: Sequence[Sequence[int]] | None = None, **kwargs: Any
        ) -> Any:
            """Return the tokens that pictures of these sizes take; transformers' name and types.

            Args:
                image_sizes: Height and width of each.
                kwargs: Options of the image processor.

            Returns:
                `num_image_tokens`, with those of the separators, and `num_image_patches`: tiles.
            """
            if image_sizes is None:
                return processing.MultiModalData()
            tiling = self.image_processor.tiling_with(kwargs)
            tokens, tiles = [], []
            for height, width in image_sizes:
                plan = tiling.plan(width, height)
                counts = [tiling.tokens_of(size, self.tokens_per_tile) for size in plan.sizes]
                # A tokenizer makes the same of one image token between separators as of many.
                columns, rows = plan.grid
                written = self._written(columns, rows, [1] * len(counts))
                ids = self.tokenizer(written, add_special_tokens=False)["input_ids"]
                tokens.append(len(ids) - len(counts) + sum(counts))
                tiles.append(plan.num_encoded)
            return processing.MultiModalData(num_image_tokens=tokens, num_image_patches=tiles)

        @property
        def unused_input_names(self) -> list[str]:
            """Names that the image processor returns and no model takes."""
            return ["num_tiles", "tile_grids"]

    # Pickle finds it by this name.
    ConsommeTilingProcessor.__qualname__ = "ConsommeTilingProcessor"
    return ConsommeTilingProcessor
