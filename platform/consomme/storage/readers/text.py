"""Shared by all formats: limits, JSON, and bytes that are text."""

import functools
import json
import logging
import math
from collections.abc import Iterator
from typing import Any, BinaryIO

from consomme.storage.readers.row import RowError

logger = logging.getLogger(__name__)

MAX_TEXT_BYTES = 65_536
"""Maximum text per sample; more is a scraped page, not a caption."""

MAX_RECORD_BYTES = 16 * 2**20
"""Maximum JSON text of one record; parsed, it takes about ten times as much memory."""

MAX_SAMPLE_BYTES = 128 * 2**20
"""Maximum bytes of one sample, image included, that are read into memory."""

MAX_NAME_BYTES = 4096
"""Maximum length of a sample or image name; file systems have the same limit for paths."""

MAX_DEPTH = 100
"""Maximum nesting of JSON. Python's own limit depends on the caller's stack depth."""


UTF8_MARK = b"\xef\xbb\xbf"
"""Byte order mark, with which Windows begins UTF-8."""


def lines_of(file: BinaryIO, offset: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield offset, end and bytes of each line; for an overlong line, only its first bytes.

    Args:
        file: Positioned at a line.
        offset: Offset of that position, from which offsets are counted.
    """
    while line := file.readline(MAX_RECORD_BYTES + 2):
        end = offset + len(line)
        chunk = line
        while len(chunk) > MAX_RECORD_BYTES and not chunk.endswith(b"\n"):
            chunk = file.readline(MAX_RECORD_BYTES + 2)
            end += len(chunk)
        yield offset, end, line
        offset = end


def load_record(data: bytes) -> dict[str, Any]:
    """Parse one JSON object."""
    record = load_json(data)
    if not isinstance(record, dict):
        raise RowError("record_malformed", f"found {type(record).__name__}, expected an object")
    return record


def load_json(data: bytes | str) -> Any:
    """Parse JSON: no duplicate keys, limited nesting; what is not finite becomes null.

    A NaN beside a picture costs the number, not the sample.
    """
    if len(data) > MAX_RECORD_BYTES:
        detail = f"found {len(data):,} bytes of JSON, at most {MAX_RECORD_BYTES:,} are parsed"
        raise RowError("record_too_large", detail)
    try:
        value = json.loads(
            data, object_pairs_hook=_reject_duplicate_keys, parse_constant=_not_a_number
        )
    except RecursionError as error:
        raise RowError("record_malformed", _TOO_DEEP) from error
    except ValueError as error:
        raise RowError("record_malformed", f"not JSON: {error}") from error
    return finite(value)


def finite(value: Any) -> Any:
    """Return parsed values as JSON can hold them: what is not finite becomes null, in place.

    Raises:
        RowError: They are nested too deeply.
    """
    pending: list[tuple[Any, int]] = [([value], 0)]
    wrapped = pending[0][0]
    while pending:
        container, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise RowError("record_malformed", _TOO_DEEP)
        items = container.items() if isinstance(container, dict) else enumerate(container)
        for key, item in list(items):
            if isinstance(item, dict | list):
                pending.append((item, depth + 1))
            elif isinstance(item, float) and not math.isfinite(item):
                container[key] = _not_a_number(str(item))
    return wrapped[0]


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        duplicate = next(name for name in names if names.count(name) > 1)
        raise RowError("record_malformed", f"the key {duplicate!r} occurs twice in one object")
    return record


@functools.lru_cache(maxsize=8)
def _not_a_number(text: str) -> None:
    """Return null, and say so once in each process."""
    logger.warning(
        "metadata: found %s, which JSON cannot represent; such values become null (said once)", text
    )


_TOO_DEEP = f"nested more than {MAX_DEPTH} levels deep"


def decode_caption(data: bytes) -> str:
    """Decode the bytes of a caption file, without the mark that Windows begins it with."""
    try:
        return data.removeprefix(UTF8_MARK).decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowError("caption_not_utf8", str(error)) from error


def is_utf8(text: str) -> bool:
    """Check that a text can be encoded as UTF-8 (lone surrogates cannot)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
