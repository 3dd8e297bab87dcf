"""Write samples as WebDataset tars or Parquet, keeping their names and bytes.

The same samples always give the same bytes: a shard has no time, user or host. `tar_bytes` and
`parquet_bytes` serialize one shard in memory, as the output of a unit; the writers split a stream
into shards by rows and size.
"""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from consomme.base.errors import DataError
from consomme.base.manifest import FileSum
from consomme.base.sample import ImageFile, Sample, turn_to_json
from consomme.base.sample_tables import samples_to_table, table_schema
from consomme.storage.dataset_card import CARD, card, count_fields
from consomme.storage.image_folder import IMAGE_EXTENSIONS
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.ledger.sums import sum_of
from consomme.storage.readers.members import OWN_KEY, split_name
from consomme.storage.stores.store import FileInfo, Store, is_safe_path

_ESCAPES = {ord(char): f"%{ord(char):02X}" for char in '%./\\:*?"<>|\0'}

_CAPTION_KEYS = frozenset({"turns", OWN_KEY})
_TURN_KEYS = _CAPTION_KEYS | {"system", "tools", "functions"}
"""Keys of a `.json` that have a meaning beside a caption, or beside turns."""


def tar_bytes(samples: Sequence[Sample]) -> bytes:
    """Serialize samples as one WebDataset tar.

    A caption is stored in `.txt`; a longer conversation, metadata, and names that a tar cannot hold
    in `.json`. Several images are `.0.jpg`, `.1.jpg`, …, and a turn with images is a list of parts
    of type `text` and `image`, the latter with the image's index. Reading the tar gives the same
    samples.

    Raises:
        DataError: Two samples have the same id.
    """
    buffer = io.BytesIO()
    keys: set[str] = set()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for sample in samples:
            key, members = _member_names(sample)
            if key in keys:
                raise DataError(f"sample {sample.sample_id!r} occurs twice in one shard")
            keys.add(key)
            for member, image in zip(members, sample.images, strict=True):
                _add(tar, member, image.data)
            is_caption = _is_caption(sample)
            if is_caption:
                _add(tar, f"{key}.txt", sample.caption.encode())
            record = _record(sample, key, members, is_caption=is_caption)
            if record:
                text = json.dumps(record, sort_keys=True, ensure_ascii=True)
                _add(tar, f"{key}.json", text.encode())
    return buffer.getvalue()


def parquet_bytes(samples: Sequence[Sample], row_group_rows: int = 256) -> bytes:
    """Serialize samples as one Parquet file; see `samples_to_table` for its columns.

    Images are structs of bytes and path, and marked as images for Hugging Face `datasets`, which
    are loaded as such there.

    Args:
        samples: The samples.
        row_group_rows: Rows per row group; a unit reads whole row groups.
    """
    buffer = io.BytesIO()
    # Images are compressed already, and text is a small part.
    table = _with_features(samples_to_table(samples))
    pq.write_table(table, buffer, row_group_size=row_group_rows, compression="none")
    return buffer.getvalue()


def _with_features(table: pa.Table) -> pa.Table:
    """Mark the images of a table for `datasets`, which wants them nullable and as structs."""
    name = "images" if "images" in table.column_names else "image"
    index = table.column_names.index(name)
    column = table.column(index)
    if name == "image":
        names = table.column("image_name").combine_chunks()
        pixels = column.combine_chunks()
        column = pa.StructArray.from_arrays([pixels, names], ["bytes", "path"])
    kind = {"_type": "Image"}
    features = {"info": {"features": {name: kind if name == "image" else [kind]}}}
    marked = table.set_column(index, pa.field(name, column.type), column)
    return marked.replace_schema_metadata({"huggingface": json.dumps(features)})


def shard_fields(samples: Sequence[Sample], suffix: str) -> dict[str, float]:
    """Count the columns or members of a shard, as sums of a unit, for `dataset_card.card`.

    Args:
        samples: Of the shard.
        suffix: Of its format.
    """
    if suffix == "parquet":
        return count_fields(table_schema(samples).names)
    return count_fields(name for sample in samples for name in _member_fields(sample))


def write_card(folder: RunFolder, name: str, file_format: str) -> None:
    """Write the card of the shards that the units of a run wrote; see `dataset_card.card`.

    Args:
        folder: The run; all its units are committed.
        name: Title of the card.
        file_format: A key of `FORMATS`.
    """
    suffix, _ = FORMATS[file_format]
    num_samples = folder.total_counts().get("samples", 0)
    data = card(name, suffix, folder.total_sums(), num_samples, "shards/")
    # Beside the shards lie only files that records of units name.
    folder.store.write(CARD, data)


class ShardWriter:
    """Split a stream of samples into shards; use `WebDatasetWriter` or `ParquetWriter`.

    Shards are named `<prefix>-000000.<suffix>` and written atomically. Use as a context manager, or
    call `close` for the last shard.

    Args:
        store: Where to write.
        prefix: Path of the shards without number and suffix.
        max_rows: Maximum samples per shard.
        max_mb: Maximum megabytes (2**20 bytes) of images and text per shard, unless one sample has
            more.
    """

    suffix: str
    pack: Callable[[Sequence[Sample]], bytes]

    def __init__(
        self, store: Store, prefix: str, *, max_rows: int = 4096, max_mb: float = 128
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._max_rows = max_rows
        self._max_bytes = int(max_mb * 2**20)
        self._samples: list[Sample] = []
        self._num_bytes = 0
        self._fields: Counter[str] = Counter()
        self._num_written = 0
        self.sums: dict[str, FileSum] = {}
        """Size and checksum of each shard that is written, by path, in order."""

    def write(self, sample: Sample) -> None:
        """Add one sample; writes the current shard first if it is full."""
        size = sample.num_bytes
        is_full = len(self._samples) >= self._max_rows or self._num_bytes + size > self._max_bytes
        if self._samples and is_full:
            self._flush()
        self._samples.append(sample)
        self._num_bytes += size

    def close(self) -> list[FileInfo]:
        """Write the last shard and return all shards in order."""
        if self._samples:
            self._flush()
        return [FileInfo(path=path, size=one.num_bytes) for path, one in self.sums.items()]

    def write_card(self, name: str) -> None:
        """Write the card of all shards beside them, after `close`; see `dataset_card.card`.

        Args:
            name: Title of the card.
        """
        data = card(name, self.suffix, self._fields, self._num_written)
        folder, slash, _ = self._prefix.rpartition("/")
        path = f"{folder}{slash}{CARD}"
        self._store.write(path, data)
        self.sums[path] = sum_of(data)

    def __enter__(self) -> Self:
        """Return the writer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write the last shard, unless an exception was raised."""
        if kind is None:
            self.close()

    def _flush(self) -> None:
        data = type(self).pack(self._samples)
        path = f"{self._prefix}-{len(self.sums):06d}.{self.suffix}"
        self._store.write(path, data)
        self.sums[path] = sum_of(data)
        self._fields.update(shard_fields(self._samples, self.suffix))
        self._num_written += len(self._samples)
        self._samples, self._num_bytes = [], 0


class WebDatasetWriter(ShardWriter):
    """Write WebDataset tars; see `ShardWriter` and `tar_bytes`."""

    suffix = "tar"
    pack = staticmethod(tar_bytes)


class ParquetWriter(ShardWriter):
    """Write Parquet files; see `ShardWriter` and `parquet_bytes`."""

    suffix = "parquet"
    pack = staticmethod(parquet_bytes)


def _is_caption(sample: Sample) -> bool:
    """Whether the text is all there is to say about the images."""
    (turn, *others) = sample.turns
    is_text = turn.role == "assistant" and not others and isinstance(turn.content, str)
    # Beside several images, readers look for their marks in a caption.
    is_unmarked = len(sample.images) == 1 or not sample.has_image_marks
    return is_text and bool(sample.images) and turn.is_labelled and is_unmarked


def _member_fields(sample: Sample) -> Iterator[str]:
    """Yield the names by which `datasets` knows the members of a sample: what follows the key."""
    key, members = _member_names(sample)
    for member in members:
        yield member.rpartition("/")[2].partition(".")[2]
    is_caption = _is_caption(sample)
    if is_caption:
        yield "txt"
    if _record(sample, key, members, is_caption=is_caption):
        yield "json"


def _member_names(sample: Sample) -> tuple[str, list[str]]:
    """Choose tar key and image member names; those of the sample if a tar allows them."""
    if len(sample.images) == 1:
        name = sample.images[0].name
        key, extension = split_name(name)
        is_image = extension.rpartition(".")[2] in IMAGE_EXTENSIONS
        is_kept = is_image and is_safe_path(name) and name[:2] != "./" and not _is_hidden(key)
        if key == sample.sample_id and is_kept:
            return key, [name]
    key = sample.sample_id
    is_kept = split_name(f"{key}.x") == (key, "x") and is_safe_path(key)
    if not is_kept or "%" in key or key.startswith("./") or _is_hidden(key):
        key = key.translate(_ESCAPES)
        key = f"%5F{key[1:]}" if _is_hidden(key) else key
    suffixes = [_suffix(image) for image in sample.images]
    if len(suffixes) == 1:
        return key, [f"{key}.{suffixes[0]}"]
    return key, [f"{key}.{number}.{suffix}" for number, suffix in enumerate(suffixes)]


def _is_hidden(key: str) -> bool:
    """Whether `datasets` passes over the members of a key, as it does for names of Python's own."""
    return key.rpartition("/")[2].startswith("__")


def _suffix(image: ImageFile) -> str:
    last = image.name.rpartition(".")[2].lower()
    return last if last in IMAGE_EXTENSIONS else _sniff(image.data)


def _record(sample: Sample, key: str, members: list[str], *, is_caption: bool) -> dict[str, Any]:
    own: dict[str, Any] = {}
    record = dict(sample.meta)
    if not (_CAPTION_KEYS if is_caption else _TURN_KEYS).isdisjoint(record):
        # A reader would take these for parts of the text.
        own["meta"], record = record, {}
    if not is_caption:
        # In parts, a mark of an image in a text is text.
        has_parts = bool(sample.images) and sample.has_image_marks
        record["turns"] = [turn_to_json(turn, has_parts=has_parts) for turn in sample.turns]
    if key != sample.sample_id:
        own["sample_id"] = sample.sample_id
    names = [image.name for image in sample.images]
    if members != names:
        own |= {"image_name": names[0]} if len(names) == 1 else {"image_names": names}
    return {**record, OWN_KEY: own} if own else record


def _sniff(image: bytes) -> str:
    """Guess the file extension from the first bytes, for images without a name."""
    if image.startswith(b"\x89PNG"):
        return "png"
    if image.startswith(b"GIF8"):
        return "gif"
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "webp"
    return "jpg"


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    header = tarfile.TarInfo(name)
    header.size = len(data)
    header.mode = 0o644
    tar.addfile(header, io.BytesIO(data))


FORMATS = {"webdataset": ("tar", tar_bytes), "parquet": ("parquet", parquet_bytes)}
