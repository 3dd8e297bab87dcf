"""Shared by all formats: limits, JSON, and bytes that are text."""

import functools
import json
import logging
import math
from collections.abc import Sequence
from typing import Any

from consomme.base.errors import DataError
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


def load_record(data: bytes) -> dict[str, Any]:
    """Parse one JSON object."""
    record = load_json(data)
    if not isinstance(record, dict):
        raise RowError("record_malformed", f"found {type(record).__name__}, expected an object")
    return record


def load_json(data: bytes | str) -> Any:
    """Parse strict JSON: no duplicate keys, no NaN, limited nesting."""
    if len(data) > MAX_RECORD_BYTES:
        detail = f"found {len(data):,} bytes of JSON, at most {MAX_RECORD_BYTES:,} are parsed"
        raise RowError("record_too_large", detail)
    try:
        value = json.loads(
            data, object_pairs_hook=_reject_duplicate_keys, parse_constant=_not_finite
        )
    except RecursionError as error:
        raise RowError("record_malformed", _TOO_DEEP) from error
    except ValueError as error:
        raise RowError("record_malformed", f"not JSON: {error}") from error
    check_values(value)
    return value


def check_values(value: Any) -> None:
    """Check that parsed values can be written as JSON again: finite and not nested too deeply."""
    pending: list[tuple[Any, int]] = [([value], 0)]
    while pending:
        container, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise RowError("record_malformed", _TOO_DEEP)
        for item in container.values() if isinstance(container, dict) else container:
            if isinstance(item, dict | list):
                pending.append((item, depth + 1))
            elif isinstance(item, float) and not math.isfinite(item):
                _not_finite(str(item))


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


def _not_finite(text: str) -> Any:
    raise RowError("meta_not_finite", f"found {text}, which JSON cannot represent")


@functools.lru_cache(maxsize=8)
def _not_a_number(text: str) -> None:
    """Return null, and say so once in each process."""
    logger.warning(
        "metadata: found %s, which JSON cannot represent; such values become null (said once)", text
    )


_TOO_DEEP = f"nested more than {MAX_DEPTH} levels deep"


def decode_caption(data: bytes) -> str:
    """Decode the bytes of a caption file."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowError("caption_not_utf8", str(error)) from error


def is_utf8(text: str) -> bool:
    """Check that a text can be encoded as UTF-8 (lone surrogates cannot)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def refuse_encoded(start: bytes, shard: str, expected: str) -> None:
    """Refuse a file that is compressed or UTF-16, going by its first bytes.

    Args:
        start: At least the first six bytes.
        shard: URL of the file.
        expected: Description of the expected content.

    Raises:
        DataError: The file is compressed or UTF-16, so its rows cannot be addressed by offset.
    """
    for magic, name, remedy in _ENCODED:
        if start.startswith(magic):
            raise DataError(f"{shard}: found a {name} file, expected {expected}; {remedy}")


_ENCODED: Sequence[tuple[bytes, str, str]] = (
    (b"\x1f\x8b", "gzip", "decompress it"),
    (b"\x28\xb5\x2f\xfd", "zstd", "decompress it"),
    (b"BZh", "bzip2", "decompress it"),
    (b"\xfd7zXZ", "xz", "decompress it"),
    (b"\xff\xfe", "UTF-16", "write it as UTF-8"),
    (b"\xfe\xff", "UTF-16", "write it as UTF-8"),
)
