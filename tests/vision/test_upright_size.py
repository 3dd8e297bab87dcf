"""The size of a picture as it is shown, from its header: equal to that of the decoded picture."""

import io
import struct
import zlib

import pytest
from PIL import Image
from tests.support.zoo_images import encoded, noise

from consomme.vision.decode import DecodeProblem, decode, upright_size

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO")
WIDE = noise(1, 48).resize((61, 37))


def decoded_size(data: bytes) -> tuple[int, int]:
    picture = decode(data)
    assert isinstance(picture, Image.Image), picture
    return picture.size


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format(kind: str) -> None:
    data = encoded(WIDE, kind)
    assert upright_size(data) == decoded_size(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_turned_as_exif_says(kind: str, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    stream = io.BytesIO()
    WIDE.save(stream, kind, exif=exif)
    data = stream.getvalue()
    assert upright_size(data) == decoded_size(data) == ((37, 61) if turn >= 5 else (61, 37))


def late_exif(turn: int) -> bytes:
    """Return a PNG whose EXIF stands after its pixels."""
    exif = Image.Exif()
    exif[0x0112] = turn
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = b"eXIf" + block
    whole = struct.pack(">I", len(block)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    data = encoded(WIDE, "PNG")
    return data[:-12] + whole + data[-12:]


def test_exif_behind_the_pixels_of_a_png() -> None:
    data = late_exif(6)
    assert upright_size(data) == decoded_size(data) == (37, 61)


def test_a_png_is_not_loaded() -> None:
    # Its pixels are damaged, which only decoding can find.
    data = bytearray(encoded(WIDE, "PNG"))
    at = data.index(b"IDAT") + 20
    data[at : at + 200] = bytes(200)
    assert isinstance(decode(bytes(data)), DecodeProblem)
    assert upright_size(bytes(data)) == (61, 37)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "image_empty"),
        (b"<html>", "image_undecodable"),
        (encoded(Image.new("1", (10_000, 10_000)), "PNG"), "image_too_large"),
        (b"\0\0\0\x18ftypmp42" + bytes(16), "video_unsupported"),
    ],
)
def test_what_is_no_picture(data: bytes, reason: str) -> None:
    found = upright_size(data)
    assert isinstance(found, DecodeProblem)
    assert found.reason == reason


def test_a_text_of_megabytes_is_skipped() -> None:
    text = b"tEXt" + b"a" * 70 + b"\0" + b"x" * 2_000_000
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    data = encoded(WIDE, "PNG")
    whole = data[:33] + chunk + data[33:]
    assert upright_size(whole) == decoded_size(whole) == (61, 37)
