"""A shard that is bad as a whole, and a storage that fails, are errors and not rejects."""

import errno
import io
import os
import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.support.zoo_images import good_image
from tests.support.zoo_read import outcomes, write
from tests.support.zoo_tables import row, table_of

from consomme.base.errors import ClusterError, DataError
from consomme.base.sample import Reject, Sample
from consomme.storage.readers import parquet
from consomme.storage.readers.images import read_image
from consomme.storage.readers.record import Context
from consomme.storage.readers.row import RawRow
from consomme.storage.readers.row_groups import ShardReader
from consomme.storage.stores.local import LocalStore

# --- what the whole file is to blame for -----------------------------------------------------


@pytest.mark.parametrize("name", ["s.tar", "s.jsonl", "s.json"])
@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"\x1f\x8b\x08", "gzip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"BZh9", "bzip2"),
        (b"\xfd7zXZ\0", "xz"),
    ],
)
def test_damaged_compressed_shards_say_so(
    tmp_path: Path, name: str, start: bytes, said: str
) -> None:
    (found,) = outcomes(write(tmp_path, name, start + bytes(100)))
    assert isinstance(found, Reject)
    assert (found.sample_id, found.reason) == (name, "shard_unreadable")
    assert f"the {said} file is damaged" in found.detail


def test_utf16_says_so(tmp_path: Path) -> None:
    (found,) = outcomes(write(tmp_path, "s.jsonl", '{"id": "a"}\n'.encode("utf-16")))
    assert isinstance(found, Reject)
    assert "write it as UTF-8" in found.detail


def parquet_of(folder: Path, table: pa.Table) -> str:
    pq.write_table(table, folder / "s.parquet")
    return str(folder / "s.parquet")


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (pa.array([7]), "image is int64"),
        (pa.array([[1.0]]), "image is list"),
        (pa.array([{"url": "x"}]), "image is struct"),
        (pa.array([{"bytes": 5}]), "image is struct"),
    ],
)
def test_a_picture_column_of_the_wrong_type(tmp_path: Path, image: pa.Array, said: str) -> None:
    with pytest.raises(DataError, match=f"s.parquet.*{said}.*expected binary"):
        outcomes(parquet_of(tmp_path, pa.table({"image": image, "caption": ["a"]})))


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    table = pa.Table.from_arrays(
        [pa.array([b"a"]), pa.array([b"b"]), pa.array(["c"])], ["image", "image", "text"]
    )
    with pytest.raises(DataError, match="image is one of 2 of the same name"):
        outcomes(parquet_of(tmp_path, table))


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


class PickledType(pa.ExtensionType):
    """Unpickles every value, as the type that Ray registers does."""

    def __init__(self) -> None:
        super().__init__(pa.binary(), "test.pickled_object")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, data: bytes) -> "PickledType":
        return cls()

    def __arrow_ext_scalar_class__(self) -> type:
        return PickledScalar


def rows_of(file: BinaryIO, count: int) -> list[RawRow]:
    """The first rows of a shard in an open file."""
    reader = ShardReader(file, "s")
    context = Context(shard="s", store=LocalStore("."), source="web")
    return parquet.rows(reader, context, start=0, count=count)


class PickledScalar(pa.ExtensionScalar):
    def as_py(self, **_: Any) -> Any:
        return pickle.loads(self.value.as_py())


@pytest.fixture
def registered() -> Iterator[None]:
    pa.register_extension_type(PickledType())
    yield
    pa.unregister_extension_type("test.pickled_object")


def pickled(folder: Path, name: bytes, *, is_nested: bool) -> str:
    """A shard with a column of pickles, written by a program that knows the type."""
    blob = pickle.dumps(Bomb(folder / "executed"))
    mark = {b"ARROW:extension:name": name, b"ARROW:extension:metadata": b""}
    inner = pa.field("item", pa.binary(), metadata=mark)
    extra = pa.field("extra", pa.list_(inner)) if is_nested else inner.with_name("extra")
    schema = pa.schema([("image", pa.binary()), ("caption", pa.string()), extra])
    values = [[good_image("a")], ["a"], [[blob]] if is_nested else [blob]]
    arrays = [pa.array(value, kind) for value, kind in zip(values, schema.types, strict=True)]
    return parquet_of(folder, pa.Table.from_arrays(arrays, schema=schema))


@pytest.mark.parametrize("is_nested", [False, True])
@pytest.mark.parametrize("name", [b"test.pickled_object", b"ray.data.arrow_pickled_object"])
@pytest.mark.usefixtures("registered")
def test_pickles_are_never_unpickled(tmp_path: Path, name: bytes, is_nested: bool) -> None:
    url = pickled(tmp_path, name, is_nested=is_nested)
    if name == b"test.pickled_object":
        pq.read_table(url).to_pylist()
        assert (tmp_path / "executed").exists(), "the test's own bomb does not work"
        (tmp_path / "executed").unlink()
    (sample,) = outcomes(url)
    assert isinstance(sample, Sample)
    assert sample.caption == "a"
    assert sample.meta == {}
    with open(url, "rb") as file:
        assert ShardReader(file, "s").left_out.keys() == {"extra"}
        assert rows_of(file, 1)[0].parse()
    assert not (tmp_path / "executed").exists()


def test_a_footer_that_states_impossible_sizes(tmp_path: Path) -> None:
    table = pa.table(
        {"image": pa.array([None] * 100_000, pa.binary()), "text": pa.nulls(100_000, pa.string())}
    )
    (found,) = outcomes(parquet_of(tmp_path, table))
    assert isinstance(found, Reject)
    assert "impossible sizes" in found.detail


# --- a failing storage is not a bad row ------------------------------------------------------


class FailingFile(io.BytesIO):
    """Fails while pages are read."""

    error: Exception = OSError(errno.EIO, "the disk is gone")

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() < 2000:
            raise self.error
        return super().read(size)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "the disk is gone"),
        ClusterError("S3 is away"),
        ConnectionResetError(104, "reset"),
    ],
)
def test_a_storage_that_fails_in_the_middle_of_a_shard(tmp_path: Path, error: Exception) -> None:
    table = table_of([row(f"{number}", os.urandom(500)) for number in range(50)])
    sink = io.BytesIO()
    pq.write_table(table, sink)
    file = FailingFile(sink.getvalue())
    file.error = error
    with pytest.raises(type(error)):
        rows_of(file, 50)


class WatchedFile(io.BytesIO):
    """Remembers what is read, and by which threads."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.threads: set[int] = set()
        self.reads: list[int] = []

    def read(self, size: int | None = -1, /) -> bytes:
        time.sleep(0.02)
        self.threads.add(threading.get_ident())
        data = super().read(size)
        self.reads.append(len(data))
        return data


@pytest.mark.parametrize("is_damaged", [True, False])
def test_no_other_thread_reads_a_shard(is_damaged: bool) -> None:
    """One that lets go of the file while the interpreter ends aborts the process."""
    table = table_of([row(f"{number}", os.urandom(20_000)) for number in range(50)])
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=25, compression="none")
    data = bytearray(sink.getvalue())
    if is_damaged:
        group = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(0)
        data[4 : group.column(1).data_page_offset - 100] = b"\xff" * (
            group.column(1).data_page_offset - 104
        )
    file = WatchedFile(bytes(data))
    found = rows_of(file, 50)
    assert len(found) == 50
    num_reads = len(file.reads)
    time.sleep(0.3)
    assert len(file.reads) == num_reads
    assert file.threads == {threading.get_ident()}
    # A read for each row group, beside those of the footer.
    assert sum(size > 100_000 for size in file.reads) == 2


@pytest.mark.parametrize("number", [errno.EIO, errno.ETIMEDOUT, errno.EMFILE, errno.ENOSPC])
def test_a_storage_that_fails_for_a_picture(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(*_: Any) -> bytes:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(LocalStore, "read_inside", fail)
    with pytest.raises(OSError, match=os.strerror(number)):
        read_image(LocalStore("."), "a.png")
