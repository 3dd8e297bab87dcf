"""Read WebDataset tars: adjacent members with the same name up to the first dot are one sample.

The image member has the pixels and keeps its name, `.txt` or `.caption` has the caption, `.json`
turns and metadata. Several images are numbered: `.0.jpg`, `.1.jpg`; a conversation in `.json` may
have none. Members are never unpacked to disk, and paths that lead out of the tar are rejected.
"""

import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from consomme.base.sample import ImageFile, Sample, caption_turns
from consomme.storage.readers.row import RawRow, RowError
from consomme.storage.readers.tar import Member, iter_members
from consomme.storage.readers.text import (
    MAX_NAME_BYTES,
    MAX_SAMPLE_BYTES,
    Conversation,
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
"""Extensions of image members, after the last dot."""

VIDEO_EXTENSIONS = frozenset("avi flv m4v mkv mov mp4 mpeg mpg ogv ts webm wmv".split())
"""Extensions of video members, which are not read."""

_NUMBERED = re.compile(r"(?:image|img|frame)?[-_]?(\d{1,6})\.[^.]+$")
"""Extension of one image of several."""

TEXT_EXTENSIONS = ("txt", "caption")
"""Extensions of caption members, in order of preference."""

OWN_KEY = "consomme"
"""Key of the JSON member for a sample's own names, if they differ from those in the tar."""


@dataclass
class MemberGroup:
    """The members of one sample."""

    key: str
    """Name of the members up to the first dot; empty for a damaged range."""

    offset: int
    """Offset of the first header."""

    end: int
    """Offset of the next sample."""

    members: dict[str, Member] = field(default_factory=dict)
    """Members by extension in lower case."""

    problem: tuple[str, str] | None = None
    """Reason and detail of the first problem, in the order of the bytes."""

    is_damaged: bool = False
    """Whether a damaged range is part of it."""

    is_large: bool = False
    """Whether its headers state more bytes than are read, so that members may be missing."""

    read_end: int | None = None
    """Offset up to which it is read, if not `end`: less for an oversized sample, one byte more if
    no header follows; see `tar.iter_members`."""

    @property
    def images(self) -> list[str]:
        """Extensions of the image members."""
        return [name for name in self.members if name.rpartition(".")[2] in IMAGE_EXTENSIONS]

    @property
    def is_complete(self) -> bool:
        """Whether it has an image, and a member that may hold the text."""
        has_text = any(name in self.members for name in (*TEXT_EXTENSIONS, "json"))
        return bool(self.images) and has_text


def plan(file: BinaryIO, size: int, shard: str) -> Iterator[tuple[int, int]]:
    """Yield offset and end of each sample, from the headers alone.

    For a sample that is too large, the range ends where this is evident.

    Raises:
        DataError: The tar is compressed, so its members cannot be addressed by offset.
    """
    refuse_encoded(file.read(8), shard, "a plain tar")
    for group in _group(iter_members(file, size, is_whole=True)):
        yield group.offset, group.end if group.read_end is None else group.read_end


def rows(data: bytes, *, shard: str, offset: int, source: str, count: int) -> list[RawRow]:
    """Parse the samples in one range of a tar.

    Args:
        data: Bytes of the range.
        shard: URL of the tar, for references.
        offset: Offset of the range in the tar.
        source: Name of the data set.
        count: Number of planned rows.
    """
    groups = _group(iter_members(io.BytesIO(data), len(data), is_whole=False))
    if len(groups) == count - 1:
        missing = "the shard ends without an end-of-archive marker; samples may be missing"
        end = MemberGroup(key="", offset=len(data), end=len(data))
        end.problem = ("record_malformed", missing)
        groups.append(end)
    base_name = shard.rpartition("/")[2].removesuffix(".tar")
    return [_raw_row(group, data, shard, base_name, offset, source) for group in groups]


def split_name(name: str) -> tuple[str, str]:
    """Split a member name into the sample's key and the extension after the first dot."""
    folder, slash, base = name.rpartition("/")
    key, _, extension = base.partition(".")
    return (folder + slash + key if key else ""), extension.lower()


def _group(members: Iterable[Member]) -> list[MemberGroup]:
    """Group members by sample; a damaged range joins adjacent samples that it left incomplete."""
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
            # Hidden files, such as those that macOS adds to tars, belong to no sample.
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
    # If the last sample is incomplete, its own reject reports the missing end.
    if end and not (merged and (merged[-1].problem or not merged[-1].is_complete)):
        merged.append(end)
    return merged


def _add(group: MemberGroup, member: Member) -> None:
    """Extend a group by a member, and record the first problem."""
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
    # If the stated size is wrong, the next header follows and nothing is left out.
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
    meta: dict[str, Any] = {}
    if "json" in group.members:
        meta = load_record(_bytes(group.members["json"], data))
    own_names = meta.pop(OWN_KEY, {})
    own_names = own_names if isinstance(own_names, dict) else {}
    members = _image_members(group)
    captions = [group.members[name] for name in TEXT_EXTENSIONS if name in group.members]
    conversation = take_turns(meta) if "turns" in meta or not captions else None
    if conversation is None and captions:
        caption = decode_caption(_bytes(captions[0], data))
        conversation = Conversation(turns=caption_turns(caption), is_caption=True)
    found = ", ".join(sorted(group.members)) or "nothing"
    if any(name.rpartition(".")[2] in VIDEO_EXTENSIONS for name in group.members):
        remedy = "write the frames of a video as images: .0.jpg, .1.jpg, …"
        if members:
            remedy = "leave the video out if the images are its frames"
        raise RowError("video_unsupported", f"found {found}; {remedy}")
    if not members and (conversation is None or conversation.is_caption):
        raise RowError("image_missing", f"found {found}; no member is an image")
    if conversation is None:
        raise RowError("caption_missing", "found no .txt, .caption, or text in .json")
    names = own_names.get("image_names")
    if not (isinstance(names, list) and len(names) == len(members)):
        names = [member.name for member in members]
        if len(names) == 1:
            names = [own_names.get("image_name", names[0])]
    return Sample(
        sample_id=str(own_names.get("sample_id", group.key)),
        images=tuple(
            ImageFile(data=_bytes(member, data), name=str(name))
            for member, name in zip(members, names, strict=True)
        ),
        turns=conversation.bound(len(members), has_list=len(members) != 1),
        source=source,
        meta=meta,
    )


def _image_members(group: MemberGroup) -> list[Member]:
    """Return the members of a sample that are its images, in order.

    Raises:
        RowError: There are several, and they are not numbered.
    """
    images = group.images
    simple = [extension for extension in images if "." not in extension]
    if len(simple or images) <= 1:
        return [group.members[extension] for extension in (simple or images)]
    numbers = {int(found[1]): name for name in images if (found := _NUMBERED.match(name))}
    if simple or len(numbers) < len(images):
        raise RowError("record_malformed", f"found several images: {', '.join(sorted(images))}")
    return [group.members[numbers[number]] for number in sorted(numbers)]


def _bytes(member: Member, data: bytes) -> bytes:
    return data[member.data_offset : member.data_offset + member.size]
