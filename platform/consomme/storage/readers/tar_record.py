"""Make the samples of one group of tar members."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from consomme.base.sample import ImageFile, Sample, caption_turns
from consomme.storage.image_folder import TEXT_EXTENSIONS
from consomme.storage.readers.members import (
    NUMBERED,
    OWN_KEY,
    VIDEO_EXTENSIONS,
    MemberGroup,
)
from consomme.storage.readers.names import by_names
from consomme.storage.readers.record import Context
from consomme.storage.readers.row import RowError
from consomme.storage.readers.tar import Member
from consomme.storage.readers.text import decode_caption, load_record
from consomme.storage.readers.turns import Conversation, num_texts, take_texts
from consomme.storage.reading import as_names

_HINT = (
    ". If it is elsewhere in the tar: members of a sample have to follow each other, as"
    " `tar --sort=name -cf NEW.tar FOLDER` writes them"
)


@dataclass
class TarRecord:
    """One group of members, and what the recipe says of them."""

    group: MemberGroup
    data: bytes
    """The range of the tar that holds them."""

    context: Context

    def count(self) -> int:
        """Count the samples, by the list of captions alone."""
        try:
            is_caption_file = not self.group.problem and self._text_file() is not None
            return 1 if is_caption_file else num_texts(self._named[0], self.context.reading)
        except RowError:
            return 1

    def samples(self) -> list[Sample | RowError]:
        """Parse the samples.

        Raises:
            RowError: There are none.
        """
        if self.group.problem:
            raise RowError(*self.group.problem)
        record, aside = self._named
        own = record.pop(OWN_KEY, {})
        own = own if isinstance(own, dict) else {}
        members = self._images()
        texts = self._texts(record)
        self._check_complete(members, texts)
        sample_id = str(own.get("sample_id", self.group.key))
        images = tuple(
            ImageFile(data=self._bytes(member), name=str(name))
            for member, name in zip(members, _names(own, members), strict=True)
        )
        meta = {**record, **aside}
        if isinstance(own.get("meta"), dict):
            meta |= own["meta"]
        found: list[Sample | RowError] = []
        for number, text in enumerate(texts):
            if isinstance(text, RowError):
                found.append(text)
                continue
            try:
                turns = text.bound(len(images), has_list=len(images) != 1)
            except RowError as problem:
                found.append(problem)
                continue
            found.append(
                Sample(
                    sample_id=f"{sample_id}#{number}" if len(texts) > 1 else sample_id,
                    images=images,
                    turns=turns,
                    source=self.context.source,
                    meta=meta,
                )
            )
        return found

    @cached_property
    def _named(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The JSON member by the canonical names, and what is set aside of it."""
        members = self.group.members
        named = [name for name in members if name.rpartition(".")[2] == "json"]
        found = "json" if "json" in members else (named[0] if len(named) == 1 else None)
        if found is None:
            return {}, {}
        return by_names(load_record(self._bytes(members[found])), self.context.reading)

    def _text_file(self) -> Member | None:
        """Return the member that is the caption; None if the JSON has the text."""
        columns, members = self.context.reading.columns, self.group.members
        named = as_names(columns.get("caption", ()))
        found = next((name.lower() for name in named if name.lower() in members), None)
        if found is not None:
            return members[found]
        if named and "json" not in members:
            listed = ", ".join(sorted(members))
            detail = f"reading.columns names the caption {named[0]}; found {listed}"
            raise RowError("caption_missing", detail)
        if {"caption", "conversation", "answer"} & set(columns):
            return None
        if self._named[0].get("turns") is not None:
            return None
        return next((members[name] for name in TEXT_EXTENSIONS if name in members), None)

    def _texts(self, record: dict[str, Any]) -> list[Conversation | RowError]:
        file = self._text_file()
        if file is not None:
            caption = decode_caption(self._bytes(file))
            return [Conversation(turns=caption_turns(caption), is_caption=True)]
        # A caption in the JSON beside one in a file is metadata, as img2dataset writes it.
        texts = take_texts(record, self.context.reading, self.group.key)
        if texts is not None:
            return texts
        dotted = [name for name in self.group.members if name.rpartition(".")[2] in TEXT_EXTENSIONS]
        if len(dotted) > 1:
            listed = ", ".join(sorted(dotted))
            raise RowError(
                "caption_missing",
                f"found several texts: {listed}; say in the recipe which to take, as in"
                f" reading.columns: {{caption: {min(dotted)}}}",
            )
        if not dotted:
            return []
        caption = decode_caption(self._bytes(self.group.members[dotted[0]]))
        return [Conversation(turns=caption_turns(caption), is_caption=True)]

    def _check_complete(
        self, members: Sequence[Member], texts: Sequence[Conversation | RowError]
    ) -> None:
        found = ", ".join(sorted(self.group.members)) or "nothing"
        if any(name.rpartition(".")[2] in VIDEO_EXTENSIONS for name in self.group.members):
            remedy = "write the frames of a video as images: .0.jpg, .1.jpg, …"
            if members:
                remedy = "leave the video out if the images are its frames"
            raise RowError("video_unsupported", f"found {found}; {remedy}")
        is_conversation = any(isinstance(t, Conversation) and not t.is_caption for t in texts)
        if not members and not is_conversation:
            detail = f"found {found}; no member is an image{_HINT}"
            raise RowError("image_missing", detail)
        if not texts:
            detail = f"found {found}; no .txt, .caption, or text in .json{_HINT}"
            raise RowError("caption_missing", detail)

    def _images(self) -> list[Member]:
        """Return the members that are images, in order.

        Raises:
            RowError: There are several, and they are not numbered.
        """
        group = self.group
        named = [name.lower() for name in as_names(self.context.reading.columns.get("image", ()))]
        if named:
            return [group.members[name] for name in named if name in group.members]
        images = group.images
        simple = [extension for extension in images if "." not in extension]
        if len(simple or images) <= 1:
            return [group.members[extension] for extension in (simple or images)]
        numbers = {int(found[1]): name for name in images if (found := NUMBERED.match(name))}
        if simple or len(numbers) < len(images):
            listed = ", ".join(sorted(images))
            raise RowError(
                "record_malformed",
                f"found several images: {listed}; say in the recipe which to show, as in"
                f" reading.columns: {{image: {sorted(images)[0]}}}, or a list of them",
            )
        return [group.members[numbers[number]] for number in sorted(numbers)]

    def _bytes(self, member: Member) -> bytes:
        return self.data[member.data_offset : member.data_offset + member.size]


def _names(own: dict[str, Any], members: Sequence[Member]) -> list[Any]:
    """Return the names of the images: their own ones, or those of the members."""
    names = own.get("image_names")
    if isinstance(names, list) and len(names) == len(members):
        return names
    found: list[Any] = [member.name for member in members]
    return [own.get("image_name", found[0])] if len(found) == 1 else found
