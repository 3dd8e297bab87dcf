"""Read a file of questions: a table, JSON, Parquet or WebDataset, with images in it or beside it.

A cell may hold an image in base64 (the TSV files of VLMEvalKit), the index of another row that has
it, a path, encoded bytes, or a list of these; `image_1`, `image_2` and so on hold one each.
"""

from __future__ import annotations

import ast
import csv
import gzip
import hashlib
import io
import json
import re
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from consomme.base.errors import DataError
from consomme.base.sample import printable
from consomme.storage.pins import pinned_url
from consomme.storage.readers.images import ImagePlace
from consomme.storage.readers.row import RowError
from consomme.storage.shards import shard_urls
from consomme.storage.stores.open import open_store, split_url
from consomme.vision.decode import DecodeProblem, decode

IMAGE_COLUMNS = ("image", "images", "image_path", "decoded_image", "jpg", "png", "img")
"""Columns that may hold the images of a row; the first one with a value is used."""

_NUMBERED = re.compile(r"image_?(\d+)$", re.IGNORECASE)
_MAX_NAME = 200
_MAX_REFERENCE = 64
"""Characters of a cell that may be the index of another row; base64 of an image is longer."""


@dataclass(frozen=True, kw_only=True)
class QuestionRow:
    """One row of a file."""

    number: int
    """From 0."""

    cells: Mapping[str, Any]
    """Column -> value, without encoded images; empty ones are left out."""

    images: tuple[bytes, ...] = field(default=(), repr=False)
    """Encoded; each can be decoded."""


@dataclass(frozen=True, kw_only=True)
class QuestionFile:
    """The rows of a file that can be read."""

    url: str
    columns: tuple[str, ...]
    rows: tuple[QuestionRow, ...]
    problems: tuple[str, ...]
    """What is wrong with each of the other rows."""

    version: str
    """Hash of all rows and images."""


def read_question_file(
    file: str, image_root: str | None, image_columns: Sequence[str] = IMAGE_COLUMNS
) -> QuestionFile:
    """Read a file, or all files of a folder or glob.

    Args:
        file: Local path or URL.
        image_root: Folder of images that rows name by paths; None: the folder of the file.
        image_columns: Columns that may hold the images of a row.

    Raises:
        DataError: It has no rows, or is none of the formats.
        RecipeError: There is no such file.
    """
    urls = question_urls(file)
    image_root = image_root and pinned_url(image_root)
    digest = hashlib.sha256()
    rows: list[QuestionRow] = []
    problems: list[str] = []
    columns: dict[str, None] = {}
    for url in urls:
        store, path = split_url(url)
        data = store.read(path)
        digest.update(hashlib.sha256(data).digest())
        records = list(_records(data, url))
        columns |= dict.fromkeys(name for record in records for name in record)
        folder = open_store(image_root) if image_root else split_url(url)[0]
        place = ImagePlace(store=folder, root=image_root)
        by_index = {str(record["index"]): record for record in records if "index" in record}
        for record in records:
            number = len(rows) + len(problems)
            try:
                row = _row(number, record, by_index, place, image_columns)
            except RowError as error:
                problems.append(f"row {number}: {error.reason}: {error.detail}")
                continue
            rows.append(row)
            for image in row.images:
                digest.update(hashlib.sha256(image).digest())
    if not rows:
        found = problems[0] if problems else "no rows"
        raise DataError(f"{file}: found no question that can be read: {found}")
    return QuestionFile(
        url=file,
        columns=tuple(columns),
        rows=tuple(rows),
        problems=tuple(problems),
        version=digest.hexdigest(),
    )


def question_urls(file: str) -> list[str]:
    """Return the files that a path, a URL, a folder or a glob names."""
    file = pinned_url(file)
    store, path = split_url(file)
    return [file] if path and store.exists(path) else shard_urls([file])


def _records(data: bytes, url: str) -> Iterator[dict[str, Any]]:
    """Parse a file by its content, not by its ending."""
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    if data[:4] == b"PAR1":
        try:
            yield from pq.read_table(io.BytesIO(data)).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{url}: found a damaged Parquet file: {error}") from error
        return
    if data[257:262] == b"ustar":
        yield from _tar_records(data, url)
        return
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{url}: found text that is not UTF-8: {error}") from error
    start = text.lstrip()[:1]
    if start in ("[", "{"):
        yield from _json_records(text, url)
    else:
        yield from _table_records(text, url)


def _tar_records(data: bytes, url: str) -> Iterator[dict[str, Any]]:
    """Parse a WebDataset: members of one name up to its first dot are a question.

    A `.json` member has its columns, images are its images in the order of the members, and other
    texts are columns that are called like their endings.
    """
    found: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                stem, _, ending = name.partition(".")
                file = tar.extractfile(member) if member.isfile() and stem and ending else None
                if file is None:
                    continue
                record = found.setdefault(f"{folder}/{stem}".strip("/"), {})
                _add_member(record, ending.lower(), file.read(), f"{url}: {member.name}")
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{url}: found a damaged tar: {error}") from error
    for key, record in found.items():
        yield {"index": key, **record}


def _add_member(record: dict[str, Any], ending: str, content: bytes, where: str) -> None:
    """Add a member of a WebDataset to its question."""
    if ending.rpartition(".")[2] in _IMAGE_ENDINGS:
        record.setdefault("images", []).append(content)
        return
    try:
        text = content.decode("utf-8-sig")
        record.update(json.loads(text) if ending == "json" else {ending: text})
    except (ValueError, TypeError) as error:
        raise DataError(f"{where}: found neither text nor an object of JSON: {error}") from error


_IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2")


def _json_records(text: str, url: str) -> Iterator[dict[str, Any]]:
    try:
        found = json.loads(text)
    except ValueError:
        # Other line ends, such as U+2028, may stand inside of texts.
        lines = [line for line in text.split("\n") if line.strip()]
        try:
            found = [json.loads(line) for line in lines]
        except ValueError as error:
            raise DataError(f"{url}: found neither a JSON array nor JSON lines: {error}") from error
    if isinstance(found, dict):
        # A file of one object: its rows are the one list of objects in it, or its values.
        lists = [v for v in found.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
        values = list(found.values())
        if len(lists) == 1:
            found = lists[0]
        elif values and all(isinstance(value, dict) for value in values):
            found = [{"index": key, **value} for key, value in found.items()]
        else:
            found = [found]
    for number, record in enumerate(found):
        if not isinstance(record, dict):
            raise DataError(
                f"{url}: row {number} is {type(record).__name__}, expected an object per question"
            )
        yield record


def _table_records(text: str, url: str) -> Iterator[dict[str, Any]]:
    head = text.partition("\n")[0]
    delimiter = "\t" if "\t" in head else ","
    limit = csv.field_size_limit(sys.maxsize)
    try:
        table = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        names = next(table, [])
        if len(names) < 2:
            raise DataError(
                f"{url}: found {printable(head[:80])!r} as its first line, expected Parquet, JSON,"
                " JSON lines, or the names of columns, separated by tabs or commas"
            )
        for values in table:
            if values:
                yield dict(zip(names, values, strict=False))
    except csv.Error as error:
        raise DataError(f"{url}: found a table that cannot be read: {error}") from error
    finally:
        csv.field_size_limit(limit)


def _row(
    number: int,
    record: Mapping[str, Any],
    by_index: Mapping[str, Mapping[str, Any]],
    place: ImagePlace,
    image_columns: Sequence[str],
) -> QuestionRow:
    images = []
    for value in _image_values(record, by_index, frozenset(), image_columns):
        data = place.read(value, str(number)).data
        problem = decode(data)
        if isinstance(problem, DecodeProblem):
            raise RowError(problem.reason, problem.detail)
        images.append(data)
    cells = {
        str(name): value
        for name, value in record.items()
        if not _is_empty(value) and not (is_image_column(str(name)) and not _is_name(value))
    }
    return QuestionRow(number=number, cells=cells, images=tuple(images))


def _image_values(
    record: Mapping[str, Any],
    by_index: Mapping[str, Mapping[str, Any]],
    seen: frozenset[str],
    columns: Sequence[str],
) -> list[Any]:
    """Return what a row says about its images, in order."""
    numbered = {
        int(match[1]): value
        for name, value in record.items()
        if (match := _NUMBERED.match(str(name))) and not _is_empty(value)
    }
    if numbered:
        return [numbered[key] for key in sorted(numbered)]
    value = next((record[k] for k in columns if not _is_empty(record.get(k))), None)
    if value is None:
        return []
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _as_list(value)
    if isinstance(value, list | tuple):
        return [one for one in value if not _is_empty(one)]
    reference = str(value)
    if len(reference) <= _MAX_REFERENCE and reference in by_index:
        if reference in seen or str(record.get("index")) == reference:
            detail = f"its image is that of row {reference}, which has none"
            raise RowError("image_missing", detail)
        return _image_values(by_index[reference], by_index, seen | {reference}, columns)
    if isinstance(value, str) and re.fullmatch(r"\d{1,18}", value):
        raise RowError("image_missing", f"its image is that of row {value}, which is not there")
    return [value]


def is_image_column(name: str) -> bool:
    """Whether a column holds images, or says which."""
    return name in IMAGE_COLUMNS or _NUMBERED.match(name) is not None


def _is_name(value: Any) -> bool:
    """Whether a cell has a path or an index, which questions about one image have in common."""
    return isinstance(value, int) or (isinstance(value, str) and len(value) <= _MAX_NAME)


def _is_empty(value: Any) -> bool:
    """Whether a cell has no value: tables have no other way to say so."""
    if isinstance(value, float):
        return value != value
    return value is None or (isinstance(value, str) and value.strip() in ("", "nan", "NaN"))


def _as_list(text: str) -> Any:
    """Parse a list as JSON or Python writes it; what is none stays text."""
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(found, list | tuple):
            return list(found)
    return text


def as_list(value: Any) -> list[str]:
    """Return the texts of a cell that holds one, or a list of them in any form."""
    if isinstance(value, str) and value.strip().startswith(("[", "(")):
        value = _as_list(value.strip())
    if isinstance(value, list | tuple):
        return [text_of_cell(one) for one in value if not _is_empty(one)]
    return [text_of_cell(value)]


def text_of_cell(value: Any) -> str:
    """Return a cell as text; a number of a table that counts is written without a fraction."""
    if isinstance(value, Mapping):
        # VQA has {"answer": …, "answer_confidence": …} for each annotator.
        value = value.get("answer", next(iter(value.values()), ""))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def decoded(images: Sequence[bytes]) -> tuple[Image.Image, ...]:
    """Decode images that were decoded before."""
    found = [decode(data) for data in images]
    assert all(isinstance(image, Image.Image) for image in found)
    return tuple(image for image in found if isinstance(image, Image.Image))
