"""Locate the members of a tar by its headers, and resynchronize after damaged bytes.

Python's `tarfile` stops silently at the first damaged header. `iter_members` resumes at the next
valid one and reports the gap, reads no member's data, and handles concatenated tars. Sizes in
headers are verified: if neither a header, zeros nor the end of the file follow a member's data, but
a valid header lies inside them, the stated size is wrong and only that member is lost.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from consomme.storage.readers.text import MAX_NAME_BYTES

BLOCK = 512
_SCAN_BYTES = 1 << 20
_MAX_EXTENSION_BYTES = 1 << 20
"""Maximum extension header. Long names take a few kilobytes; more is an attack on memory."""

_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_IGNORED = (tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE)


@dataclass(frozen=True, kw_only=True)
class Member:
    """One member of a tar, or one damaged range of bytes."""

    name: str
    """Path inside the tar; empty for a damaged range."""

    offset: int
    """Offset of its first header."""

    end: int
    """Offset of the next member."""

    data_offset: int = 0
    """Offset of its data; for a damaged range, the end of the bytes that show the damage."""

    size: int = 0
    """Bytes of data according to the header."""

    is_file: bool = True
    """False for links, devices, sparse files and other members without plain data."""

    is_cut: bool = False
    """Whether the shard ends or the next header starts before the end of the data."""

    damage: str = ""
    """Description of the damage; empty for a sound member."""

    is_lost: bool = False
    """Whether a damaged range begins with bytes that are not a header."""


@dataclass(kw_only=True)
class _Extension:
    """Values of the extension headers before a member."""

    path: str | None = None
    size: int | None = None
    is_sparse: bool = False
    flaw: str = ""


def iter_members(file: BinaryIO, size: int, *, is_whole: bool) -> Iterator[Member]:
    """Yield the members of a tar in order, without directories.

    Args:
        file: The tar, or a range of one that begins at a member.
        size: Bytes of the tar or range.
        is_whole: Whether an end-of-archive marker is expected at the end. If it is missing, one
            damaged range of length zero is yielded, because members may be missing too.

    The size in a header is verified by what follows the member, which is outside the range for the
    last member of a range. The length of the range encodes it instead: one byte more than whole
    blocks means that neither a header nor zeros follow. That byte itself is not used.
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
            text = f"no tar header at byte {position}; {resume - start:,} bytes were skipped"
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
        if position - start > 2 * _MAX_EXTENSION_BYTES:
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
    """Parse one header; None if the block is not a header."""
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None
    return None if header.size < 0 else header


def _is_header(block: bytes) -> bool:
    """Check whether a block anywhere in the file is a valid header."""
    # Every tar since 1988 has the magic bytes; without them, pixels might pass for a header.
    return block[257:262] == b"ustar" and _parse_header(block) is not None


def _has_data(header: tarfile.TarInfo) -> bool:
    """Check whether data follow a header; links, folders and devices have none despite a size."""
    return header.isreg() or header.type not in tarfile.SUPPORTED_TYPES


def _data_offset(
    file: BinaryIO, position: int, size: int, header: tarfile.TarInfo, block: bytes
) -> int:
    """Return the offset of the data; old GNU sparse files have map blocks before them."""
    offset = position + BLOCK
    more = header.type == tarfile.GNUTYPE_SPARSE and block[482:483] not in (b"\0", b"")
    while more and offset < size:
        more = _read_at(file, offset, BLOCK)[504:505] not in (b"\0", b"")
        offset += BLOCK
    return offset


def _resume(file: BinaryIO, data_offset: int, length: int, size: int, *, is_open: bool) -> int:
    """Return the offset after some data, or of a valid header inside them if their size is wrong.

    The size is right if a header, zeros or the end of the shard follow the data.
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
    """Add the values of an extension header about the member that follows."""
    if header.type in _IGNORED:
        return
    if header.size > _MAX_EXTENSION_BYTES:
        extension.flaw = (
            f"a header of {header.size:,} bytes, at most {_MAX_EXTENSION_BYTES:,} are read"
        )
        return
    payload = _read_at(file, data_offset, header.size)
    if header.type == tarfile.GNUTYPE_LONGNAME:
        extension.path = payload.rstrip(b"\0").decode("utf-8", "surrogateescape")
    else:
        _extend_pax(extension, payload)
    if extension.path is not None and not 0 < len(extension.path) <= MAX_NAME_BYTES:
        extension.flaw = f"a name of {len(extension.path):,} characters"


def _extend_pax(extension: _Extension, payload: bytes) -> None:
    """Parse path and size from PAX lines like `26 path=a/long/name.png`."""
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
    """Return the offset of the first block from here on that is not all zeros."""
    while position < size:
        chunk = _read_at(file, position, _SCAN_BYTES)
        if not chunk or chunk != bytes(len(chunk)):
            zeros = len(chunk) - len(chunk.lstrip(b"\0"))
            return position + zeros - zeros % BLOCK
        position += len(chunk)
    return position


def _next_header(file: BinaryIO, position: int, size: int) -> int:
    """Return the offset of the next valid header; `size` if there is none."""
    while position < size:
        chunk = _read_at(file, position, min(_SCAN_BYTES, size - position))
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
