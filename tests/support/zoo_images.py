"""Good pictures, and bad bytes in their place."""

import io
import struct
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from PIL import Image


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Encode with Pillow."""
    out = io.BytesIO()
    image.copy().save(out, kind, **options)  # Pillow leaves settings behind in what it saves.
    return out.getvalue()


def noise(width: int = 64, height: int = 64, seed: int = 0) -> Image.Image:
    """A picture that does not compress, so that cutting it cuts pixels."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def good_image(key: str) -> bytes:
    """A small picture of its own for every key: PNG or JPEG."""
    seed = zlib.crc32(key.encode())
    return encoded(noise(12, 9, seed), "PNG" if seed % 2 else "JPEG")


def half(kind: str, share: float = 0.5, **options: Any) -> bytes:
    """The first part of a picture."""
    data = encoded(noise(), kind, **options)
    return data[: int(len(data) * share)]


# --- PNG -------------------------------------------------------------------------------------


def chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk of a PNG, with a right checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    width: int, height: int, *extra: bytes, bits: int = 8, pixels: bytes | None = None
) -> bytes:
    """A grey PNG that states this size; `pixels` is the compressed data."""
    rows = zlib.compress(bytes(1000)) if pixels is None else pixels
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)),
            *extra,
            chunk(b"IDAT", rows),
            chunk(b"IEND", b""),
        ]
    )


@cache
def png_bomb(side: int) -> bytes:
    """A sound one-bit PNG: `side` rows of `side` pixels, all of them there."""
    packer = zlib.compressobj(9)
    row = bytes(1 + -(-side // 8))
    packed = b"".join(packer.compress(row * 100) for _ in range(side // 100))
    return png(side, side, bits=1, pixels=packed + packer.flush())


def _zeros(length: int) -> bytes:
    return zlib.compress(bytes(length), 9)


def with_text_bomb(kind: bytes, length: int = 50_000_000) -> bytes:
    """A sound small PNG with a text or profile chunk that unpacks to `length` zeros."""
    head = {
        b"zTXt": b"Comment\0\0",
        b"iTXt": b"Comment\0\1\0\0\0",
        b"iCCP": b"profile\0\0",
    }[kind]
    body = chunk(kind, head + _zeros(length))
    return png(4, 4, body, pixels=zlib.compress(bytes(5 * 4)))


def png_with_wrong_checksum() -> bytes:
    """A PNG with one corrupted byte of pixel data."""
    data = bytearray(encoded(noise(), "PNG"))
    data[data.index(b"IDAT") + 200] ^= 0x55
    return bytes(data)


# --- JPEG ------------------------------------------------------------------------------------


def jpeg(**options: Any) -> bytes:
    """A JPEG of noise."""
    return encoded(noise(), "JPEG", **options)


def patched_frame(offset: int, value: bytes) -> bytes:
    """A JPEG with a changed frame header: at 4 is the precision, at 5 the height, 7 the width."""
    data = bytearray(jpeg())
    at = data.index(b"\xff\xc0") + offset
    data[at : at + len(value)] = value
    return bytes(data)


def jpeg_of_many_scans(number: int) -> bytes:
    """A progressive JPEG whose last scan is repeated; each costs a pass over all pixels."""
    data = jpeg(progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * number + data[-2:]


def jpeg_with_broken_markers() -> bytes:
    """A JPEG in the middle of which there is something else."""
    data = jpeg()
    middle = len(data) // 2
    return data[:middle] + b"\xff\x6b" * 20 + data[middle + 40 :]


# --- others ----------------------------------------------------------------------------------


def icon_bomb(side: int) -> bytes:
    """An icon that calls itself 16x16; the PNG inside does not."""
    inside = png(side, side)
    head = struct.pack("<HHH", 0, 1, 1)
    return head + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inside), 22) + inside


def webp_bomb() -> bytes:
    """A WebP whose canvas is as large as the format allows."""
    data = bytearray(encoded(Image.new("RGBA", (8, 8), (1, 2, 3, 4)), "WEBP", lossless=True))
    canvas = b"\x10\0\0\0" + (16_382).to_bytes(3, "little") * 2
    body = b"WEBPVP8X" + struct.pack("<I", 10) + canvas + bytes(data[12:])
    return b"RIFF" + struct.pack("<I", len(body)) + body


def jpeg2000_bomb() -> bytes:
    """A JPEG 2000 whose box says 64x64 and whose codestream says 30,000x30,000."""
    data = bytearray(encoded(noise(), "JPEG2000"))
    at = data.index(b"\xff\x4f\xff\x51") + 8
    data[at : at + 8] = struct.pack(">II", 30_000, 30_000)
    return bytes(data)


def tiff(*entries: tuple[int, int, int, int], tail: bytes = b"") -> bytes:
    """A TIFF of one directory: tag, type, count, value."""
    head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries))
    body = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return head + body + bytes(4) + tail


_GREY = [(256, 4, 1, 64), (257, 4, 1, 64), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1)]


def tiff_tile_bomb() -> bytes:
    """A TIFF of 64x64 pixels in one tile of 60,000x60,000."""
    tail = _zeros(100_000)
    at = 8 + 2 + 12 * 9 + 4
    tile = [(322, 4, 1, 60_000), (323, 4, 1, 60_000), (324, 4, 1, at), (325, 4, 1, len(tail))]
    return tiff(*_GREY, *tile, tail=tail)


def tiff_strip_bomb(number: int = 400_000) -> bytes:
    """A TIFF of 64x64 pixels in very many strips, each a Python object when it is opened."""
    at = 8 + 2 + 12 * 7 + 4
    strips = [(273, 4, number, at), (278, 4, 1, 1)]
    plain = [entry for entry in _GREY if entry[0] != 259]
    return tiff(*plain, (259, 3, 1, 1), *strips, tail=bytes(4 * number))


def tiff_of_nan() -> bytes:
    """A float TIFF with a pixel that is not a number."""
    pixels = np.full((4, 4), 0.5, dtype=np.float32)
    pixels[1, 2] = np.nan
    return encoded(Image.fromarray(pixels), "TIFF")


def gif_bomb() -> bytes:
    """A GIF that states the largest screen there is."""
    data = bytearray(encoded(Image.new("P", (4, 4)), "GIF"))
    data[6:10] = b"\xff\xff\xff\xff"
    return bytes(data)


def bmp_bomb() -> bytes:
    """A bitmap that states 30,000x30,000."""
    data = bytearray(encoded(Image.new("RGB", (4, 4)), "BMP"))
    data[18:26] = struct.pack("<ii", 30_000, 30_000)
    return bytes(data)


_HTML = b"<!DOCTYPE html><html><body><h1>404 Not Found</h1></body></html>\n"

BAD_IMAGES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "zero_bytes": ("image_empty", lambda: b""),
    "html_named_jpg": ("image_undecodable", lambda: _HTML * 20),
    "json_error": ("image_undecodable", lambda: b'{"error": "forbidden"}'),
    "svg": ("image_undecodable", lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    "eps": ("image_undecodable", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    "pdf": ("image_undecodable", lambda: b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n"),
    "heic": ("image_undecodable", lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)),
    "only_zeros": ("image_undecodable", lambda: bytes(4000)),
    "random_bytes": (
        "image_undecodable",
        lambda: np.random.default_rng(5).bytes(4000),
    ),
    "half_jpeg": ("image_truncated", lambda: half("JPEG")),
    "half_progressive_jpeg": ("image_truncated", lambda: half("JPEG", progressive=True)),
    "jpeg_without_its_last_byte": ("image_truncated", lambda: jpeg()[:-1]),
    "jpeg_cut_and_closed": ("image_truncated", lambda: half("JPEG") + b"\xff\xd9"),
    "jpeg_cut_in_its_header": ("image_truncated", lambda: half("JPEG", 0.05)),
    "half_png": ("image_truncated", lambda: half("PNG")),
    "half_webp": ("image_truncated", lambda: half("WEBP")),
    "half_gif": ("image_truncated", lambda: half("GIF")),
    "half_avif": ("image_truncated", lambda: half("AVIF")),
    "half_tiff": ("image_truncated", lambda: half("TIFF", 0.9)),
    "half_bmp": ("image_truncated", lambda: half("BMP")),
    "half_jpeg2000": ("image_truncated", lambda: half("JPEG2000")),
    "jpeg_with_broken_markers": ("image_undecodable", jpeg_with_broken_markers),
    "jpeg_of_twelve_bits": ("image_undecodable", lambda: patched_frame(4, b"\x0c")),
    "jpeg_of_no_width": ("image_undecodable", lambda: patched_frame(7, b"\0\0")),
    "jpeg_that_states_65500x65500": (
        "image_too_large",
        lambda: patched_frame(5, struct.pack(">HH", 65_500, 65_500)),
    ),
    "jpeg_of_1000_scans": ("image_too_large", lambda: jpeg_of_many_scans(1000)),
    "png_with_wrong_checksum": ("image_undecodable", png_with_wrong_checksum),
    "png_of_no_width": ("image_undecodable", lambda: png(0, 5)),
    "png_that_states_two_billion": ("image_too_large", lambda: png(2**31 - 1, 2**31 - 1)),
    "png_of_30000x30000": ("image_too_large", lambda: png_bomb(30_000)),
    "webp_canvas_bomb": ("image_too_large", webp_bomb),
    "icon_bomb": ("image_too_large", lambda: icon_bomb(20_000)),
    "jpeg2000_bomb": ("image_too_large", jpeg2000_bomb),
    "tiff_tile_bomb": ("image_too_large", tiff_tile_bomb),
    "tiff_strip_bomb": ("image_too_large", tiff_strip_bomb),
    "gif_bomb": ("image_too_large", gif_bomb),
    "bmp_bomb": ("image_too_large", bmp_bomb),
    "tiff_of_nan": ("image_undecodable", tiff_of_nan),
}
"""For each name the reason it is rejected for, and its bytes."""
