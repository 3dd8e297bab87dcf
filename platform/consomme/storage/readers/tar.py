"""Tar files by their headers: where each member is, and what to do where the bytes are damaged.

Python's `tarfile` stops silently at the first damaged header. This walk goes on at the next sound
one and reports the gap, reads no member's data, and copes with tars laid end to end.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = 512
_ZERO = bytes(BLOCK)
_SCAN = 1 << 20
_MAX_EXTENSION = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Member:
    """One member of a tar, or one damaged stretch."""

    name: str
    """Path inside the tar; empty for a damaged stretch."""

    offset: int
    """Where its headers begin."""

    end: int
    """Where the next member begins."""

    data_offset: int = 0
    """Where its bytes begin."""

    size: int = 0
    """How many bytes it has, as its header says."""

    is_file: bool = True
    """False for links, devices and other things that hold no bytes of their own."""

    is_cut: bool = False
    """The file ends before the member does."""

    damage: str = ""
    """What is wrong with a damaged stretch."""


def walk(file: BinaryIO, size: int, *, is_whole: bool) -> Iterator[Member]:
    """Yield the members of a tar in order, directories left out.

    Args:
        file: The tar, or a range of one that begins at a member.
        size: Its bytes.
        is_whole: Whether an end-of-archive marker is due at the end. If it is missing, one
            damaged stretch of no length is yielded: members may be missing with it.
    """
    position, start = 0, 0
    extended: dict[str, str] = {}
    is_ended = False
    while position < size:
        block = _read_at(file, position, BLOCK)
        if not block.strip(b"\0"):
            is_ended = True
            position += BLOCK
            start, extended = position, {}
            continue
        is_ended = False
        header = _parse_header(block)
        if header is None:
            resume = _next_header(file, position + BLOCK, size)
            yield Member(
                name="",
                offset=start,
                end=resume,
                damage=f"no tar header at byte {position}; {resume - start:,} bytes were left out",
            )
            position = start = resume
            extended = {}
            is_ended = resume >= size
            continue
        data_offset = position + BLOCK
        length = header.size
        if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            extended |= _extension(header.type, _read_at(file, data_offset, length))
        elif header.type not in (tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE):
            length = int(extended.get("size", length)) if _has_data(header) else 0
            is_cut = data_offset + length > size
            if not header.isdir():
                yield Member(
                    name=extended.get("path", header.name),
                    offset=start,
                    end=min(_padded(data_offset + length), size),
                    data_offset=data_offset,
                    size=length,
                    is_file=header.isreg() and header.type != tarfile.GNUTYPE_SPARSE,
                    is_cut=is_cut,
                )
            extended = {}
            start = _padded(data_offset + length)
            if is_cut:
                return
        position = _padded(data_offset + length)
    if start < min(position, size):
        yield Member(name="", offset=start, end=size, damage="the shard ends inside a header")
    elif is_whole and not is_ended:
        text = "the shard ends without an end-of-archive marker; samples may be missing"
        yield Member(name="", offset=size, end=size, damage=text)


def _parse_header(block: bytes) -> tarfile.TarInfo | None:
    """Read one header; None if it is not one."""
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None
    is_extension = header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE)
    if header.size < 0 or (is_extension and header.size > _MAX_EXTENSION):
        return None
    return header


def _has_data(header: tarfile.TarInfo) -> bool:
    """Links, folders and devices may state a size, but nothing follows them."""
    return header.isreg() or header.type not in tarfile.SUPPORTED_TYPES


def _extension(kind: bytes, payload: bytes) -> dict[str, str]:
    """Read a long name, or path and size out of a PAX header."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": payload.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    found: dict[str, str] = {}
    while payload:
        digits, _, _ = payload.partition(b" ")
        if not digits.isdigit() or not 0 < int(digits) <= len(payload):
            break
        line = payload[len(digits) + 1 : int(digits) - 1]
        key, _, value = line.partition(b"=")
        if key == b"path" or (key == b"size" and value.isdigit()):
            found[key.decode()] = value.decode("utf-8", "surrogateescape")
        payload = payload[int(digits) :]
    return found


def _next_header(file: BinaryIO, position: int, size: int) -> int:
    """Find the next block that is a sound header; `size` if there is none."""
    while position < size:
        chunk = _read_at(file, position, _SCAN)
        for index in range(0, len(chunk), BLOCK):
            block = chunk[index : index + BLOCK]
            # Every tar since 1988 has the magic word; without it, pixels might pass for a header.
            if block[257:262] == b"ustar" and _parse_header(block) is not None:
                return position + index
        position += len(chunk)
    return size


def _read_at(file: BinaryIO, position: int, length: int) -> bytes:
    file.seek(position)
    return file.read(length)


def _padded(position: int) -> int:
    return position + -position % BLOCK
