"""The lines of the decode policy's table that `test_decode` does not cover."""

import base64
import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from tests.support.zoo_images import (
    BAD_IMAGES,
    chunk,
    encoded,
    jpeg,
    jpeg_of_many_scans,
    noise,
    png,
)

from consomme.base.sample import REJECT_REASONS
from consomme.vision.decode import DecodeProblem, decode

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")

ARITHMETIC = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABsSFBcUERsXFhceHBsgKEIrKCUlKFE6PTBCYFVlZF9VXVtqeJmBanGQc1td"
    "hbWGkJ6jq62rZ4C8ybqmx5moq6T/2wBDARweHigjKE4rK06kbl1upKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSk"
    "pKSkpKSkpKSkpKSkpKSkpKSkpKSkpKT/yQARCAAIAAgDASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD+"
    "zCrkgrDB1uFHPefZCAd0Puuzo//Z"
)
"""Left half red, right half blue, coded arithmetically; no encoder at hand writes such files."""

ODD_SAMPLING = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABsSFBcUERsXFhceHBsgKEIrKCUlKFE6PTBCYFVlZF9VXVtqeJmBanGQc1td"
    "hbWGkJ6jq62rZ4C8ybqmx5moq6T/2wBDARweHigjKE4rK06kbl1upKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSk"
    "pKSkpKSkpKSkpKSkpKSkpKSkpKSkpKT/yQARCAAIAAgDAUEAAhIBAyEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD+"
    "zCrkgrDB57FmpQfZTyVh4PoQPOD/2Q=="
)
"""The same with chroma sampled 1x2 and 2x1, which simplejpeg does not take."""


def pixels(data: bytes) -> np.ndarray:
    found = decode(data)
    assert isinstance(found, Image.Image), found
    assert found.mode == "RGB"
    return np.asarray(found)


def reason(data: bytes) -> str:
    found = decode(data)
    assert isinstance(found, DecodeProblem), found
    return found.reason


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_pictures_have_a_reason_and_a_printable_detail(name: str) -> None:
    wanted, make = BAD_IMAGES[name]
    found = decode(make())
    assert isinstance(found, DecodeProblem), found
    assert found.reason == wanted, found
    assert found.reason in REJECT_REASONS
    assert found.detail
    assert found.detail.isprintable()


@pytest.mark.parametrize("name", ["ARITHMETIC", "ODD_SAMPLING"])
def test_rare_jpegs_are_decoded(name: str) -> None:
    found = pixels(globals()[name]).astype(int)
    assert found.shape == (8, 8, 3)
    assert np.abs(found[:, 0] - [250, 10, 10]).max() < 30
    assert np.abs(found[:, 7] - [10, 10, 250]).max() < 30
    assert reason(globals()[name][:-20]) == "image_truncated"


JPEGS = {
    "colour": (noise(), {}),
    "progressive": (noise(), {"progressive": True}),
    "no chroma sampling": (noise(), {"subsampling": 0}),
    "restart markers": (noise(), {"restart_marker_rows": 1}),
    "stored as RGB": (noise(), {"keep_rgb": True}),
    "grey": (noise().convert("L"), {}),
    "CMYK": (noise().convert("CMYK"), {}),
}


@pytest.mark.parametrize("name", JPEGS)
def test_jpegs_have_the_pixels_that_pillow_gives(name: str) -> None:
    image, options = JPEGS[name]
    data = encoded(image, "JPEG", **options)
    wanted = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(pixels(data), wanted)


def test_ycck_is_decoded_as_adobe_writes_it() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    data = bytearray(encoded(image, "JPEG", quality=95))
    data[data.index(b"Adobe") + 11] = 2  # The file now says that its CMYK is kept as YCCK.
    wanted = np.asarray(Image.open(io.BytesIO(bytes(data))).convert("RGB"))
    assert np.array_equal(pixels(bytes(data)), wanted)


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("missing", [1, 2, 3, 10, 500])
def test_a_jpeg_that_lacks_its_last_bytes_is_truncated(name: str, missing: int) -> None:
    image, options = JPEGS[name]
    assert reason(encoded(image, "JPEG", **options)[:-missing]) == "image_truncated"


@pytest.mark.parametrize("tail", [b"garbage" * 50, b"\xff" * 9, bytes(3000), b"\xff\xd8\xff\xe0"])
def test_bytes_behind_the_end_do_no_harm(tail: bytes) -> None:
    for data in (jpeg(), jpeg(progressive=True), encoded(noise(), "PNG"), encoded(noise(), "GIF")):
        assert np.array_equal(pixels(data + tail), pixels(data))


def test_filler_between_markers_does_no_harm() -> None:
    data = jpeg()
    scan = data.index(b"\xff\xda")
    filled = data[:scan] + b"\x00\x01\x02" + data[scan:-2] + b"\x12\x34" + data[-2:]
    assert np.array_equal(pixels(filled), pixels(data))
    assert reason(filled[:-200]) == "image_truncated"


def test_a_jpeg_of_many_scans_is_decoded_up_to_the_limit() -> None:
    assert pixels(jpeg_of_many_scans(100)).shape == (64, 64, 3)


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0" + b"garbage" * 9,
        b"Exif\0\0II*\0\xff\xff\xff\x7f",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\0\x02\xff\xff\xff\xff\0\0\0\0" * 3,
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",
    ],
    ids=["garbage", "offset beyond", "counts beyond", "text for a number", "orientation 99"],
)
def test_unreadable_exif_leaves_the_picture_as_it_is_stored(exif: bytes) -> None:
    plain = np.asarray(noise(40, 20))
    assert pixels(encoded(noise(40, 20), "JPEG", exif=exif)).shape == plain.shape
    assert np.array_equal(pixels(encoded(noise(40, 20), "PNG", exif=exif)), plain)
    assert np.array_equal(pixels(encoded(noise(40, 20), "WEBP", lossless=True, exif=exif)), plain)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_orientation_turns_every_format(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (32, 16), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 8, 16))
    options = {"lossless": True} if kind == "WEBP" else {}
    found = pixels(encoded(image, kind, exif=exif, **options)).astype(int)
    assert found.shape == (32, 16, 3)
    # What was left is on top.
    assert np.abs(found[2, :] - [255, 0, 0]).max() < 30
    assert np.abs(found[-2, :] - [0, 0, 255]).max() < 30


def test_xmp_orientation_counts_where_exif_has_none() -> None:
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    assert pixels(encoded(noise(40, 20), "JPEG", xmp=xmp)).shape == (40, 20, 3)


def tiff_of(*values: float, dtype: str) -> bytes:
    return encoded(Image.fromarray(np.array([values], dtype=dtype)), "TIFF")


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (tiff_of(0, 0.5, 1, dtype="float32"), [0, 128, 255]),
        (tiff_of(0.25, 0.25, dtype="float32"), [64, 64]),
        (tiff_of(-10, 0, 10, dtype="float32"), [0, 128, 255]),
        (tiff_of(100, 300, 1100, dtype="float32"), [0, 51, 255]),
        (tiff_of(7, 7, dtype="float32"), [0, 0]),
        (tiff_of(0, 256, 65_535, dtype="int32"), [0, 1, 255]),
        (tiff_of(-1, 0, 254, dtype="int32"), [0, 1, 255]),
        (tiff_of(0, 10**9, 2 * 10**9, dtype="int32"), [0, 128, 255]),
        (tiff_of(0, 256, 65_535, dtype="uint16"), [0, 1, 255]),
    ],
)
def test_deep_grey_is_scaled_to_eight_bits(data: bytes, wanted: list[int]) -> None:
    assert pixels(data)[0, :, 0].tolist() == wanted


def test_sixteen_bits_of_colour_and_alpha() -> None:
    deep = struct.pack(">HHHH", 65_535, 0, 32_768, 0) + struct.pack(">HHHH", 0, 65_535, 0, 65_535)
    data = png(2, 1, bits=16, pixels=zlib.compress(b"\0" + deep))
    at = data.index(b"IHDR") + 4
    header = data[at : at + 9] + b"\x06" + data[at + 10 : at + 13]
    data = data[: at - 8] + chunk(b"IHDR", header) + data[at + 17 :]
    assert pixels(data)[0].tolist() == [[255, 255, 255], [0, 255, 0]]


def test_cie_lab_is_decoded() -> None:
    assert pixels(encoded(Image.new("LAB", (4, 4), (255, 128, 128)), "TIFF")).min() > 250


def test_of_several_pages_the_first_is_taken() -> None:
    pages = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert pixels(data)[0, 0].tolist() == [255, 0, 0]


def test_a_picture_of_one_by_100000_is_decoded() -> None:
    assert pixels(encoded(Image.new("L", (1, 100_000), 9), "PNG")).shape == (100_000, 1, 3)


def test_tiffs_in_tiles_and_in_big_files_are_decoded() -> None:
    for options in ({"big_tiff": True}, {"compression": "tiff_lzw"}, {"compression": "jpeg"}):
        found = pixels(encoded(noise(), "TIFF", **options))
        assert found.shape == (64, 64, 3)
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    directory[278] = 1
    many_strips = encoded(noise(8, 3000), "TIFF", tiffinfo=directory)
    assert pixels(many_strips).shape == (3000, 8, 3)


def test_no_memory_is_not_the_pictures_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("consomme.vision.decode.to_rgb", fail)
    with pytest.raises(MemoryError):
        decode(jpeg())


def test_decoding_in_threads_leaves_the_warning_filters_alone() -> None:
    decode(jpeg())
    before = list(warnings.filters)
    data = [jpeg(), encoded(noise(), "PNG"), BAD_IMAGES["png_of_30000x30000"][1]()] * 20
    with ThreadPoolExecutor(4) as threads:
        kinds = [type(found) for found in threads.map(decode, data)]
    assert kinds == [Image.Image, Image.Image, DecodeProblem] * 20
    assert list(warnings.filters) == before
