"""Read WebDataset tars: adjacent members with the same name up to the first dot are one sample.

The image member has the pixels and keeps its name, `.txt` or `.caption` has the caption, `.json`
turns and metadata. Several images are numbered: `.0.jpg`, `.1.jpg`; a conversation in `.json` may
have none. Members are never unpacked to disk, and paths that lead out of the tar are rejected.
"""

import io
import logging
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from consomme.base.sample import printable
from consomme.storage.readers.members import JUNK, MemberGroup, by_last_dot, split_name
from consomme.storage.readers.record import Context
from consomme.storage.readers.row import Gap, RawRow, UnreadableShardError
from consomme.storage.readers.tar import Member, iter_members
from consomme.storage.readers.tar_record import TarRecord
from consomme.storage.readers.text import MAX_NAME_BYTES, MAX_SAMPLE_BYTES
from consomme.storage.stores.store import is_safe_path

logger = logging.getLogger(__name__)


def plan(file: BinaryIO, size: int) -> Iterator[tuple[int, int, str | None] | Gap]:
    """Yield offset, end and name of each sample, from the headers alone.

    For a sample that is too large, the range ends where this is evident.

    Args:
        file: The tar.
        size: Its bytes.

    Raises:
        UnreadableShardError: There is no header at all, so it is no tar.
    """
    groups = _group(iter_members(file, size, is_whole=True))
    if groups and all(not group.key for group in groups):
        raise UnreadableShardError(f"no tar: {groups[0].problem[1] if groups[0].problem else ''}")
    halves: dict[int, bool] = {}
    num_apart = 0
    for group in groups:
        is_half = bool(group.key) and not group.problem and bool(group.images) != group.has_text
        has_image = bool(group.images)
        if is_half and halves.get(hash(group.key), has_image) != has_image:
            # The other half of a sample that is a row, and a reject, already.
            num_apart += 1
            yield Gap()
            continue
        if is_half:
            halves[hash(group.key)] = has_image
        end = group.end if group.read_end is None else group.read_end
        yield group.offset, end, group.key or None
    if num_apart:
        logger.warning(
            "%s: the members of %s samples do not follow each other, so they are rejected; sort"
            " the tar by name, as `tar --sort=name -cf NEW.tar FOLDER` does",
            printable(str(getattr(file, "name", "a tar"))),
            f"{num_apart:,}",
        )


def rows(data: bytes, context: Context, *, offset: int, count: int) -> list[RawRow]:
    """Parse the samples in one range of a tar.

    Args:
        data: Bytes of the range.
        context: Of the tar.
        offset: Offset of the range in the tar.
        count: Number of planned records.
    """
    groups = _group(iter_members(io.BytesIO(data), len(data), is_whole=False))
    if len(groups) == count - 1:
        missing = "the shard ends without an end-of-archive marker; samples may be missing"
        end = MemberGroup(key="", offset=len(data), end=len(data))
        end.problem = ("record_malformed", missing)
        groups.append(end)
    return [_raw_row(group, data, context, offset) for group in groups]


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
        is_junk = member.name.rpartition("/")[2].lower() in JUNK
        if (is_junk or not key) and not member.is_cut:
            # Hidden files, such as those that macOS adds to tars, belong to no sample.
            continue
        if not last or not key or last.key != key or extension in last.members:
            last = MemberGroup(key=key, offset=member.offset, end=member.end)
            groups.append(last)
        last.members[extension] = member
        _add(last, member)
    merged: list[MemberGroup] = []
    for group in (part for whole in groups for part in _split(whole)):
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


def _split(group: MemberGroup) -> list[MemberGroup]:
    """Split a group whose names have dots before the last one into its samples."""
    stems = None if group.problem or group.is_damaged else by_last_dot(group)
    if not stems:
        return [group]
    parts: list[MemberGroup] = []
    order = [(name.rpartition(".")[0], name) for name in group.members]
    if [stem for stem, _ in order] != [stem for stem, names in stems.items() for _ in names]:
        # The members of a sample do not follow each other.
        return [group]
    for stem, name in order:
        member = group.members[name]
        # The case of letters of the name is that of the member.
        full = member.name.removeprefix("./")[: -len(name.rpartition(".")[2]) - 1]
        if not parts or parts[-1].key != full:
            parts.append(MemberGroup(key=full, offset=member.offset, end=member.end))
        parts[-1].members[name[len(stem) + 1 :]] = member
        _add(parts[-1], member)
    parts[-1].end, parts[-1].read_end = group.end, group.read_end
    return parts


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


def _raw_row(group: MemberGroup, data: bytes, context: Context, offset: int) -> RawRow:
    base_name = context.shard.rpartition("/")[2].removesuffix(".tar")
    begin = offset + group.offset
    key = printable(group.key, MAX_NAME_BYTES) or f"{base_name}@{begin}"
    return RawRow(
        sample_id=key,
        reference=f"{context.shard}@{begin}+{group.end - group.offset}",
        parse=lambda: TarRecord(group, data, context).samples(),
        count=lambda: TarRecord(group, data, context).count(),
        begin=begin,
    )
