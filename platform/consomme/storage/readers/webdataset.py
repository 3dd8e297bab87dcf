"""WebDataset: neighbouring tar members whose names agree up to the first dot are one sample.

The image member gives the pixels and keeps its name, `.txt` or `.caption` the caption, `.json`
turns and metadata. Members are never unpacked to disk, and names that lead out of the tar are
refused.
"""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from consomme.base.errors import DataError
from consomme.base.sample import Sample, caption_turns
from consomme.storage.files import is_safe_path
from consomme.storage.readers.tar import Member, walk
from consomme.storage.readers.text import (
    RawRow,
    RowError,
    decode_caption,
    load_record,
    printable,
    take_turns,
)

IMAGE_EXTENSIONS = frozenset(
    "avif bmp gif heic jfif jp2 jpe jpeg jpg png pnm ppm tif tiff webp".split()
)
"""Members that are the picture, by what follows the last dot."""

TEXT_EXTENSIONS = ("txt", "caption")
"""Members that are the caption, best first."""

OWN_KEY = "consomme"
"""Where the writer keeps a sample's own names in its JSON member, if they do not fit the tar's."""

_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}


@dataclass
class Group:
    """The members of one sample."""

    key: str
    offset: int
    end: int
    members: dict[str, Member] = field(default_factory=dict)
    damage: str = ""

    @property
    def images(self) -> list[str]:
        """Extensions of the image members."""
        return [name for name in self.members if name.rpartition(".")[2] in IMAGE_EXTENSIONS]

    @property
    def has_text(self) -> bool:
        """Whether there is any member that may hold the text."""
        return any(name in self.members for name in (*TEXT_EXTENSIONS, "json"))


def plan(file: BinaryIO, size: int, shard: str) -> Iterator[tuple[int, int]]:
    """Yield offset and end of each sample, from the headers alone.

    Raises:
        DataError: The tar is compressed, so that nothing in it can be reached directly.
    """
    start = file.read(8)
    for magic, name in _COMPRESSED.items():
        if start.startswith(magic):
            raise DataError(f"{shard}: found a {name} file, expected a plain tar; decompress it")
    for group in _group(walk(file, size, is_whole=True)):
        yield group.offset, group.end


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
        groups.append(Group(key="", offset=len(data), end=len(data), damage=missing))
    stem = shard.rpartition("/")[2].removesuffix(".tar")
    return [_raw_row(group, data, shard, stem, offset, source) for group in groups]


def split_name(name: str) -> tuple[str, str]:
    """Split a member's name into the sample's key and the extension after the first dot."""
    folder, slash, base = name.rpartition("/")
    key, _, extension = base.partition(".")
    return (folder + slash + key if key else ""), extension.lower()


def _group(members: Iterable[Member]) -> list[Group]:
    """Put members together; a damaged stretch joins the neighbours it has left incomplete."""
    groups: list[Group] = []
    for member in members:
        if member.damage:
            last = groups[-1] if groups else None
            if last and last.key and not (last.images and last.has_text):
                last.damage, last.end = member.damage, member.end
            else:
                groups.append(
                    Group(key="", offset=member.offset, end=member.end, damage=member.damage)
                )
            continue
        key, extension = split_name(member.name.removeprefix("./"))
        if not key:
            # Hidden files, such as the ones macOS leaves in every tar, belong to no sample.
            continue
        if not groups or groups[-1].key != key or extension in groups[-1].members:
            groups.append(Group(key=key, offset=member.offset, end=member.end))
        groups[-1].members[extension] = member
        groups[-1].end = member.end
    merged: list[Group] = []
    for group in groups:
        if merged and merged[-1].damage and group.key and not group.images and not group.damage:
            merged[-1].end = group.end
        else:
            merged.append(group)
    return merged


def _raw_row(group: Group, data: bytes, shard: str, stem: str, offset: int, source: str) -> RawRow:
    key = printable(group.key) or f"{stem}@{offset + group.offset}"
    return RawRow(
        sample_id=key,
        reference=f"{shard}@{offset + group.offset}+{group.end - group.offset}",
        parse=lambda: _parse(group, data, source),
    )


def _parse(group: Group, data: bytes, source: str) -> Sample:
    _check(group)
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


def _check(group: Group) -> None:
    names = [member.name for member in group.members.values()]
    for name in names:
        if not is_safe_path(name):
            raise RowError("unsafe_path", f"member {printable(name)!r} leads out of the tar")
    if group.damage:
        raise RowError("record_malformed", group.damage)
    for member in group.members.values():
        if member.is_cut:
            raise RowError("record_truncated", f"the shard ends inside {printable(member.name)}")
        if not member.is_file:
            raise RowError("record_malformed", f"{printable(member.name)} is not a plain file")


def _bytes(member: Member, data: bytes) -> bytes:
    return data[member.data_offset : member.data_offset + member.size]
