"""Listings and open files on object stores: how many requests they take, and in what order."""

import datetime
import io
import itertools
import random
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.support.faulty_proxy import FaultyProxy

from consomme.base.errors import ClusterError
from consomme.base.sample import ImageFile, Sample, caption_turns
from consomme.storage.stores import s3 as object_store
from consomme.storage.stores.listing import list_parallel, merge_level
from consomme.storage.stores.ranged_file import READ_AHEAD, open_ranged
from consomme.storage.stores.s3 import S3Store
from consomme.storage.stores.store import FileInfo
from consomme.storage.units import plan_units
from consomme.storage.writers import tar_bytes

MIB = 2**20
NOW = datetime.datetime.now(datetime.UTC)


def test_planning_a_tar_of_small_pictures_takes_few_requests(
    store: S3Store, proxy: FaultyProxy
) -> None:
    samples = [
        Sample(
            sample_id=f"{number:04d}",
            images=(ImageFile(data=b"\x89PNG" + bytes(20_000), name=f"{number:04d}.png"),),
            turns=caption_turns("x"),
            source="web",
        )
        for number in range(600)
    ]
    store.write("s.tar", tar_bytes(samples))
    assert store.size("s.tar") > 12 * MIB
    before = proxy.counts["GET"]
    units = plan_units([f"{store.url}/s.tar"], "web")
    assert sum(unit.count for unit in units) == 600
    assert proxy.counts["GET"] - before <= 8


def test_a_parquet_footer_takes_one_request(store: S3Store, proxy: FaultyProxy) -> None:
    table = pa.table({"text": [f"{number}" * 50 for number in range(50_000)]})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="none", use_dictionary=False)
    store.write("t.parquet", buffer.getvalue())
    with store.open("t.parquet") as file:
        before = proxy.counts["GET"]
        assert pq.ParquetFile(file).metadata.num_rows == 50_000
        assert proxy.counts["GET"] - before == 1
        assert pq.ParquetFile(file).read() == table


def test_reading_on_fetches_more_and_jumping_fetches_little() -> None:
    data = random.Random(1).randbytes(24 * MIB)
    fetched: list[tuple[int, int]] = []

    def fetch(offset: int, length: int) -> bytes:
        fetched.append((offset, length))
        return data[offset : offset + length]

    with open_ranged(fetch, len(data)) as file:
        while file.read(10_000):
            pass
    assert len(fetched) <= 9
    assert sum(length for _, length in fetched) == len(data)
    fetched.clear()
    with open_ranged(fetch, len(data)) as file:
        for offset in (20 * MIB, 3 * MIB, 11 * MIB):
            file.seek(offset)
            file.read(512)
    assert [length for _, length in fetched] == [READ_AHEAD] * 3


def test_a_level_in_pages_comes_in_byte_order_with_little_kept_back() -> None:
    def entries(*paths: str) -> list[FileInfo]:
        return [FileInfo(path=path, size=0) for path in paths]

    by_name = entries("a", "a/"), entries("a!", "a-x"), [], entries("ab/", "b")
    by_key = entries("a", "a!"), entries("a-x", "a/"), entries("ab/", "b")
    for pages in (by_name, by_key):
        assert [entry.path for entry in merge_level(pages)] == ["a", "a!", "a-x", "a/", "ab/", "b"]
    endless = (entries(f"{number:09d}") for number in itertools.count())
    assert next(merge_level(endless)).path == "000000000"


def test_listings_ask_for_no_more_than_is_read(
    store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = itertools.count()

    class Client:
        def list_objects_v2(self, Prefix: str, **_: Any) -> dict[str, Any]:
            page = next(asked)
            keys = (f"{Prefix}{page:06d}-{number:03d}" for number in range(1000))
            return {
                "ResponseMetadata": {"HTTPHeaders": {}},
                "IsTruncated": True,
                "NextContinuationToken": "more",
                "Contents": [{"Key": key, "Size": 1, "LastModified": NOW} for key in keys],
            }

    monkeypatch.setattr(object_store, "s3_client", Client)
    assert len(list(itertools.islice(store.list(), 5000))) == 5000
    assert next(asked) == 5


def test_a_parallel_listing_runs_a_bounded_way_ahead() -> None:
    listed = itertools.count()

    class Endless:
        """Twenty endless folders."""

        def list_level(self, prefix: str) -> Iterator[FileInfo]:
            return (FileInfo(path=f"{number:02d}/", size=0) for number in range(20))

        def list(self, prefix: str) -> Iterator[FileInfo]:
            return (FileInfo(path=f"{prefix}{next(listed):09d}", size=0) for _ in itertools.count())

    files: Any = list_parallel(Endless(), num_threads=4)  # type: ignore[arg-type]
    assert all(file.path.startswith("00/") for file in itertools.islice(files, 50_000))
    files.close()
    # Four folders; in each, 16 batches are queued, one is being filled, one waits for the queue.
    assert next(listed) <= 50_000 + 4 * 18 * 1000


def test_a_parallel_listing_reports_what_a_thread_met(hasty: S3Store, proxy: FaultyProxy) -> None:
    for folder in range(5):
        hasty.write(f"{folder}/x", b"")
    proxy.force(*["error"] * 100_000, method="GET", part="prefix=" + f"{hasty.folder}%2F3%2F")
    with pytest.raises(ClusterError, match="gave up"):
        list(list_parallel(hasty, num_threads=2))
    proxy.calm()
    assert len(list(list_parallel(hasty, num_threads=2))) == 5
