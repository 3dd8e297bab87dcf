"""The image processor: pictures of any size become pixel values of their tiles.

A tile is resized and cut with Pillow and scaled through a table of the 256 values a byte has, which
gives the very numbers that the image processors of transformers compute (their Pillow variants).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from consomme.models.imports import import_transformers
from consomme.vision.tiling.plan import TilePlan, Tiling
from consomme.vision.tiling.registry import tiling_of


def __getattr__(name: str) -> Any:
    """Make the class when it is asked for: importing this module imports no transformers."""
    if name == "ConsommeTilingImageProcessor":
        return image_processor_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def image_processor_class() -> Any:
    """Return the class `ConsommeTilingImageProcessor`."""
    hf = import_transformers()
    utils: Any = hf.image_utils
    backend: Any = hf.image_processing_backends.PilBackend
    options: Any = hf.processing_utils.ImagesKwargs

    class TilingImagesKwargs(options, total=False):  # type: ignore[misc,call-arg]
        """Options of `ConsommeTilingImageProcessor`, beside those of transformers.

        Attributes:
            tiling: `{name: …, field: …}`, as in a recipe.
            is_split: Whether a tiling that splits at random splits these pictures; None for what
                `tiling` says.
        """

        tiling: dict[str, Any]
        is_split: bool | None

    class ConsommeTilingImageProcessor(backend):  # type: ignore[misc]
        """Cuts pictures by a tiling, and scales and normalizes the tiles.

        It returns `pixel_values` of all tiles of all pictures, (tiles, 3, side, side), in the order
        of the pictures, which models take that encode tiles one by one: LLaVA and InternVL among
        the standard classes. Beside it `num_tiles` of each picture, with its thumbnail, and
        `tile_grids`, the columns and rows of each. Where tiles differ in size, `pixel_values` are
        padded with zeros at the right and below, and `image_sizes` (height, width) says what is of
        the tile.
        """

        valid_kwargs = TilingImagesKwargs
        model_input_names = ["pixel_values"]  # noqa: RUF012 - as in transformers
        tiling: dict[str, Any] = {"name": "catty"}  # noqa: RUF012 - as in transformers
        is_split: bool | None = None
        do_convert_rgb = True
        do_rescale = True
        rescale_factor = 1 / 255
        do_normalize = True
        image_mean = (0.5, 0.5, 0.5)
        image_std = (0.5, 0.5, 0.5)

        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            # A wrong tiling is an error here, and not at the first picture.
            tiling_of(self.tiling)

        def process_image(self, image: Any, **kwargs: Any) -> Image.Image:
            """Return a picture as Pillow's RGB, whatever it is given as."""
            if utils.get_image_type(image) != utils.ImageType.PIL:
                pixels = utils.to_numpy_array(image)
                if utils.infer_channel_dimension_format(pixels) == utils.ChannelDimension.FIRST:
                    pixels = pixels.transpose(1, 2, 0)
                if pixels.dtype != np.uint8:
                    raise ValueError(
                        f"found pixels of {pixels.dtype}, expected whole numbers of 0 to 255"
                        " (uint8)"
                    )
                image = Image.fromarray(pixels)
            rgb: Image.Image = image.convert("RGB")
            return rgb

        def _preprocess(
            self,
            images: Sequence[Image.Image],
            *,
            tiling: Mapping[str, Any],
            is_split: bool | None,
            do_rescale: bool,
            rescale_factor: float,
            do_normalize: bool,
            image_mean: Sequence[float],
            image_std: Sequence[float],
            return_tensors: str | None,
            **kwargs: Any,
        ) -> Any:
            made = tiling_of(tiling, is_split=is_split)
            table = _table(
                rescale_factor if do_rescale else 1.0,
                _three(image_mean) if do_normalize else (0.0, 0.0, 0.0),
                _three(image_std) if do_normalize else (1.0, 1.0, 1.0),
            )
            tiles: list[np.ndarray] = []
            data: dict[str, Any] = {"num_tiles": [], "tile_grids": []}
            for image in images:
                cut = made.cut(image)
                tiles += [_scaled(tile, table) for tile in cut]
                data["num_tiles"].append(len(cut))
                data["tile_grids"].append(list(made.plan(*image.size).grid))
            if not made.has_one_size:
                data["image_sizes"] = [list(tile.shape[1:]) for tile in tiles]
                tiles = _padded(tiles)
            data["pixel_values"] = np.stack(tiles) if tiles else tiles
            return hf.BatchFeature(data=data, tensor_type=return_tensors)

        def tiling_with(self, images_kwargs: Mapping[str, Any] | None = None) -> Tiling:
            """Return the tiling of pictures that are prepared with these options."""
            given = {k: v for k, v in (images_kwargs or {}).items() if v is not None}
            return tiling_of(
                given.get("tiling", self.tiling), is_split=given.get("is_split", self.is_split)
            )

        def plan(
            self, height: int, width: int, images_kwargs: Mapping[str, Any] | None = None
        ) -> TilePlan:
            """Return how a picture of this size is cut; no pixel is needed."""
            return self.tiling_with(images_kwargs).plan(width, height)

        def get_number_of_image_patches(
            self, height: int, width: int, images_kwargs: Mapping[str, Any] | None = None
        ) -> int:
            """Return how many pictures are encoded of one; the name is transformers'."""
            return self.plan(height, width, images_kwargs).num_encoded

    # Pickle finds it by this name.
    ConsommeTilingImageProcessor.__qualname__ = "ConsommeTilingImageProcessor"
    return ConsommeTilingImageProcessor


def _three(values: float | Sequence[float]) -> tuple[float, ...]:
    return (float(values),) * 3 if isinstance(values, int | float) else tuple(values)


@functools.lru_cache(maxsize=32)
def _table(factor: float, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """Return what each byte of each channel becomes, (3, 256), in transformers' arithmetic."""
    scaled = (np.arange(256).astype(np.float64) * factor).astype(np.float32)
    return np.stack(
        [(scaled - np.float32(m)) / np.float32(s) for m, s in zip(mean, std, strict=True)]
    )


def _scaled(tile: Image.Image, table: np.ndarray) -> np.ndarray:
    pixels = np.asarray(tile)
    return np.stack([table[channel][pixels[..., channel]] for channel in range(3)])


def _padded(tiles: Sequence[np.ndarray]) -> list[np.ndarray]:
    height = max(tile.shape[1] for tile in tiles)
    width = max(tile.shape[2] for tile in tiles)
    return [
        np.pad(tile, ((0, 0), (0, height - tile.shape[1]), (0, width - tile.shape[2])))
        for tile in tiles
    ]
