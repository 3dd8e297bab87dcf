"""A row group is decoded once for a run of units, in any order, by any number of readers."""

import io
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.support.zoo_images import good_image

from consomme.base.sample import Reject, Sample
from consomme.storage.readers import row_groups
from consomme.storage.readers.row_groups import open_shard
from consomme.storage.stores.local import LocalStore
from consomme.storage.unit import Unit
from consomme.storage.units import plan_units, read_unit

NUM_ROWS = 5_000


def write(path: Path, num_rows: int = NUM_ROWS, word: str = "row", **options: Any) -> str:
    """A shard of one row group whose rows differ."""
    pixels = good_image("a")
    table = pa.table(
        {
            "image": pa.array([pixels + b"%d" % number for number in range(num_rows)]),
            "caption": [f"{word} {number}" for number in range(num_rows)],
        }
    )
    pq.write_table(table, path, row_group_size=num_rows, **options)
    return str(path)


def captions(unit: Unit) -> list[str]:
    samples, rejects = read_unit(unit)
    assert not rejects
    return [sample.caption for _, sample in samples]


def expected(unit: Unit, word: str = "row") -> list[str]:
    return [f"{word} {number}" for number in range(unit.start, unit.start + unit.count)]


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    row_groups._kept.clear()
    yield
    row_groups._kept.clear()


@pytest.mark.parametrize("order", ["in order", "backwards", "mixed", "each twice", "in pairs"])
def test_units_of_one_row_group_in_any_order(tmp_path: Path, order: str) -> None:
    units = plan_units([write(tmp_path / "s.parquet")], "web", max_rows=300)
    assert len(units) > 10
    chosen = {
        "in order": units,
        "backwards": units[::-1],
        "mixed": random.Random(1).sample(units, len(units)),
        "each twice": [unit for unit in units for _ in range(2)],
        "in pairs": [unit for k in range(0, len(units) - 1, 2) for unit in units[k : k + 2][::-1]],
    }[order]
    for unit in chosen:
        assert captions(unit) == expected(unit)


def test_units_of_several_threads_and_shards(tmp_path: Path) -> None:
    urls = [write(tmp_path / f"{word}.parquet", word=word) for word in ("one", "two", "three")]
    units = plan_units(urls, "web", max_rows=300)
    random.Random(2).shuffle(units)
    with ThreadPoolExecutor(8) as pool:
        for unit, found in zip(units, pool.map(captions, units), strict=True):
            assert found == expected(unit, unit.shard.rpartition("/")[2].partition(".")[0])


class CountingStore(LocalStore):
    """Counts the bytes that are read of its files."""

    num_bytes = 0
    num_opened = 0

    def open(self, path: str) -> BinaryIO:
        store = self
        self.num_opened += 1

        class Counting(io.FileIO):
            def read(self, size: int | None = -1, /) -> Any:
                data = super().read(-1 if size is None else size)
                store.num_bytes += len(data or b"")
                return data

        return Counting(f"{self.root}/{path}")


@pytest.mark.parametrize("stride", [1, 3])
def test_bytes_are_read_once(tmp_path: Path, stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by a reader that gets every third unit, and when a group is streamed."""
    url = write(tmp_path / "s.parquet", compression="none", write_statistics=False)
    size = Path(url).stat().st_size
    for kept_bytes in (row_groups._KEPT_BYTES, 1000):
        monkeypatch.setattr(row_groups, "_KEPT_BYTES", kept_bytes)
        monkeypatch.setattr(row_groups, "_BUFFER", 4096)
        store = CountingStore(str(tmp_path))
        for start in range(0, NUM_ROWS, 100 * stride):
            with open_shard(store, "s.parquet", url, start) as reader:
                (found,) = {
                    batch.column("caption")[0].as_py()
                    for batch in list(reader.read(start, 100))[:1]
                }
            assert found == f"row {start}"
        assert store.num_opened == 1
        assert store.num_bytes < 1.2 * size
        row_groups._kept.clear()


def test_a_reader_that_is_done_keeps_nothing(tmp_path: Path) -> None:
    url = write(tmp_path / "s.parquet")
    *units, last = plan_units([url], "web", max_rows=300)
    for unit in units:
        captions(unit)
        assert len(row_groups._kept) == 1
    captions(last)
    assert not row_groups._kept


def test_few_readers_are_kept(tmp_path: Path) -> None:
    for number in range(5):
        unit, *_ = plan_units([write(tmp_path / f"{number}.parquet")], "web", max_rows=300)
        captions(unit)
    assert [reader.shard[-9:] for _, reader in row_groups._kept] == ["3.parquet", "4.parquet"]


def test_a_shard_that_is_replaced_between_two_units(tmp_path: Path) -> None:
    units = plan_units([write(tmp_path / "s.parquet")], "web", max_rows=300)
    captions(units[0])
    write(tmp_path / "new.parquet", word="new")
    (tmp_path / "new.parquet").replace(tmp_path / "s.parquet")
    assert captions(units[1]) == expected(units[1], "new")


@pytest.mark.parametrize("order", [1, -1])
def test_a_damaged_page_costs_the_same_rows_in_any_order(tmp_path: Path, order: int) -> None:
    url = write(
        tmp_path / "s.parquet", compression="none", data_page_size=4096, use_dictionary=False,
        write_page_checksum=True,
    )  # fmt: skip
    column = pq.ParquetFile(url).metadata.row_group(0).column(1)
    data = bytearray(Path(url).read_bytes())
    middle = column.data_page_offset + column.total_compressed_size // 2
    data[middle : middle + 10] = b"\xff" * 10
    Path(url).write_bytes(data)

    def outcomes(max_rows: int) -> list[tuple[int, str]]:
        found: dict[int, str] = {}
        for unit in plan_units([url], "web", max_rows=max_rows)[::order]:
            samples, rejects = read_unit(unit)
            both: list[tuple[int, Sample | Reject]] = [*samples, *rejects]
            found |= {unit.start + row: type(item).__name__ for row, item in both}
        return sorted(found.items())

    whole = outcomes(NUM_ROWS)
    assert {kind for _, kind in whole} == {"Sample", "Reject"}
    assert len(whole) == NUM_ROWS
    assert outcomes(300) == outcomes(7 * 256) == whole
