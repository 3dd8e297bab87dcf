"""Every kind of bad input costs exactly one reject with the right reason, and nothing else."""

import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.support import zoo
from tests.support.zoo_images import good_image
from tests.support.zoo_read import at_most_mb, outcomes, reasons, write
from tests.support.zoo_tables import record, row, table_of
from tests.support.zoo_tar import END, caption, huge_member, member, pair, tar_of_many_lies

from consomme.base.sample import REASON_MEANINGS, REJECT_REASONS, Reject, Sample
from consomme.storage.readers.text import MAX_RECORD_BYTES, MAX_SAMPLE_BYTES
from consomme.storage.units import plan_units, read_unit


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[zoo.Shard]:
    return zoo.write_data_set(tmp_path_factory.mktemp("zoo"))


def test_the_zoo_is_large() -> None:
    names = Counter(kind.container for kind in zoo.KINDS)
    assert len({kind.name for kind in zoo.KINDS}) >= 100
    assert all(names[container] >= 55 for container in zoo.CONTAINERS), names
    assert {kind.reason for kind in zoo.KINDS} <= REJECT_REASONS


@pytest.mark.parametrize("max_rows", [1024, 3, 1])
@pytest.mark.parametrize("container", zoo.CONTAINERS)
def test_each_kind_is_one_reject_and_its_neighbours_are_untouched(
    shards: list[zoo.Shard], container: str, max_rows: int
) -> None:
    for shard in shards:
        if not shard.url.endswith(f".{container}"):
            continue
        # The bombs would be gigabytes.
        with at_most_mb(300):
            found = outcomes(shard.url, max_rows=max_rows)
        for want, item in zip(shard.rows, found, strict=True):
            if want.reason:
                assert isinstance(item, Reject), want
                assert item.reason == want.reason, (want, item)
                assert item.detail
                assert item.detail.isprintable()
                assert item.sample_id.isprintable()
            else:
                assert isinstance(item, Sample), (want, item)
                assert item.sample_id == want.key
                assert item.images[0].data == good_image(want.key)
                assert item.caption == caption(want.key)


def test_metadata_of_good_rows_survives_bad_neighbours(shards: list[zoo.Shard]) -> None:
    url = next(shard.url for shard in shards if shard.url.endswith(".parquet"))
    kept = [item for item in outcomes(url) if isinstance(item, Sample)]
    assert {json.dumps(dict(item.meta), sort_keys=True) for item in kept} == {
        '{"licence": "CC0", "price": [{"amount": null}], "similarity": 0.25, '
        '"taken": "2020-01-02 00:00:00"}'
    }


def test_every_reason_is_explained() -> None:
    assert set(REASON_MEANINGS) == REJECT_REASONS
    assert all(meaning.isprintable() and len(meaning) > 10 for meaning in REASON_MEANINGS.values())


# --- what is not a reject --------------------------------------------------------------------


@pytest.fixture
def pictured(tmp_path: Path) -> Path:
    """A folder with pictures `images/a.png` to `images/d.png`."""
    (tmp_path / "images").mkdir()
    for key in "abcd":
        (tmp_path / "images" / f"{key}.png").write_bytes(good_image(key))
    return tmp_path


@pytest.mark.parametrize(
    "join",
    [
        lambda lines: b"\xef\xbb\xbf" + b"\n".join(lines),
        lambda lines: b"\xef\xbb\xbf\n" + b"\n".join(lines) + b"\n",
        lambda lines: b"\r\n".join(lines) + b"\r\n",
        lambda lines: b"\n\n \t\n".join(lines) + b"\n\n\n",
        lambda lines: b"\n\xef\xbb\xbf".join(lines),
    ],
    ids=["mark", "mark alone", "Windows", "blank lines", "files put together"],
)
def test_ways_to_write_lines(pictured: Path, join: Callable[[list[bytes]], bytes]) -> None:
    url = write(pictured, "s.jsonl", join([record(key).text for key in "abc"]))
    for max_rows in (1, 2, 1024):
        found = outcomes(url, max_rows=max_rows)
        assert [item.sample_id for item in found] == ["a", "b", "c"]
        assert all(isinstance(item, Sample) for item in found)


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbf[ %s ,\n\n%s,%s\t]\r\n ",
        b'[{"id": "x]", "image": "\\\\\\"[{"}, %s, %s, %s]',
        b"[%s,,%s,%s,]",
    ],
)
def test_ways_to_write_arrays(pictured: Path, text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    url = write(pictured, "s.json", text % tuple(record(key).text for key in "abc"))
    for piece in (1, 2, 7, 64, 1 << 22):
        monkeypatch.setattr("consomme.storage.readers.scan._CHUNK_BYTES", piece)
        for max_rows in (1, 1024):
            found = outcomes(url, max_rows=max_rows)
            assert [item.sample_id for item in found if isinstance(item, Sample)] == list("abc")
            assert len(found) == 3 + (b'"x]"' in text)


def test_broken_text_is_found_in_time(pictured: Path) -> None:
    """Each of these once took time that grows with the square of the length."""
    open_text = b'["' + b'\\"' * 2_000_000
    assert reasons(write(pictured, "s.json", open_text)) == ["record_truncated"]
    assert reasons(write(pictured, "s.tar", tar_of_many_lies(3000))) == ["record_truncated"] * 3000


def test_bytes_for_text_are_read_as_utf8(pictured: Path) -> None:
    table = pa.table({"image": [good_image("a")], "caption": pa.array(["é".encode()], pa.binary())})
    pq.write_table(table, pictured / "s.parquet")
    (found,) = outcomes(str(pictured / "s.parquet"))
    assert isinstance(found, Sample)
    assert found.caption == "é"


# --- memory ----------------------------------------------------------------------------------


def read_within_90_mb(url: str) -> None:
    with at_most_mb(90):
        units = plan_units([url], "web", max_bytes=1_000_000)
        assert sum(unit.num_bytes for unit in units) < 2 * MAX_RECORD_BYTES
        assert reasons(url, max_bytes=1_000_000) == [None, "record_too_large", None]


@pytest.mark.parametrize("name", ["s.jsonl", "s.json"])
@pytest.mark.slow
def test_a_record_of_100_megabytes_is_never_in_memory(pictured: Path, name: str) -> None:
    glue = b",\n" if name == "s.json" else b"\n"
    with (pictured / name).open("wb") as file:
        file.write((b"[" if name == "s.json" else b"") + record("a").text + glue)
        file.write(b'{"id": "b", "caption": "')
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(b'"}' + glue + record("c").text + (b"]" if name == "s.json" else b"\n"))
    url = str(pictured / name)
    # In a process of its own: what tests before have freed counts for none of it.
    child = multiprocessing.get_context("spawn").Process(target=read_within_90_mb, args=(url,))
    child.start()
    child.join()
    assert child.exitcode == 0
    # In one unit of 128 MB the line comes along, and must not change the outcome.
    assert reasons(url) == [None, "record_too_large", None]


def test_a_tar_member_of_8_gigabytes_is_never_in_memory(tmp_path: Path) -> None:
    size = 8 << 30
    path = tmp_path / "s.tar"
    with path.open("wb") as file:
        file.write(pair("a") + huge_member("b", size).getvalue())
        file.seek(size, os.SEEK_CUR)
        file.write(member("b.txt", b"x") + pair("c") + END)
    with at_most_mb(50):
        for max_rows in (1024, 2, 1):
            assert reasons(str(path), max_rows=max_rows) == [None, "record_too_large", None]


def test_a_long_stretch_of_something_else_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consomme.storage.readers.webdataset.MAX_SAMPLE_BYTES", 100_000)
    junk = b"<html>" * 512 * 200
    for inside in (pair("b")[:-512], member("b.png", good_image("b")), b""):
        url = write(tmp_path, "s.tar", pair("a") + inside + junk + pair("c") + END)
        for max_bytes in (1, 128 << 20):
            units = plan_units([url], "web", max_bytes=max_bytes)
            if max_bytes == 1:
                assert sum(unit.num_bytes for unit in units) < 10_000
            bad = reasons(url, max_bytes=max_bytes)
            assert bad.count("record_malformed") == 1
            assert bad.count(None) == len(bad) - 1 >= 2


def test_a_shard_that_was_allocated_but_not_written_to_its_end(tmp_path: Path) -> None:
    url = write(tmp_path, "s.tar", pair("a"))
    with open(url, "ab") as file:
        file.truncate(300 << 20)
    with at_most_mb(50):
        assert reasons(url) == [None]


def test_a_picture_beside_the_file_is_not_read_beyond_the_budget(pictured: Path) -> None:
    with (pictured / "images" / "b.png").open("wb") as file:
        file.truncate(8 << 30)
    url = write(pictured, "s.jsonl", b"\n".join(record(key).text for key in "abc"))
    with at_most_mb(2 * MAX_SAMPLE_BYTES / 2**20):
        assert reasons(url) == [None, "image_too_large", None]


@pytest.mark.slow
def test_a_row_group_is_read_piece_by_piece(tmp_path: Path) -> None:
    rows = [row(f"{number}", bytes([number]) * 2_000_000) for number in range(150)]
    options = {"compression": "none", "use_dictionary": False, "write_batch_size": 1}
    pq.write_table(table_of(rows), tmp_path / "s.parquet", **options)
    del rows
    pa.default_memory_pool().release_unused()
    units = plan_units([str(tmp_path / "s.parquet")], "web", max_bytes=10_000_000)
    with at_most_mb(120):
        for unit in (units[0], units[-1]):
            assert len(read_unit(unit)[0]) == unit.count > 2
