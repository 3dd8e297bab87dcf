"""What a shard is, going by its content: names are often wrong.

| content | read as |
|---|---|
| Parquet | `parquet`, by row groups |
| Arrow, as `datasets.save_to_disk` writes it | `arrow`, by record batches |
| tar | `tar`, by the offsets of samples |
| JSON lines, whatever the name | `lines`, by offsets |
| a JSON array, or the one inside an object such as `{"data": […]}` | `array`, by offsets |
| COCO annotations: an object with `images` and `annotations` | `coco`, parsed whole |
| CSV, TSV | `table`, by offsets |
| any of these in gzip, zstd, bzip2 or xz | the same, unpacked on the way |
| a folder of images with texts | `folder` |
| a Git LFS pointer, a web page, nothing | one reject, `shard_unreadable` |
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Self

from consomme.base.sample import printable
from consomme.storage.readers.names import (
    CAPTION_KEYS,
    COMMON_CAPTION_KEYS,
    COMMON_TURN_KEYS,
    QUESTION_KEYS,
    TURN_KEYS,
)
from consomme.storage.readers.row import UnreadableShardError
from consomme.storage.readers.text import UTF8_MARK

HEAD_BYTES = 1 << 16
"""Bytes from the start of a file that say what it is."""

COMPRESSED_SUFFIXES = (".gz", ".zst", ".bz2", ".xz")

_BY_NAME = {
    ".tar": "tar",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "array",
}
_BLANK = b" \t\r\n"
_LFS = b"version https://git-lfs.github.com/spec/v"
_WEB_PAGE = re.compile(rb"\s*<(?:!doctype\s+html|html|\?xml|head)\b", re.IGNORECASE)
_LIST_INSIDE = re.compile(rb'"((?:[^"\\]|\\.)*)"\s*:\s*(?=\[\s*[{\]])')
_COCO = re.compile(rb'"(images|annotations|licenses|categories|info)"\s*:')
_TAR_MAGIC = slice(257, 262)


@dataclass(frozen=True, kw_only=True)
class ShardLayout:
    """What a shard is."""

    kind: str = ""
    """One of the table; `lost` for a part that cannot be read, with `reason` and `detail`."""

    compression: str = ""
    """How it is compressed: gzip, zstd, bzip2, xz; empty if it is not."""

    columns: tuple[str, ...] = ()
    """Of a table: names of its columns."""

    delimiter: str = ""
    """Of a table."""

    has_header: bool = False
    """Whether the first record of a table names the columns."""

    offset: int = 0
    """Of an array: where it begins."""

    reason: str = ""
    detail: str = ""

    def for_units(self, name: str) -> str:
        """Return what units carry: empty if the name of the shard says it.

        Args:
            name: Of the shard.
        """
        if self.kind == kind_by_name(name) and not self.compression:
            return ""
        values = {key: value for key, value in asdict(self).items() if value}
        return json.dumps(values, sort_keys=True, separators=(",", ":"))

    @classmethod
    @lru_cache(maxsize=64)
    def of_unit(cls, text: str, name: str) -> Self:
        """Return what `for_units` wrote."""
        if not text:
            return cls(kind=kind_by_name(name))
        values = json.loads(text)
        return cls(**{**values, "columns": tuple(values.get("columns", ()))})


def kind_by_name(name: str) -> str:
    """Return the kind of a shard by its name; empty if the name does not say it."""
    return next((kind for suffix, kind in _BY_NAME.items() if name.endswith(suffix)), "")


def is_url_text(name: str) -> bool:
    """Whether a file is a list of URLs, one on each line."""
    return any(name.lower().endswith(f".txt{how}") for how in ("", *COMPRESSED_SUFFIXES))


def layout_of(head: bytes, name: str) -> ShardLayout:
    """Tell what a file is by its first bytes; of tables only that they are one.

    Args:
        head: At most `HEAD_BYTES`; unpacked, if it is compressed.
        name: Of the file.

    Raises:
        UnreadableShardError: It is nothing that can be read.
    """
    refuse(head)
    plain = name.lower()
    for suffix in COMPRESSED_SUFFIXES:
        plain = plain.removesuffix(suffix)
    if head.startswith(b"PAR1"):
        return ShardLayout(kind="parquet")
    if head[_TAR_MAGIC] == b"ustar" or plain.endswith((".tar", ".tgz")):
        return ShardLayout(kind="tar")
    if plain.endswith((".csv", ".tsv")):
        return ShardLayout(kind="table")
    return _json_layout(head, plain)


def refuse(head: bytes) -> None:
    """Refuse what stands where a shard should be.

    Raises:
        UnreadableShardError: It is a Git LFS pointer, a web page, text in UTF-16, or nothing.
    """
    if not head:
        raise UnreadableShardError("the file has 0 bytes")
    if head.startswith(_LFS):
        raise UnreadableShardError("a Git LFS pointer, not the file itself; run: git lfs pull")
    if _WEB_PAGE.match(head):
        shown = printable(head[:80].decode("utf-8", "replace"))
        raise UnreadableShardError(f"a web page, not data: {shown}")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UnreadableShardError("text in UTF-16; write it as UTF-8")


def _json_layout(head: bytes, name: str) -> ShardLayout:
    text = head.removeprefix(UTF8_MARK).lstrip(_BLANK)
    begin = len(head) - len(text)
    first = text[1:].lstrip(_BLANK)[:1]
    if text[:1] == b"[" and (name.endswith(".json") or first in (b"{", b"]", b"")):
        return ShardLayout(kind="array", offset=begin)
    if text[:1] == b"{" and not _is_line(text):
        inside = _LIST_INSIDE.search(text)
        if len(set(_COCO.findall(text))) > 1 and (inside is None or inside[1] in _COCO_LISTS):
            return ShardLayout(kind="coco")
        if inside is not None:
            return ShardLayout(kind="array", offset=begin + inside.end())
        raise UnreadableShardError(
            "one JSON object, expected an array of records, an object that holds one, or a record"
            " in each line"
        )
    if name.endswith(".json") and text[:1] != b"{":
        shown = printable(text[:40].decode("utf-8", "replace"))
        raise UnreadableShardError(f"begins with {shown!r}, expected JSON")
    return ShardLayout(kind="lines")


_COCO_LISTS = (b"images", b"annotations", b"licenses", b"categories")

_RECORD_KEYS = frozenset(
    (
        *(*TURN_KEYS, *COMMON_TURN_KEYS, *CAPTION_KEYS, *COMMON_CAPTION_KEYS),
        *(key for pair in QUESTION_KEYS for key in pair),
        *("images", "image_info", "text_list"),
    )
)
"""Keys of lists and texts that a record has, and a file that holds records has not."""


def _is_line(text: bytes) -> bool:
    """Whether a text that begins with an object has a record in each line."""
    line, newline, rest = text.partition(b"\n")
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        if newline:
            # Objects that are written over several lines, or a first line that is broken.
            return line.rstrip(_BLANK)[-1:] not in (b"{", b"[", b",", b":")
        # A first line that is longer than what is looked at.
        inside = _LIST_INSIDE.search(text)
        is_coco = len(set(_COCO.findall(text))) > 1
        return not is_coco and (inside is None or inside[1].decode("latin-1") in _RECORD_KEYS)
    if rest.strip(_BLANK) or (not newline and len(text) >= HEAD_BYTES // 2):
        return True
    holds_records = any(
        isinstance(value, list) and value and isinstance(value[0], dict)
        for value in record.values()
    )
    is_coco = "annotations" in record and "images" in record
    return not is_coco and bool(not holds_records or _RECORD_KEYS & set(record))
