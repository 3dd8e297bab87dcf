"""Decoding at reduced size: size and similarity, equal for every format."""

import io

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.support.zoo_images import encoded, noise

from consomme.vision.decode import DecodeProblem, decode, num_pixels, shrink_factor, shrunk

SMOOTH = noise(8, 6).resize((333, 211), Image.Resampling.BICUBIC)
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


def reduced(data: bytes, min_side_px: int | None) -> Image.Image:
    found = decode(data, min_side_px=min_side_px)
    assert isinstance(found, Image.Image), found
    return found


@given(width=st.integers(1, 5000), height=st.integers(1, 5000), side=st.integers(1, 1000))
def test_the_shorter_side_keeps_what_was_asked_for(width: int, height: int, side: int) -> None:
    factor = shrink_factor((width, height), side)
    assert factor in (1, 2, 4, 8)
    shorter = min(width, height)
    assert -(-shorter // factor) >= min(side, shorter)
    if factor < 8:
        assert -(-shorter // (factor * 2)) < side


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("side", "size"),
    [(None, (333, 211)), (212, (333, 211)), (106, (167, 106)), (53, (84, 53)), (1, (42, 27))],
)
def test_the_size_is_the_same_for_every_format(
    kind: str, side: int | None, size: tuple[int, int]
) -> None:
    assert reduced(encoded(SMOOTH, kind), side).size == size


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("side", [100, 50, 20])
def test_a_reduced_picture_looks_like_the_whole_one(kind: str, side: int) -> None:
    data = encoded(SMOOTH, kind)
    found = reduced(data, side)
    whole = reduced(data, None).reduce(round(333 / found.width))
    assert np.abs(np.subtract(found, whole, dtype=np.int16)).mean() < 3


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_reduced_jpegs_have_the_pixels_that_pillow_gives(mode: str, factor: int) -> None:
    data = encoded(SMOOTH.convert(mode), "JPEG")
    size = (-(-333 // factor), -(-211 // factor))
    image = Image.open(io.BytesIO(data))
    image.draft(None, (333 // factor, 211 // factor))
    assert image.size == size
    assert np.array_equal(reduced(data, min(size)), np.asarray(image.convert("RGB")))


@given(size=st.tuples(st.integers(1, 40), st.integers(1, 40)), side=st.integers(1, 20))
@example(size=(333, 211), side=50)
@example(size=(9, 9), side=2)
@settings(max_examples=200)
def test_reduced_jpegs_that_only_pillow_takes(size: tuple[int, int], side: int) -> None:
    data = encoded(SMOOTH.resize(size), "JPEG")
    filled = data[:-2] + b"\x12\x34" + data[-2:]
    wanted = shrunk(size, shrink_factor(size, side))
    for form in (data, filled, encoded(SMOOTH.resize(size), "PNG")):
        assert reduced(form, side).size == wanted
    if min(size) > 8:
        assert np.array_equal(reduced(filled, side), reduced(data, side))


def test_a_reduced_picture_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("JPEG", "PNG"):
        found = reduced(encoded(SMOOTH, kind, exif=exif), 50)
        assert found.size == (53, 84)
        assert found.size == reduced(encoded(SMOOTH, kind), 50).size[::-1]


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_a_truncated_jpeg_is_found_at_reduced_size_too(cut: int) -> None:
    found = decode(encoded(SMOOTH, "JPEG")[:-cut], min_side_px=20)
    assert isinstance(found, DecodeProblem)
    assert found.reason == "image_truncated"


@pytest.mark.parametrize("kind", FORMATS)
def test_the_full_size_is_known_of_a_reduced_picture(kind: str) -> None:
    data = encoded(SMOOTH, kind)
    assert reduced(data, 20).size == (42, 27)
    assert num_pixels(data) == 333 * 211
