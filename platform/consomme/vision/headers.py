"""Check the sizes in headers that Pillow would notice only after it has allocated the memory.

For most formats `Image.open` reads the size and allocates nothing. Four are different: WebP
allocates its canvas when opened, an icon is decoded when opened, JPEG 2000 states its size twice
(Pillow reports the box, but decodes the codestream), and a TIFF is decoded tile by tile, with tiles
that may be larger than the picture and one Python object per tile.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from consomme.vision.problem import BadImageError

MAX_SCANS = 200
"""Maximum scans of a JPEG. Each is a pass over the whole picture; encoders write about ten."""

MAX_TIFF_PARTS = 300_000
"""Maximum strips or tiles of a TIFF; 64 million pixels in tiles of 16x16 are 250,000."""

_VIDEO_STARTS = (
    b"\x1aE\xdf\xa3",
    b"FLV\x01",
    b"\x00\x00\x01\xba",
    b"OggS",
    b"0&\xb2u\x8ef\xcf\x11",
)
"""First bytes of Matroska and WebM, Flash, MPEG, Ogg and Windows Media."""

_IMAGE_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"crx ")
"""Kinds of images in the container of MP4; a build of Pillow may lack their codec."""

_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")

_NAMED_STARTS = (
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"%PDF-", "PDF"),
    (b"8BPS", "Photoshop"),
    (b"%!PS", "PostScript"),
    (b"\x1f\x8b", "gzip"),
    (b"version https://git-lfs", "a Git LFS pointer"),
)

_TIFF_WIDTHS = {1: 1, 3: 2, 4: 4, 16: 8}
"""Size in bytes of TIFF's unsigned integer types."""


def check_headers(data: bytes, max_image_pixels: int) -> None:
    """Refuse a picture with a size above the limit in any of its headers; decodes no pixel.

    Raises:
        BadImageError: `image_too_large`, with the size found.
    """
    for width, height in _hidden_sizes(data):
        check_pixels(width, height, max_image_pixels)
    if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > MAX_SCANS:
        scans = data.count(b"\xff\xda")
        detail = f"the JPEG has {scans} scans, at most {MAX_SCANS} are decoded"
        raise BadImageError("image_too_large", detail)


def format_name(data: bytes) -> str:
    """Name a format of pictures or documents that is not decoded; empty for any other bytes."""
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS:
        return "HEIC"
    if data[:256].lstrip()[:5].lower() in (b"<svg ", b"<?xml") and b"<svg" in data[:4096].lower():
        return "SVG"
    return next((name for start, name in _NAMED_STARTS if data.startswith(start)), "")


def is_video(data: bytes) -> bool:
    """Whether bytes are a video file, by how they begin."""
    if data[4:8] == b"ftyp":
        return data[8:12] not in _IMAGE_BRANDS
    is_old_mov = data[4:8] in (b"moov", b"mdat", b"wide")
    is_avi = data[:4] == b"RIFF" and data[8:12] == b"AVI "
    return is_old_mov or is_avi or data.startswith(_VIDEO_STARTS)


def check_pixels(width: int, height: int, max_image_pixels: int) -> None:
    """Check a size against the limit.

    Raises:
        BadImageError: `image_too_large`.
    """
    if width * height > max_image_pixels:
        detail = f"{width}x{height} pixels, at most {max_image_pixels}"
        raise BadImageError("image_too_large", detail)


def _hidden_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    try:
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            yield from _webp(data)
        elif data[:4] == b"\0\0\1\0":
            yield from _icon(data)
        elif data[4:8] == b"jP  " or data[:4] == b"\xff\x4f\xff\x51":
            yield from _jpeg2000(data)
        elif data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            yield from _tiff(data)
    except struct.error:
        # The header is truncated; decoding will report it.
        return


def _webp(data: bytes) -> Iterator[tuple[int, int]]:
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = data[24:27], data[27:30]
        yield int.from_bytes(width, "little") + 1, int.from_bytes(height, "little") + 1
    elif kind == b"VP8 ":
        width_bits, height_bits = struct.unpack_from("<HH", data, 26)
        yield width_bits & 0x3FFF, height_bits & 0x3FFF
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        yield (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1


def _icon(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the sizes of the PNG or bitmap files inside; the directory has only a byte per side."""
    (count,) = struct.unpack_from("<H", data, 4)
    for index in range(count):
        (offset,) = struct.unpack_from("<I", data, 6 + 16 * index + 12)
        if data[offset : offset + 8] == b"\x89PNG\r\n\x1a\n":
            yield struct.unpack_from(">II", data, offset + 16)
        else:
            width, height = struct.unpack_from("<ii", data, offset + 4)
            # A bitmap in an icon states twice its height: colours and mask.
            yield abs(width), abs(height) // 2


def _jpeg2000(data: bytes) -> Iterator[tuple[int, int]]:
    start = data.find(b"\xff\x4f\xff\x51")
    if start >= 0:
        right, low, left, top = struct.unpack_from(">IIII", data, start + 8)
        yield max(0, right - left), max(0, low - top)


def _tiff(data: bytes) -> Iterator[tuple[int, int]]:
    order = "<" if data[:2] == b"II" else ">"
    is_big = data[2:4] in (b"+\0", b"\0+")
    word, head, entry = ("Q", "Q", f"{order}HHQ") if is_big else ("I", "H", f"{order}HHI")
    (position,) = struct.unpack_from(order + word, data, 8 if is_big else 4)
    (count,) = struct.unpack_from(order + head, data, position)
    position += struct.calcsize(head)
    tile = {}
    for index in range(min(count, 65_535)):
        offset = position + index * (20 if is_big else 12)
        tag, kind, number = struct.unpack_from(entry, data, offset)
        if tag in (273, 324) and number > MAX_TIFF_PARTS:
            detail = f"the TIFF has {number} strips or tiles, at most {MAX_TIFF_PARTS} are decoded"
            raise BadImageError("image_too_large", detail)
        if tag in (322, 323) and kind in _TIFF_WIDTHS:
            value = data[offset + (12 if is_big else 8) :][: _TIFF_WIDTHS[kind]]
            tile[tag] = int.from_bytes(value, "little" if order == "<" else "big")
    yield tile.get(322, 0), tile.get(323, 0)
