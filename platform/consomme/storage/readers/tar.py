"""Tar files by their headers: where each member is, and what to do where the bytes are damaged.

Python's `tarfile` stops silently at the first damaged header. This walk goes on at the next sound
one and reports the gap, reads no member's data, and copes with tars laid end to end. Headers are
not believed further than they can be checked: a size that ends in the middle of nowhere while a
sound header lies before that is a lie, and costs its member only.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from consomme.storage.readers.text import MAX_NAME_BYTES

BLOCK = 512
_SCAN = 1 << 20
_MAX_EXTENSION = 1 << 20
"""Longest header before a member. Long names take some kilobytes; more is an attack on memory."""

_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_IGNORED = (tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE)


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
    """Where its bytes begin; for a damaged stretch, how far one must read to see the damage."""

    size: int = 0
    """How many bytes it has, as its header says."""

    is_file: bool = True
    """False for links, devices, sparse files and other things that do not hold their bytes."""

    is_cut: bool = False
    """The shard ends, or the next header comes, before the member has all its bytes."""

    damage: str = ""
    """What is wrong with a damaged stretch."""

    is_lost: bool = False
    """Whether a damaged stretch begins with something that is no header."""


@dataclass(kw_only=True)
class _Extension:
    """What the headers before a member say about it."""

    path: str | None = None
    size: int | None = None
    is_sparse: bool = False
    flaw: str = ""


def walk(file: BinaryIO, size: int, *, is_whole: bool) -> Iterator[Member]:
    """Yield the members of a tar in order, directories left out.

    Args:
        file: The tar, or a range of one that begins at a member.
        size: Its bytes.
        is_whole: Whether an end-of-archive marker is due at the end. If it is missing, one
            damaged stretch of no length is yielded: members may be missing with it.

    What a header states about its member is judged by what follows, and behind a range's last
    member that cannot be seen. So the length of a range tells it: one byte more than whole blocks
    means that no header and no zeros follow. That byte itself is never looked at.
    """
    is_open = size % BLOCK == 1 and not is_whole
    size -= size % BLOCK == 1
    position, start = 0, 0
    extension = _Extension()
    is_ended = False
    while position < size:
        block = _read_at(file, position, BLOCK)
        if not block.strip(b"\0"):
            is_ended = True
            position = start = _skip_zeros(file, position + BLOCK, size)
            extension = _Extension()
            continue
        is_ended = False
        header = _parse_header(block)
        if header is None:
            resume = _next_header(file, position + BLOCK, size)
            text = f"no tar header at byte {position}; {resume - start:,} bytes were left out"
            yield _damage(start, resume, text, is_lost=start == position)
            position = start = resume
            extension = _Extension()
            is_ended = resume >= size
            continue
        is_extension = header.type in (tarfile.GNUTYPE_LONGNAME, *_PAX, *_IGNORED)
        data_offset = _data_offset(file, position, size, header, block)
        length = header.size if is_extension or _has_data(header) else 0
        if extension.size is not None and length and not is_extension:
            length = extension.size
        resume = _resume(file, data_offset, length, size, is_open=is_open)
        if is_extension and resume < _padded(data_offset + length):
            extension.flaw = f"the header at byte {position} states {length:,} bytes, too many"
        elif is_extension:
            _extend(extension, header, file, data_offset)
        if is_extension:
            position = resume
            continue
        name = header.name if extension.path is None else extension.path
        if position - start > 2 * _MAX_EXTENSION:
            extension.flaw = f"{position - start:,} bytes of headers before one member"
        if extension.flaw or not name:
            yield _damage(start, min(resume, size), extension.flaw or "a member without a name")
        elif not header.isdir():
            is_cut = data_offset + length > min(resume, size)
            yield Member(
                name=name,
                offset=start,
                end=min(resume, size),
                data_offset=data_offset,
                size=length,
                is_file=header.isreg()
                and header.type != tarfile.GNUTYPE_SPARSE
                and not extension.is_sparse,
                is_cut=is_cut,
            )
            if is_cut and resume >= size:
                return
        position = start = resume
        extension = _Extension()
    if start < min(position, size):
        yield _damage(start, size, "the shard ends inside a header")
    elif is_whole and not is_ended:
        text = "the shard ends without an end-of-archive marker; samples may be missing"
        yield _damage(size, size, text)


def _damage(start: int, end: int, text: str, *, is_lost: bool = False) -> Member:
    return Member(
        name="",
        offset=start,
        end=end,
        data_offset=min(start + BLOCK, end),
        damage=text,
        is_lost=is_lost,
    )


def _parse_header(block: bytes) -> tarfile.TarInfo | None:
    """Read one header; None if it is not one."""
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None
    return None if header.size < 0 else header


def _is_header(block: bytes) -> bool:
    """Tell whether a block somewhere in the file is a sound header."""
    # Every tar since 1988 has the magic word; without it, pixels might pass for a header.
    return block[257:262] == b"ustar" and _parse_header(block) is not None


def _has_data(header: tarfile.TarInfo) -> bool:
    """Links, folders and devices may state a size, but nothing follows them."""
    return header.isreg() or header.type not in tarfile.SUPPORTED_TYPES


def _data_offset(
    file: BinaryIO, position: int, size: int, header: tarfile.TarInfo, block: bytes
) -> int:
    """Find where the data begin; old sparse files have blocks of their map before them."""
    offset = position + BLOCK
    more = header.type == tarfile.GNUTYPE_SPARSE and block[482:483] not in (b"\0", b"")
    while more and offset < size:
        more = _read_at(file, offset, BLOCK)[504:505] not in (b"\0", b"")
        offset += BLOCK
    return offset


def _resume(file: BinaryIO, data_offset: int, length: int, size: int, *, is_open: bool) -> int:
    """Where to go on after some data: behind them, or at a header that comes before they end.

    Where data are followed by a header, zeros or the end of the shard, their length is believed.
    """
    end = _padded(data_offset + length)
    if end < size:
        block = _read_at(file, end, BLOCK)
        if not block.strip(b"\0") or _parse_header(block) is not None:
            return end
    elif data_offset + length <= size and not is_open:
        return end
    inside = _next_header(file, data_offset, min(end, size))
    return inside if inside < min(end, size) else end


def _extend(
    extension: _Extension, header: tarfile.TarInfo, file: BinaryIO, data_offset: int
) -> None:
    """Add what a header says about the member that follows."""
    if header.type in _IGNORED:
        return
    if header.size > _MAX_EXTENSION:
        extension.flaw = f"a header of {header.size:,} bytes, at most {_MAX_EXTENSION:,} are read"
        return
    payload = _read_at(file, data_offset, header.size)
    if header.type == tarfile.GNUTYPE_LONGNAME:
        extension.path = payload.rstrip(b"\0").decode("utf-8", "surrogateescape")
    else:
        _extend_pax(extension, payload)
    if extension.path is not None and not 0 < len(extension.path) <= MAX_NAME_BYTES:
        extension.flaw = f"a name of {len(extension.path):,} characters"


def _extend_pax(extension: _Extension, payload: bytes) -> None:
    """Read path and size out of lines like `26 path=a/long/name.png`."""
    at = 0
    is_named = False
    while at < len(payload):
        digits = payload[at : at + 8].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        if not len(digits) < length <= len(payload) - at:
            if payload[at:].strip(b"\0"):
                extension.flaw = "a PAX header that cannot be parsed"
            return
        key, _, value = payload[at + len(digits) + 1 : at + length - 1].partition(b"=")
        if key == b"size":
            if not value.isdigit() or len(value) > 19:
                extension.flaw = f"a PAX header with the size {value[:40]!r}"
                return
            extension.size = int(value)
        elif key.startswith(b"GNU.sparse."):
            extension.is_sparse = True
            is_named |= key == b"GNU.sparse.name"
        if key == b"GNU.sparse.name" or (key == b"path" and not is_named):
            extension.path = value.decode("utf-8", "surrogateescape")
        at += length


def _skip_zeros(file: BinaryIO, position: int, size: int) -> int:
    """Find the first block from here on that is not all zeros."""
    while position < size:
        chunk = _read_at(file, position, _SCAN)
        if not chunk or chunk != bytes(len(chunk)):
            zeros = len(chunk) - len(chunk.lstrip(b"\0"))
            return position + zeros - zeros % BLOCK
        position += len(chunk)
    return position


def _next_header(file: BinaryIO, position: int, size: int) -> int:
    """Find the next block that is a sound header; `size` if there is none."""
    while position < size:
        chunk = _read_at(file, position, min(_SCAN, size - position))
        if not chunk:
            return size
        for index in range(0, len(chunk), BLOCK):
            block = chunk[index : index + BLOCK]
            if _is_header(block):
                return position + index
        position += len(chunk)
    return size


def _read_at(file: BinaryIO, position: int, length: int) -> bytes:
    file.seek(position)
    return file.read(length)


def _padded(position: int) -> int:
    return position + -position % BLOCK
