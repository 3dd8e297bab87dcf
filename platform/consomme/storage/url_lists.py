"""Read URL lists: tables, JSON or plain text with a URL and a caption in each record, no images.

A record becomes a sample whose image has no bytes and the URL as its name; all else of the record
is metadata. Columns are found by the names that published lists have, or by those that the recipe
gives; in a table without names of columns, a URL is known by how it begins.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from consomme.base.errors import DataError
from consomme.base.sample import ImageFile, Reject, Sample, caption_turns
from consomme.storage.readers.names import mapping_hint, missing_columns
from consomme.storage.readers.record import Context
from consomme.storage.readers.row import RowError
from consomme.storage.readers.turns import take_texts
from consomme.storage.shards import Shard
from consomme.storage.unit import MAX_UNIT_BYTES, Unit
from consomme.storage.units import plan_shard, read_records

logger = logging.getLogger(__name__)

URL_COLUMNS = (
    "url",
    "image_url",
    "img_url",
    "photo_url",
    "coco_url",
    "flickr_url",
    "image",
    "link",
)
"""Names of URLs, in order of preference and in any case of letters."""

CAPTION_COLUMNS = (
    *("caption", "text", "alt_text", "txt", "alt", "en_text", "captions", "sentences"),
    *("caption_reference_description", "caption_attribution_description"),
    *("caption_alt_text_description", "description", "title"),
)
"""Names of captions; of the three that WIT has, a row takes the first that it has."""

_UNNAMED = re.compile(r"column\d+")
_WEB = re.compile(r"\s*https?://", re.IGNORECASE)

TAKEN = (
    "download takes Parquet, CSV, TSV, JSON lines, JSON arrays and COCO annotations with a URL and"
    " a caption in each record, and .txt with a URL on each line; text also in gzip or zstd"
)


def plan_urls(shard: Shard, max_rows: int, reading: str = "") -> list[Unit]:
    """Split one list into units.

    Args:
        shard: The list.
        max_rows: Most rows per unit.
        reading: `Reading.for_units`.

    Raises:
        DataError: It has no column for URLs or captions.
    """
    return plan_shard(shard, max_rows, MAX_UNIT_BYTES, reading, check=_check_names)


def read_urls(unit: Unit) -> tuple[list[tuple[int, Sample]], list[tuple[int, Reject]]]:
    """Read one unit of a URL list; see `consomme.storage.units.read_unit`."""
    return read_records(unit, _samples)


def _check_names(names: Sequence[str], shard: str, reading: Any) -> None:
    """Check that a table has columns for URLs and captions.

    Raises:
        DataError: One is missing; the message says how to name it.
    """
    missing = missing_columns(names, reading)
    listed = ", ".join(names)
    if missing:
        raise DataError(
            f"{shard}: reading.columns names {', '.join(missing)}; found the columns {listed}"
        )
    lowered = {name.lower() for name in names}
    is_unnamed = all(_UNNAMED.fullmatch(name) for name in names) and len(names) <= 2
    has_url = "url" in reading.columns or bool(lowered & {*URL_COLUMNS})
    has_caption = "caption" in reading.columns or bool(lowered & {*CAPTION_COLUMNS})
    # A list of URLs alone is one; beside other columns, one of them may be the caption.
    if is_unnamed or (has_url and (has_caption or len(names) == 1)):
        return
    what = "captions" if has_url else "URLs"
    known = ", ".join(CAPTION_COLUMNS if has_url else URL_COLUMNS)
    hint = mapping_hint(names).replace("{image:", "{url:")
    raise DataError(
        f"{shard}: found the columns {listed}; expected one for {what}: {known}; {hint}. {TAKEN}"
    )


def _samples(
    record: dict[str, Any],
    aside: Mapping[str, Any],
    fallback_id: str,
    context: Context,
    meta_of: Callable[[dict[str, Any]], dict[str, Any]],
) -> list[Sample | RowError]:
    """Make the samples of one record."""
    columns = context.reading.columns
    rest = {key: value for key, value in {**record, **aside}.items() if value is not None}
    sample_id = str(rest.pop("sample_id")) if "id" in columns and "sample_id" in rest else ""
    if not sample_id:
        base, _, number = fallback_id.rpartition("-")
        sample_id = f"{base}/{int(number):09d}"
    found = ", ".join(sorted(rest)) or "nothing"
    key = "url" if "url" in columns else _url_key(rest)
    url = rest.pop(key, None) if key else None
    if isinstance(url, Mapping):
        url = next((url[name] for name in ("url", "path", "src") if url.get(name)), None)
    if not isinstance(url, str) or not url.strip():
        detail = f"the URL is {type(url).__name__}; found {found}; {TAKEN}"
        raise RowError("image_missing", detail if url is None else "the URL is empty or no text")
    caption_key = "caption" if "caption" in columns else _caption_key(rest)
    caption = rest.pop(caption_key, None) if caption_key else None
    meta = {"url": url, **meta_of(rest)}
    if caption is None and len(context.columns or {**record, **aside}) == 1:
        # The list has URLs alone.
        _tell_without_captions(context.shard)
        caption, meta["caption_from"] = url, "url"
    texts = take_texts({"caption": caption}, context.reading, sample_id)
    if not texts:
        raise RowError("caption_missing", f"the caption is null; found {found}")
    samples: list[Sample | RowError] = []
    for index, text in enumerate(texts):
        if isinstance(text, RowError):
            samples.append(text)
        elif not text.turns[0].text.strip():
            samples.append(RowError("caption_empty", "the caption is empty"))
        else:
            samples.append(
                Sample(
                    sample_id=f"{sample_id}#{index}" if len(texts) > 1 else sample_id,
                    images=(ImageFile(data=b"", name=url),),
                    turns=caption_turns(text.turns[0].text),
                    source=context.source,
                    meta=meta,
                )
            )
    return samples


def _url_key(record: Mapping[str, Any]) -> str | None:
    lowered = {key.lower(): key for key in reversed(list(record))}
    named = next((lowered[name] for name in URL_COLUMNS if name in lowered), None)
    if named is not None:
        return named
    return next((key for key, value in record.items() if _is_url(value)), None)


def _caption_key(record: Mapping[str, Any]) -> str | None:
    lowered = {key.lower(): key for key in reversed(list(record))}
    named = next((lowered[name] for name in CAPTION_COLUMNS if name in lowered), None)
    unnamed = [key for key in record if _UNNAMED.fullmatch(key)]
    return named or (unnamed[0] if len(unnamed) == 1 else None)


def _is_url(value: Any) -> bool:
    return isinstance(value, str) and bool(_WEB.match(value))


@functools.lru_cache(maxsize=256)
def _tell_without_captions(shard: str) -> None:
    logger.warning(
        "%s: the list has no captions; until there are some, the URL stands in their place (said"
        " once). `recaption` writes captions; reading.columns names a column of them",
        shard,
    )
