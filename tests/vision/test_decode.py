"""The decode policy: the right pixels, or the right reason; never an exception."""

import io
import random
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.support.zoo_images import with_text_bomb

from consomme.base.sample import REJECT_REASONS
from consomme.vision.decode import DecodeProblem, decode, upright_size

RNG = np.random.default_rng(0)
NOISE = Image.fromarray(RNG.integers(0, 255, (64, 64, 3), dtype=np.uint8))
FORMATS = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("PNG", {}),
    ("WEBP", {}),
    ("WEBP", {"lossless": True}),
    ("GIF", {}),
    ("BMP", {}),
    ("TIFF", {}),
    ("AVIF", {}),
    ("JPEG2000", {}),
]


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def picture(data: bytes) -> Image.Image:
    found = decode(data)
    assert isinstance(found, Image.Image), found
    assert found.mode == "RGB"
    return found


def corner(data: bytes) -> list[int]:
    pixel = picture(data).getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return list(pixel)


def problem(data: bytes, **limits: int) -> DecodeProblem:
    found = decode(data, **limits)
    assert isinstance(found, DecodeProblem)
    assert found.reason in REJECT_REASONS
    assert found.detail
    return found


def png_bomb(side: int) -> bytes:
    """A PNG of a few bytes that claims to be very large."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("kind", "options"), FORMATS)
def test_whole_pictures_decode(kind: str, options: dict[str, Any]) -> None:
    assert picture(encoded(NOISE, kind, **options)).size == (64, 64)


@pytest.mark.parametrize(("kind", "options"), FORMATS)
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_cut_pictures_are_truncated(kind: str, options: dict[str, Any], share: float) -> None:
    data = encoded(NOISE, kind, **options)
    assert problem(data[: int(len(data) * share)]).reason == "image_truncated"


def test_the_detail_says_how_much_of_a_webp_is_missing() -> None:
    data = encoded(NOISE, "WEBP")
    assert "; 100 bytes are missing" in problem(data[:-100]).detail


def test_a_whole_webp_with_broken_content_is_not_called_truncated() -> None:
    data = bytearray(encoded(NOISE, "WEBP"))
    data[20:200] = bytes(180)
    assert problem(bytes(data)).reason == "image_undecodable"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "image_empty"),
        (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "image_undecodable"),
        (b'{"error": "forbidden"}', "image_undecodable"),
        (b"\xff\xd8\xff", "image_undecodable"),
        (bytes(1000), "image_undecodable"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image_undecodable"),
        # Pillow would start Ghostscript on this.
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "image_undecodable"),
    ],
)
def test_what_is_no_picture(data: bytes, reason: str) -> None:
    assert problem(data).reason == reason


@pytest.mark.parametrize("side", [8001, 20_000, 2**31 - 1])
def test_bombs_are_refused_before_a_pixel_is_decoded(side: int) -> None:
    assert problem(png_bomb(side)).reason == "image_too_large"


def test_limits_are_those_given() -> None:
    data = encoded(NOISE, "PNG")
    assert isinstance(decode(data, max_image_pixels=64 * 64), Image.Image)
    assert "64x64 pixels" in problem(data, max_image_pixels=64 * 64 - 1).detail
    assert problem(data, max_image_bytes=100).reason == "image_too_large"


def test_cmyk() -> None:
    red = corner(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))
    assert np.abs(np.subtract(red, [254, 0, 0])).max() <= 4


def test_transparent_parts_are_white() -> None:
    assert corner(encoded(Image.new("RGBA", (4, 4), (9, 9, 9, 0)), "PNG")) == [255, 255, 255]
    assert corner(encoded(Image.new("LA", (4, 4), (9, 0)), "PNG")) == [255, 255, 255]
    half = corner(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "PNG"))
    assert half == [127, 127, 127]
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 200, 10, 10])
    assert corner(encoded(palette, "PNG", transparency=1)) == [255, 255, 255]
    assert corner(encoded(palette, "PNG", transparency=0)) == [200, 10, 10]
    assert corner(encoded(palette, "GIF", transparency=1)) == [255, 255, 255]
    colour_key = encoded(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert corner(colour_key) == [255, 255, 255]


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    deep = Image.fromarray(np.array([[0, 256, 32768, 65535]], dtype=np.uint16))
    for kind in ("PNG", "TIFF"):
        assert np.asarray(picture(encoded(deep, kind)))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_one_bit() -> None:
    assert corner(encoded(Image.new("1", (4, 4), 1), "PNG")) == [255, 255, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    image = Image.new("RGB", (32, 16), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = picture(encoded(image, "JPEG", quality=95, exif=exif.tobytes()))
    assert upright.size == ((32, 16) if orientation < 5 else (16, 32))
    # Where the stored picture's red corner comes to lie, by the EXIF standard.
    right, low = orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)
    at = (upright.width - 4 if right else 3, upright.height - 4 if low else 3)
    red, _, blue = upright.getpixel(at)  # type: ignore[misc]
    assert red > 200 > 100 > blue


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ((250, 0, 0), (0, 250, 0))]
    for kind in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        red, green, _ = corner(data)
        assert red > 200 > 100 > green, kind


def test_damaged_bytes_never_raise() -> None:
    rng = random.Random(0)
    reasons: set[str] = set()
    for kind, options in FORMATS:
        data = encoded(NOISE, kind, **options)
        for _ in range(40):
            broken = bytearray(data)
            for _ in range(rng.choice((1, 4, 30))):
                broken[int(rng.random() ** 2 * len(broken))] = rng.randrange(256)
            found = decode(bytes(broken))
            if isinstance(found, DecodeProblem):
                reasons.add(found.reason)
            else:
                assert found.mode == "RGB"
    assert reasons <= REJECT_REASONS
    assert "image_undecodable" in reasons


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_a_text_or_profile_that_unpacks_to_much_costs_no_memory(kind: bytes) -> None:
    """The picture is decoded, and its size read, without what it would unpack to."""
    data = with_text_bomb(kind)
    tracemalloc.start()
    try:
        assert picture(data).size == (4, 4)
        assert upright_size(data) == (4, 4)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000, "what it unpacks to has 50,000,000 bytes"
