"""WebDataset: neighbouring tar members whose names agree up to the first dot are one sample.

The image member gives the pixels and keeps its name, `.txt` or `.caption` the caption, `.json`
turns and metadata. Members are never unpacked to disk, and names that lead out of the tar are
refused.
"""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from consomme.base.sample import Sample, caption_turns
from consomme.storage.readers.tar import Member, walk
from consomme.storage.readers.text import (
    MAX_NAME_BYTES,
    MAX_SAMPLE_BYTES,
    RawRow,
    RowError,
    decode_caption,
    load_record,
    printable,
    refuse_encoded,
    take_turns,
)
from consomme.storage.stores.store import is_safe_path

IMAGE_EXTENSIONS = frozenset(
    "avif bmp gif heic jfif jp2 jpe jpeg jpg png pnm ppm tif tiff webp".split()
)
"""Members that are the picture, by what follows the last dot."""

TEXT_EXTENSIONS = ("txt", "caption")
"""Members that are the caption, best first."""

OWN_KEY = "consomme"
"""Where the writer keeps a sample's own names in its JSON member, if they do not fit the tar's."""


@dataclass
class MemberGroup:
    """The members of one sample."""

    key: str
    """What the members are called up to the first dot; empty for a damaged stretch."""

    offset: int
    """Where the first header begins."""

    end: int
    """Where the next sample begins."""

    members: dict[str, Member] = field(default_factory=dict)
    """By extension, in lower case."""

    problem: tuple[str, str] | None = None
    """Reason and detail of the first thing that is wrong with it, in the order of the bytes."""

    is_damaged: bool = False
    """Whether a damaged stretch is part of it."""

    is_large: bool = False
    """Whether its headers state more than is read, so that some of its members may not be seen."""

    read_end: int | None = None
    """Up to where it is read, if that is not its end: less of what is too large to be read whole,
    one byte more where what follows is not a header; see `tar.walk`."""

    @property
    def images(self) -> list[str]:
        """Extensions of the image members."""
        return [name for name in self.members if name.rpartition(".")[2] in IMAGE_EXTENSIONS]

    @property
    def is_complete(self) -> bool:
        """Whether there is a picture, and a member that may hold the text."""
        has_text = any(name in self.members for name in (*TEXT_EXTENSIONS, "json"))
        return bool(self.images) and has_text


def plan(file: BinaryIO, size: int, shard: str) -> Iterator[tuple[int, int]]:
    """Yield offset and end of each sample, from the headers alone.

    Of a sample that is too large, the range ends where that can be seen.

    Raises:
        DataError: The tar is compressed, so that nothing in it can be reached directly.
    """
    refuse_encoded(file.read(8), shard, "a plain tar")
    for group in _group(walk(file, size, is_whole=True)):
        yield group.offset, group.end if group.read_end is None else group.read_end


def rows(data: bytes, *, shard: str, offset: int, source: str, count: int) -> list[RawRow]:
    """Parse the samples in one range of a tar.

    Args:
        data: The range's bytes.
        shard: The tar's URL, for references.
        offset: Where in the tar the range begins.
        source: Name of the data set.
        count: How many rows were planned.
    """
    groups = _group(walk(io.BytesIO(data), len(data), is_whole=False))
    if len(groups) == count - 1:
        missing = "the shard ends without an end-of-archive marker; samples may be missing"
        end = MemberGroup(key="", offset=len(data), end=len(data))
        end.problem = ("record_malformed", missing)
        groups.append(end)
    base_name = shard.rpartition("/")[2].removesuffix(".tar")
    return [_raw_row(group, data, shard, base_name, offset, source) for group in groups]


def split_name(name: str) -> tuple[str, str]:
    """Split a member's name into the sample's key and the extension after the first dot."""
    folder, slash, base = name.rpartition("/")
    key, _, extension = base.partition(".")
    return (folder + slash + key if key else ""), extension.lower()


def _group(members: Iterable[Member]) -> list[MemberGroup]:
    """Put members together; a damaged stretch joins the neighbours it has left incomplete."""
    groups: list[MemberGroup] = []
    end: MemberGroup | None = None
    for member in members:
        last = groups[-1] if groups else None
        if member.damage and member.offset == member.end:
            end = MemberGroup(key="", offset=member.offset, end=member.end)
            _add(end, member)
            continue
        if member.damage:
            if not last or not last.key or last.is_complete:
                if last and member.is_lost and last.end == member.offset and not last.read_end:
                    last.read_end = last.end + 1
                last = MemberGroup(key="", offset=member.offset, end=member.end)
                groups.append(last)
            last.is_damaged = True
            _add(last, member)
            continue
        key, extension = split_name(member.name.removeprefix("./"))
        if not key and not member.is_cut:
            # Hidden files, such as the ones macOS leaves in every tar, belong to no sample.
            continue
        if not last or not key or last.key != key or extension in last.members:
            last = MemberGroup(key=key, offset=member.offset, end=member.end)
            groups.append(last)
        last.members[extension] = member
        _add(last, member)
    merged: list[MemberGroup] = []
    for group in groups:
        is_rest = not (group.images or group.is_damaged or group.is_large or not group.key)
        if merged and merged[-1].is_damaged and is_rest:
            merged[-1].end = group.end
            merged[-1].read_end = merged[-1].read_end or group.read_end
        else:
            merged.append(group)
    # Where the last sample is incomplete, its own reject tells that the end is missing.
    if end and not (merged and (merged[-1].problem or not merged[-1].is_complete)):
        merged.append(end)
    return merged


def _add(group: MemberGroup, member: Member) -> None:
    """Lengthen a group by a member, and note the first thing that is wrong."""
    group.end = member.end
    size = (member.end if member.damage else member.data_offset + member.size) - group.offset
    is_large = size > MAX_SAMPLE_BYTES and bool(member.size or member.damage)
    name = printable(member.name)
    problem = None
    if member.damage:
        problem = "record_malformed", member.damage
    elif not is_safe_path(member.name):
        problem = "unsafe_path", f"the member {name!r} leads out of the tar"
    elif not member.is_file:
        problem = "record_malformed", f"{name} is not a plain file"
    elif is_large:
        detail = f"{size:,} bytes up to the end of {name}, at most {MAX_SAMPLE_BYTES:,} are read"
        problem = "record_too_large", detail
    elif member.is_cut:
        detail = f"{name} has fewer bytes than the {member.size:,} that its header states"
        problem = "record_truncated", detail
    group.is_large |= is_large
    # Behind a header that lies about its size comes the next one: there is nothing to leave out.
    if is_large and member.end - group.offset > MAX_SAMPLE_BYTES and group.read_end is None:
        group.read_end = member.data_offset + 1
    group.problem = group.problem or problem


def _raw_row(
    group: MemberGroup, data: bytes, shard: str, base_name: str, offset: int, source: str
) -> RawRow:
    key = printable(group.key, MAX_NAME_BYTES) or f"{base_name}@{offset + group.offset}"
    return RawRow(
        sample_id=key,
        reference=f"{shard}@{offset + group.offset}+{group.end - group.offset}",
        parse=lambda: _parse(group, data, source),
    )


def _parse(group: MemberGroup, data: bytes, source: str) -> Sample:
    if group.problem:
        raise RowError(*group.problem)
    images = group.images
    simple = [extension for extension in images if "." not in extension]
    if not images:
        found = ", ".join(sorted(group.members)) or "nothing"
        raise RowError("image_missing", f"found {found}; no member is an image")
    if len(simple or images) > 1:
        raise RowError("record_malformed", f"found several images: {', '.join(sorted(images))}")
    image = group.members[(simple or images)[0]]
    meta: dict[str, Any] = {}
    if "json" in group.members:
        meta = load_record(_bytes(group.members["json"], data))
    own = meta.pop(OWN_KEY, {})
    own = own if isinstance(own, dict) else {}
    captions = [group.members[name] for name in TEXT_EXTENSIONS if name in group.members]
    turns = take_turns(meta) if "turns" in meta or not captions else None
    if turns is None and captions:
        turns = caption_turns(decode_caption(_bytes(captions[0], data)))
    if turns is None:
        raise RowError("caption_missing", "found no .txt, .caption, or text in .json")
    return Sample(
        sample_id=str(own.get("sample_id", group.key)),
        image=_bytes(image, data),
        image_name=str(own.get("image_name", image.name)),
        turns=turns,
        source=source,
        meta=meta,
    )


def _bytes(member: Member, data: bytes) -> bytes:
    return data[member.data_offset : member.data_offset + member.size]
