"""Read damaged shards and pictures until the time is up; run as a separate process.

    python -m tests.storage.fuzz_child AREA SEED FIRST SECONDS FOLDER

Writes the number of each case to standard output before it begins, so that whoever watches knows
which one ended the process. The same area, seed and number always make the same bytes; they are in
FOLDER while the case runs. A case that hangs ends the process with a traceback.
"""

import faulthandler
import io
import random
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from tests.support.zoo_images import encoded, icon_bomb, jpeg, noise, tiff_tile_bomb, with_text_bomb
from tests.support.zoo_tables import BAD_RECORDS, GOOD_EXTRAS, record, row, table_of
from tests.support.zoo_tar import BAD_MEMBERS, END, member, pair

from consomme.base.errors import DataError
from consomme.base.sample import REJECT_REASONS, Reject, Sample
from consomme.storage.readers import text, webdataset
from consomme.storage.units import plan_units, read_unit
from consomme.vision.decode import DecodeProblem, decode

AREAS = ("tar", "parquet", "jsonl", "json", "image")

HANG_S = 30
"""A case takes milliseconds; one that takes this long counts as hanging."""

MIN_CASES = 4
"""On a machine that is busy with other things, the time is up after one."""

MAX_MB = 600
"""Memory limit beyond what the process had at its start."""

_INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x20, 0x22, 0x30, 0x37, 0x5B, 0x5C, 0x7B)


def tar_seeds() -> list[bytes]:
    """Small tars, plain and with every header that readers know."""
    small = [
        build("k", "a")
        for name, (_, build) in BAD_MEMBERS.items()
        if len(build("k", "a")) < 20_000 and "pax_header_of" not in name
    ]
    plain = b"".join(pair(key) for key in "abcd") + END
    long = member("n" * 150 + ".png", b"x" * 700) + member("n" * 150 + ".txt", b"y")
    pax = member("é" * 80 + ".png", b"x" * 700, pax={"path": "p" * 120 + ".png", "size": "700"})
    text = member("j.json", b'{"caption": "a", "n": [1, {"b": 2}]}') + member("j.jpg", jpeg())
    return [plain, pair("a") + long + pax + text + END, plain + plain, b"".join(small) + END]


def parquet_seeds() -> list[bytes]:
    """Small Parquet files in several encodings."""
    table = table_of([row(f"r{number}", **GOOD_EXTRAS) for number in range(12)])
    seeds = []
    for options in (
        {"compression": "none", "use_dictionary": False},
        {"compression": "zstd"},
        {"compression": "snappy", "data_page_version": "2.0", "row_group_size": 4},
        {"compression": "gzip", "row_group_size": 5, "write_page_checksum": True},
        {"compression": "none", "column_encoding": _DELTA, "use_dictionary": False},
    ):
        sink = io.BytesIO()
        pq.write_table(table, sink, **options)
        seeds.append(sink.getvalue())
    return seeds


_DELTA = {"id": "DELTA_BYTE_ARRAY", "caption": "DELTA_LENGTH_BYTE_ARRAY", "similarity": "PLAIN"}


def record_texts() -> list[bytes]:
    """Good and bad records."""
    built = [build("k", "a").text for name, (_, build) in BAD_RECORDS.items() if "17" not in name]
    talk = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": 'a "[}\\'}]
    good = [record(key, n=[1, {"a": None}], image="a.png").text for key in "abc"]
    return [
        *good,
        record("t", conversations=talk, image="a.png").text,
        *[b for b in built if len(b) < 2000],
    ]


def image_seeds() -> list[bytes]:
    """Small pictures in every format and most modes."""
    small = noise(24, 16)
    grey = Image.fromarray(np.arange(384, dtype=np.uint16).reshape(16, 24) * 99)
    exif = Image.Exif()
    exif[0x0112] = 6
    palette = small.quantize(16)
    plain = [encoded(small, kind) for kind in ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "PPM")]
    return [
        *plain,
        encoded(small, "JPEG", progressive=True, exif=exif),
        encoded(small.convert("CMYK"), "JPEG"),
        encoded(small.convert("L"), "JPEG", restart_marker_rows=1),
        encoded(small, "MPO", **_frames()),
        encoded(small.convert("RGBA"), "PNG", exif=exif),
        encoded(palette, "PNG", transparency=3),
        encoded(grey, "PNG"),
        with_text_bomb(b"zTXt", 20_000),
        encoded(small, "PNG", **_frames()),
        encoded(small.convert("RGBA"), "WEBP", lossless=True, exif=exif),
        encoded(small, "WEBP", **_frames()),
        encoded(palette, "GIF", transparency=3, **_frames()),
        *[encoded(small, "TIFF", compression=kind) for kind in _TIFF_COMPRESSIONS],
        encoded(grey, "TIFF"),
        encoded(small, "TIFF", **_frames()),
        encoded(small.convert("1"), "TIFF", compression="group4"),
        tiff_tile_bomb(),
        encoded(small, "JPEG2000"),
        encoded(small.convert("RGBA"), "ICO"),
        icon_bomb(40),
        encoded(small.convert("1"), "BMP"),
        encoded(small, "AVIF", exif=exif),
    ]  # fmt: skip


_TIFF_COMPRESSIONS = (None, "jpeg", "tiff_lzw", "tiff_adobe_deflate", "packbits")


def _frames() -> dict[str, Any]:
    """Options that append two more frames; new ones, as Pillow leaves settings behind in them."""
    return {"save_all": True, "append_images": [noise(24, 16, 1), noise(24, 16, 2)]}


def mutate(rng: random.Random, data: bytes, seeds: list[bytes]) -> bytes:
    """Damage some bytes once or a few times."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        size = len(found)
        at = rng.randrange(size + 1)
        length = min(rng.choice((1, 2, 4, 16, 100, 512, 1024)), size - at)
        action = rng.randrange(9)
        if action == 0 and at < size:
            found[at] ^= 1 << rng.randrange(8)
        elif action == 1:
            found[at : at + length] = bytes(rng.choice(_INTERESTING) for _ in range(length))
        elif action == 2:
            del found[at:]
        elif action == 3:
            del found[at : at + length]
        elif action == 4:
            found[at:at] = rng.randbytes(length)
        elif action == 5:
            found[at:at] = found[at : at + length] * rng.choice((1, 2, 50))
        elif action == 6:
            other = rng.choice(seeds)
            start = rng.randrange(len(other))
            found[at : at + length] = other[start : start + rng.choice((length, 5 * length, 4000))]
        elif action == 7:
            value = rng.choice(
                (0, 1, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, rng.getrandbits(20))
            )
            width = rng.choice((2, 4, 8))
            order: Any = rng.choice(("little", "big"))
            found[at : at + width] = (value & (1 << 8 * width) - 1).to_bytes(width, order)
        elif size:
            found[at:] = found[at : at + 2000]
        if not found:
            found = bytearray(b"\0")
    return bytes(found)


def mutate_parquet(rng: random.Random, data: bytes, seeds: list[bytes]) -> bytes:
    """Damage bytes in place, in the pages or the footer, so that the file still opens; or any."""
    if rng.random() < 0.2:
        return mutate(rng, data, seeds)
    found = bytearray(data)
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    low, high = rng.choice(((4, footer), (footer, len(data) - 8)))
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(low, high)
        if rng.random() < 0.5:
            found[at] ^= 1 << rng.randrange(8)
        else:
            length = min(rng.choice((1, 2, 4, 8)), high - at)
            found[at : at + length] = bytes(rng.choice(_INTERESTING) for _ in range(length))
    return bytes(found)


def mutate_tar(rng: random.Random, data: bytes, seeds: list[bytes]) -> bytes:
    """Damage headers field by field with right checksums, or move blocks, or damage bytes."""
    if rng.random() < 0.3:
        return mutate(rng, data, seeds)
    found = bytearray(data)
    starts = [
        at for at in range(0, len(found) - 511, 512) if found[at + 257 : at + 262] == b"ustar"
    ]
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.choice(starts or [0])
        action = rng.randrange(5)
        if action == 0:
            field = rng.choice(((0, 100), (124, 12), (156, 1), (157, 100), (345, 155)))
            found[at + field[0] : at + sum(field)] = _field(rng, field[1])
        elif action == 1:
            found[at + 124 : at + 136] = b"%011o\0" % rng.choice(
                (0, 1, 511, 512, 513, 1024, 3000, 99_999)
            )
        elif action == 2:
            found[at + 156] = rng.choice(b"0\0" + b"1234567xgXLKSDMVN")
        elif action == 3:
            end = at + 512 * rng.randrange(1, 5)
            moved = found[at:end]
            del found[at:end]
            place = rng.randrange(len(found) // 512 + 1) * 512
            found[place:place] = moved
        else:
            del found[rng.randrange(len(found)) :]
            break
        if rng.random() < 0.9 and len(found) >= at + 512:
            header = found[at : at + 512]
            header[148:156] = b" " * 8
            found[at + 148 : at + 156] = b"%06o\0 " % sum(header)
    return bytes(found) or b"\0"


def _field(rng: random.Random, width: int) -> bytes:
    kind = rng.randrange(5)
    if kind == 0:
        return rng.randbytes(width)
    if kind == 1:
        return bytes(width)
    if kind == 2:
        return (b"%o" % rng.getrandbits(33)).ljust(width, b"\0")[:width]
    if kind == 3:
        return (b"\x80" + rng.randbytes(width))[:width]
    return rng.choice((b"../../x.png", b"/x.png", b".x", b"a.png", b"\xff.png")).ljust(
        width, b"\0"
    )[:width]


def read_all(url: str, limits: dict[str, int]) -> list[Sample | Reject]:
    """Plan, read and decode; every planned row must come exactly once."""
    found: list[Sample | Reject] = []
    for unit in plan_units([url], "web", **limits):
        samples, rejects = read_unit(unit)
        rows: dict[int, Sample | Reject] = {**dict(samples), **dict(rejects)}
        if sorted(rows) != list(range(unit.count)) or len(samples) + len(rejects) != unit.count:
            raise AssertionError(f"{unit}: rows {sorted(rows)}")
        found += [rows[number] for number in sorted(rows)]
    for item in found:
        if isinstance(item, Reject):
            assert item.detail.isprintable(), item
            assert item.detail, item
        else:
            for image in item.images:
                check_decode(image.data, None)
    return found


def check_decode(data: bytes, min_side_px: int | None) -> None:
    """Decode; the result must be a picture or a reject reason."""
    picture = decode(data, min_side_px=min_side_px, max_image_pixels=4_000_000)
    if isinstance(picture, DecodeProblem):
        assert picture.reason in REJECT_REASONS, picture
        assert picture.detail.isprintable(), picture
        assert picture.detail, picture
    else:
        assert picture.mode == "RGB"


def check_shard(area: str, data: bytes, rng: random.Random, folder: Path) -> None:
    """Read one damaged shard in one piece and in others; the rows must be the same."""
    path = folder / f"case.{area}"
    path.write_bytes(data)
    # Real budgets are met by large files only.
    webdataset.MAX_SAMPLE_BYTES = rng.choice((128 << 20, 2000))
    text.MAX_RECORD_BYTES = rng.choice((16 << 20, 60, 200))
    found = []
    for limits in ({}, {"max_rows": rng.choice((1, 2, 3))}, {"max_bytes": rng.choice((1, 3000))}):
        try:
            items = read_all(str(path), limits)
        except DataError:
            return
        found.append([(item.sample_id, getattr(item, "reason", None)) for item in items])
    assert found[0] == found[1] == found[2], found


def memory_mb() -> float:
    """Peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def build(area: str) -> tuple[list[bytes], Callable[[random.Random, bytes, list[bytes]], bytes]]:
    """The whole inputs of an area, and how they are damaged."""
    if area == "tar":
        return tar_seeds(), mutate_tar
    if area == "parquet":
        return parquet_seeds(), mutate_parquet
    if area == "image":
        return image_seeds(), mutate
    texts = record_texts()
    if area == "jsonl":
        return [b"\n".join(texts[:4]), b"\xef\xbb\xbf" + b"\r\n".join(texts) + b"\n"], mutate
    return [b"[" + b",\n".join(texts[:4]) + b"]", b" [ " + b" , ".join(texts) + b"]"], mutate


def case_bytes(
    area: str, seed: int, number: int, seeds: list[bytes], damage: Any
) -> tuple[random.Random, bytes]:
    """The bytes of one case, and the generator that made them."""
    rng = random.Random(f"{area}/{seed}/{number}")
    return rng, damage(rng, rng.choice(seeds), seeds)


def main(area: str, seed: int, first: int, seconds: float, folder: Path) -> None:
    """Run cases from `first` on, until the time is up."""
    (folder / "a.png").write_bytes(encoded(noise(4, 4), "PNG"))
    seeds, damage = build(area)
    until = time.monotonic() + seconds
    before = memory_mb()
    number = first
    while time.monotonic() < until or number < first + MIN_CASES:
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        rng, data = case_bytes(area, seed, number, seeds, damage)
        if area == "image":
            (folder / "case.image").write_bytes(data)
            check_decode(data, rng.choice((None, 1, 7)))
        else:
            check_shard(area, data, rng, folder)
        assert memory_mb() - before < MAX_MB, f"{memory_mb() - before:.0f} MB more than before"
        number += 1
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    # Running out of memory must end this process, not the machine.
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    faulthandler.enable()
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), Path(sys.argv[5]))
