"""Make the samples of one record: a row of a table, a line or an element of JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from consomme.base.sample import IMAGE_MARK, ImageFile, Sample
from consomme.storage.readers.documents import as_document
from consomme.storage.readers.images import ImagePlace, check_present, take_images
from consomme.storage.readers.names import (
    CAPTION_KEYS,
    ID_KEYS,
    IMAGE_KEYS,
    TURN_KEYS,
    by_names,
    id_of,
    mapping_hint,
)
from consomme.storage.readers.row import RawRow, RowError
from consomme.storage.readers.turns import Conversation, num_texts, take_texts, with_named_images
from consomme.storage.reading import Reading
from consomme.storage.stores.store import Store

_AS_FOUND = Reading()

Load = Callable[[], dict[str, Any]]
"""Returns a record; raises `RowError` if it cannot be parsed."""


MetaOf = Callable[[dict[str, Any]], dict[str, Any]]
"""Makes metadata of what is left of a record."""

Make = Callable[
    [dict[str, Any], Mapping[str, Any], str, "Context", MetaOf], list[Sample | RowError]
]
"""Makes the samples of a record: gets what the recipe names under its canonical names, what it does
not name though it could be taken for the same, an id for records without one, and the context."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What the records of one shard have in common."""

    shard: str
    """URL of the shard."""

    store: Store
    """The shard's folder."""

    source: str
    """Name of the data set."""

    reading: Reading = field(default_factory=Reading)
    """How records become samples."""

    columns: tuple[str, ...] = ()
    """Of a table: the names of all columns, whether a row has a value there or not."""

    make: Make | None = None
    """Makes the samples of a record; None makes those of a data set of images."""

    @property
    def images(self) -> ImagePlace:
        """Where the images lie that records name."""
        return ImagePlace.of(self.store, self.reading)

    def fallback_id(self, number: int) -> str:
        """Return the id of a record without one.

        Args:
            number: Of the record in the shard, from 0.
        """
        name = self.shard.rpartition("/")[2]
        return f"{name.rpartition('.')[0] or name}-{number:08d}"


def record_row(
    context: Context,
    load: Load,
    *,
    number: int,
    reference: str,
    begin: int = 0,
    meta_of: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> RawRow:
    """Wrap one record.

    Args:
        context: Of the shard.
        load: Returns the record, a new dictionary each time.
        number: Of the record in the shard, from 0.
        reference: Location of its bytes.
        begin: Offset of its bytes.
        meta_of: Makes metadata of what is left of a record.
    """
    fallback_id = context.fallback_id(number)

    def named() -> tuple[dict[str, Any], dict[str, Any]]:
        return by_names(load(), context.reading)

    def own_id() -> str:
        return _take_id(named()[0]) or ""

    def count() -> int:
        try:
            return num_texts(named()[0], context.reading)
        except RowError:
            return 1

    def parse() -> list[Sample | RowError]:
        record, aside = named()
        return (context.make or _samples)(record, aside, fallback_id, context, meta_of)

    return RawRow(
        sample_id=fallback_id,
        reference=reference,
        parse=parse,
        own_id=own_id,
        count=count,
        begin=begin,
    )


def _samples(
    record: dict[str, Any],
    aside: Mapping[str, Any],
    fallback_id: str,
    context: Context,
    meta_of: Callable[[dict[str, Any]], dict[str, Any]],
) -> list[Sample | RowError]:
    sample_id = _take_id(record) or fallback_id
    record = as_document(record)
    has_no_image = "turns" not in record and any(record.get(key) in ([], ()) for key in IMAGE_KEYS)
    found = take_images(record, context.images, sample_id)
    names = sorted({*record, *aside})
    texts = take_texts(record, context.reading, sample_id)
    if texts is None:
        listed = ", ".join(names) or "nothing"
        known = ", ".join((*TURN_KEYS, *CAPTION_KEYS))
        detail = f"found {listed} only; expected one of {known}; {mapping_hint(names)}"
        raise RowError("caption_missing", detail)
    if has_no_image:
        texts = [_without_marks(text) for text in texts]
    meta = meta_of({**record, **aside})
    samples: list[Sample | RowError] = []
    for number, text in enumerate(texts):
        name = f"{sample_id}#{number}" if len(texts) > 1 else sample_id
        try:
            samples.append(_sample(text, name, found, record, meta, context))
        except RowError as problem:
            samples.append(problem)
    return samples


def _without_marks(text: Conversation | RowError) -> Conversation | RowError:
    """Refuse a question that begins or ends with a mark, beside a list of images that is empty.

    Its images are lost. A mark within a sentence is text, as is any mark where a record says
    nothing of images, and in what consomme itself writes.
    """
    if isinstance(text, RowError) or text.images or text.has_parts:
        return text
    asked = [turn.text.strip() for turn in text.turns if turn.role == "user"]
    marks = [
        match[0]
        for said in asked
        for match in IMAGE_MARK.finditer(said)
        if match.start() == 0 or match.end() == len(said)
    ]
    if not marks:
        return text
    detail = f"found a mark of an image ({marks[0]}) for an empty list of images"
    return RowError("conversation_malformed", detail)


def _sample(
    text: Conversation | RowError,
    sample_id: str,
    found: tuple[tuple[ImageFile, ...], bool],
    record: Mapping[str, Any],
    meta: Mapping[str, Any],
    context: Context,
) -> Sample:
    if isinstance(text, RowError):
        raise text
    images, has_list = found
    if not images and not text.images:
        text = with_named_images(text)
    if text.images:
        if images:
            detail = f"the record has {len(images)} images and the turns name others"
            raise RowError("conversation_malformed", detail)
        images, has_list = tuple(context.images.read(one, sample_id) for one in text.images), True
    check_present(images, record, text)
    return Sample(
        sample_id=sample_id,
        images=images,
        turns=text.bound(len(images), has_list=has_list),
        source=context.source,
        meta=meta,
    )


def _take_id(record: dict[str, Any]) -> str | None:
    """Pop the id of a record and return it; None if it has none."""
    for key in ID_KEYS:
        found = id_of({key: record.get(key)}, _AS_FOUND)
        if found is not None:
            del record[key]
            return found
    return None
