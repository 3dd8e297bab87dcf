"""Files that carry their own checksum, because they may be written again at any time."""

from __future__ import annotations

import hashlib
import re

_SEAL = re.compile(rb"\n?<!-- sha256 ([0-9a-f]{64}) -->\n?\Z")


def sealed(page: str) -> bytes:
    """Return the bytes of an HTML page, with their checksum in a comment at the end."""
    content = page.encode()
    return content + f"\n<!-- sha256 {hashlib.sha256(content).hexdigest()} -->\n".encode()


def is_sealed(data: bytes) -> bool | None:
    """Whether a page is as it was written; None if it has no checksum."""
    seal = _SEAL.search(data)
    if seal is None:
        return None
    return hashlib.sha256(data[: seal.start()]).hexdigest() == seal.group(1).decode()
