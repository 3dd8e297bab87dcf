"""Read PNGs whose text or colour profile is too large to be unpacked: only these are left out."""

from __future__ import annotations

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SIDE = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")


def is_png(data: bytes) -> bool:
    """Whether bytes are a PNG, by how they begin."""
    return data.startswith(_SIGNATURE)


def without_side_chunks(data: bytes) -> bytes:
    """Return a PNG without its texts and its colour profile, which no pixel depends on."""
    kept = [data[:8]]
    at = 8
    while at + 8 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] not in _SIDE:
            kept.append(data[at:end])
        at = end
    return b"".join(kept)
