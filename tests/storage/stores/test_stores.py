"""Stores, one contract for all kinds of them, and the shards behind a recipe's inputs."""

import errno
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tests.support.s3_server import BUCKET, S3Server, fake_gcs, moto

from consomme.base.errors import ClusterError, RecipeError
from consomme.base.sample import ImageFile, Sample, caption_turns
from consomme.storage.shards import find_shards, shard_urls, shards_fingerprint
from consomme.storage.stores.listing import list_parallel
from consomme.storage.stores.open import absolute_url, open_store, split_url
from consomme.storage.stores.store import FileInfo, Store, join_url
from consomme.storage.units import plan_units, read_unit
from consomme.storage.writers import parquet_bytes, tar_bytes


def make(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def test_urls() -> None:
    assert split_url("/a/b.tar")[0].url == "/a"
    assert split_url("/b.tar")[0].url == "/"
    assert split_url("b.tar")[0].url == str(Path.cwd())
    store, name = split_url("package://base/errors.py")
    assert (store.url, name) == ("package://base", "errors.py")
    assert b"ConsommeError" in store.read(name)
    assert open_store(store.url) == store
    assert split_url("package://cli.py")[0].url == "package://"
    assert join_url("package://", "x", "y") == "package://x/y"
    assert absolute_url("x/y") == str(Path.cwd() / "x/y")
    assert absolute_url("package://x/y/") == "package://x/y"
    assert absolute_url("s3://bucket/x/") == "s3://bucket/x"
    assert absolute_url("s3://bucket") == "s3://bucket"
    assert join_url("s3://bucket", "x", "y") == "s3://bucket/x/y"
    for url, folder in [("s3://b/k", "s3://b"), ("s3://b/a/k", "s3://b/a"), ("file:///k", "/")]:
        assert split_url(url)[0] == open_store(folder)
        assert split_url(url)[1] == "k"
    for url in ["s3://", "s3:///x", "s3://b/../c", "gs://b//x", "http://host/x", "package://../x"]:
        with pytest.raises(RecipeError, match=url.partition(":")[0]):
            open_store(url)
    for url in ["a/", "s3://bucket", "s3://bucket/a/"]:
        with pytest.raises(RecipeError, match="expected a file"):
            split_url(url)


def test_inputs_expand_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, *(f"d/{number:03d}.tar" for number in range(12)), "d/e/x.tar", "n.jsonl")
    monkeypatch.chdir(tmp_path)

    def names(*inputs: str) -> list[str]:
        return [str(Path(url).relative_to(tmp_path)) for url in shard_urls(inputs)]

    assert names("d/{009..011}.tar") == ["d/009.tar", "d/010.tar", "d/011.tar"]
    assert names("d/00{1,0}.tar", "n.jsonl") == ["d/001.tar", "d/000.tar", "n.jsonl"]
    assert names("./d/01*.tar") == ["d/010.tar", "d/011.tar"]
    assert names("d/00[0-1].tar") == ["d/000.tar", "d/001.tar"]
    assert names("**/x.tar") == ["d/e/x.tar"]
    assert names(str(tmp_path / "d/e")) == ["d/e/x.tar"]
    assert len(names("d")) == 13
    assert len(names("d/*.tar")) == 12


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "empty list"),
        (["d/{000..002}.tar"], r"002\.tar: no such file"),
        (["d/*.parquet"], "matches no file"),
        (["d/00.tar"], r"did you mean '00[01]\.tar'"),
        (["d", "d/000.tar"], "would count twice"),
        (["d/*"], r"notes\.txt; expected"),
        (["mixed"], "holds jsonl and tar files"),
        (["other"], "holds no shard"),
        (["d/notes.txt"], "expected files ending in"),
        (["d/{3..1}.tar"], "runs backwards"),
        (["http://b/*.tar"], "http://"),
    ],
)
def test_inputs_that_cannot_be_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: list[str], message: str
) -> None:
    make(
        tmp_path, "d/000.tar", "d/001.tar", "d/notes.txt", "mixed/a.tar", "mixed/b.jsonl", "other/x"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=message):
        shard_urls(inputs)


def test_a_moved_data_set_keeps_its_fingerprint(tmp_path: Path) -> None:
    make(tmp_path / "one", "a/0.tar", "b/0.tar")
    shutil.copytree(tmp_path / "one", tmp_path / "two/deeper", copy_function=shutil.copy2)
    one, two = find_shards([str(tmp_path / "one")]), find_shards([str(tmp_path / "two")])
    assert [shard.name for shard in one] == ["a/0.tar", "b/0.tar"]
    assert shards_fingerprint(one) == shards_fingerprint(two)
    (tmp_path / "two/deeper/b/0.tar").write_bytes(b"b/1.tar")
    assert shards_fingerprint(one) != shards_fingerprint(find_shards([str(tmp_path / "two")]))


# --- one contract for every kind of storage --------------------------------------------------


@pytest.fixture(scope="module")
def moto_server() -> Iterator[S3Server]:
    with moto() as server:
        yield server


@pytest.fixture(scope="module")
def gcs_env() -> Iterator[dict[str, str]]:
    with fake_gcs() as env:
        yield env


@pytest.fixture(params=["local", "seaweedfs", pytest.param("moto", marks=pytest.mark.long), "gcs"])
def root(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """URL of an empty folder on each kind of storage in turn."""
    if request.param == "local":
        return str(tmp_path / "root")
    if request.param == "seaweedfs":
        return str(request.getfixturevalue("s3_root"))
    scheme = "gs" if request.param == "gcs" else "s3"
    env = request.getfixturevalue("gcs_env" if scheme == "gs" else "moto_server")
    for name, value in (env if scheme == "gs" else env.env()).items():
        monkeypatch.setenv(name, value)
    return f"{scheme}://{BUCKET}/{uuid.uuid4().hex[:8]}"


@pytest.fixture
def store(root: str) -> Store:
    return open_store(root)


def paths(files: Iterable[FileInfo]) -> list[str]:
    return [file.path for file in files]


def test_a_file_reads_as_it_was_written_whole_or_in_part(store: Store) -> None:
    store.write("a/b.bin", b"0123456789")
    assert store.read("a/b.bin") == b"0123456789"
    assert store.read("a/b.bin", 2, 3) == b"234"
    assert store.read("a/b.bin", 8) == b"89"
    assert store.read("a/b.bin", 8, 100) == b"89"
    assert store.read("a/b.bin", 10, 5) == b""
    assert store.read("a/b.bin", 3, 0) == b""
    assert store.size("a/b.bin") == 10
    info = store.info("a/b.bin")
    (listed,) = store.list("a/b.bin")
    # The time may be given to the second in one answer, and finer in the other.
    assert (info.path, info.size, info.version) == (listed.path, 10, listed.version)
    assert info.version
    with pytest.raises(FileNotFoundError):
        store.info("a/nothing")
    store.write("a/b.bin", b"other")
    assert store.read("a/b.bin") == b"other"
    store.write("empty", b"")
    assert (store.read("empty"), store.read("empty", 0, 9), store.size("empty")) == (b"", b"", 0)


def test_names_may_hold_anything_but_a_way_out(store: Store) -> None:
    names = ["a b", "a%20b", "a+b", "é/日本", "q?x=1&y#z", "😀", "..c/...", "[x]{y}*"]
    for name in names:
        store.write(name, name.encode())
    assert paths(store.list()) == sorted(names)
    for name in names:
        assert store.read(name) == name.encode()
        assert store.exists(name)
    for path in ["/etc/passwd", "../x", "a/../../x", "", "a\0b"]:
        for use in (store.read, store.exists, store.delete, store.open):
            with pytest.raises(ValueError, match="leads out"):
                use(path)


def test_a_missing_file_is_missing_everywhere(store: Store) -> None:
    assert not store.exists("x")
    for use in (store.read, store.size, store.open, lambda path: store.read(path, 5, 5)):
        with pytest.raises(FileNotFoundError):
            use("x")
    store.delete("x")
    store.delete_many(["x", "y"])
    assert list(store.list()) == list(store.list("x/")) == list(store.list_level()) == []


def test_a_second_create_changes_nothing(store: Store) -> None:
    assert store.create("a/c", b"1")
    assert not store.create("a/c", b"2")
    assert not store.create("a/c", b"1")
    assert store.read("a/c") == b"1"
    store.delete("a/c")
    assert store.create("a/c", b"3")


@pytest.mark.slow
def test_of_many_that_create_one_wins(store: Store) -> None:
    rounds, racers = 2, 24
    start = threading.Barrier(racers)

    def race(number: int) -> list[int]:
        won = []
        for turn in range(rounds):
            start.wait()
            # In every other round all write the same bytes, which must not hide the loss.
            body = b"same" if turn % 2 else b"%d" % number
            if store.create(f"race/{turn}", body):
                won.append(turn)
        return won

    with ThreadPoolExecutor(racers) as pool:
        winners = list(pool.map(race, range(racers)))
    assert sorted(turn for won in winners for turn in won) == list(range(rounds))
    for turn in range(0, rounds, 2):
        (winner,) = [number for number, won in enumerate(winners) if turn in won]
        assert store.read(f"race/{turn}") == b"%d" % winner


def test_listings_are_in_byte_order_of_whole_paths(store: Store) -> None:
    names = ["a.x", "a/z", "a0", "b", "a/b/c", "a-", "é", "Z", "a!/x", "ab/c", "\uffee", "😀"]
    for name in names:
        store.write(name, name.encode())
    assert paths(store.list()) == sorted(names)
    assert paths(store.list("a/")) == ["a/b/c", "a/z"]
    assert paths(store.list("a/b")) == ["a/b/c"]
    assert paths(store.list("a")) == ["a!/x", "a-", "a.x", "a/b/c", "a/z", "a0", "ab/c"]
    assert paths(store.list_level("a")) == ["a!/", "a-", "a.x", "a/", "a0", "ab/"]
    assert paths(store.list_level("a/")) == ["a/b/", "a/z"]
    assert paths(store.list_level()) == sorted(
        [*"bZé", "a-", "a.x", "a0", "😀", "\uffee", "a!/", "a/", "ab/"]
    )
    for number, name in enumerate(sorted(names)):
        assert paths(store.list(after=name)) == sorted(names)[number + 1 :]
    assert paths(store.list("a/", after="a/b/c")) == ["a/z"]
    assert paths(store.list("a/", after="a")) == ["a/b/c", "a/z"]
    assert paths(store.list("a/", after="b")) == []
    assert list(list_parallel(store)) == list(store.list())
    assert list(list_parallel(store, "a", num_threads=2)) == list(store.list("a"))
    sizes = {file.path: file.size for file in store.list()}
    assert sizes == {name: len(name.encode()) for name in names}


def test_a_folder_is_no_prefix_of_its_neighbour(root: str) -> None:
    open_store(f"{root}/a").write("x", b"1")
    open_store(f"{root}/ab").write("y", b"2")
    assert paths(open_store(f"{root}/a").list()) == ["x"]
    assert paths(open_store(f"{root}/a/").list_level()) == ["x"]
    assert open_store(f"{root}/a").remove_orphans() == 0


def test_a_listing_says_when_a_file_was_written(store: Store) -> None:
    store.write("x", b"1")
    (file,) = store.list()
    assert abs(file.modified - time.time()) < 600


def test_a_store_can_be_sent_to_another_process(root: str) -> None:
    store = open_store(root)
    store.write("x", b"1")
    copy = pickle.loads(pickle.dumps(store))
    assert copy == store == open_store(store.url)
    assert copy.read("x") == b"1"


@pytest.mark.slow
def test_many_files_list_in_pages_and_go_in_one_go(store: Store) -> None:
    names = [f"n/{number:04d}" for number in range(1010)] + [f"f{n}/x" for n in range(20)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: store.write(name, b""), names))
    assert paths(store.list()) == sorted(names)
    assert paths(store.list(after="n/0999")) == [f"n/{n}" for n in range(1000, 1010)]
    assert paths(store.list_level("n/")) == names[:1010]
    assert paths(list_parallel(store, num_threads=4)) == sorted(names)
    # A reader that stops early leaves no threads behind.
    some = list_parallel(store, num_threads=4)
    assert next(some).path == "f0/x"
    some.close()
    store.delete_many(name for name in names if name != "n/0007")
    assert paths(store.list()) == ["n/0007"]


@pytest.mark.slow
def test_a_large_file_is_written_in_parts(store: Store) -> None:
    data = random.Random(1).randbytes(70 * 2**20)
    store.write("large", data)
    assert store.size("large") == len(data)
    assert hashlib.sha256(store.read("large")).digest() == hashlib.sha256(data).digest()
    assert store.read("large", 16 * 2**20 - 3, 6) == data[16 * 2**20 - 3 : 16 * 2**20 + 3]
    assert store.remove_orphans() == 0


def test_an_open_file_reads_and_seeks_like_any_other(store: Store) -> None:
    data = random.Random(2).randbytes(1_500_000)
    store.write("f", data)
    with store.open("f") as file, io.BytesIO(data) as plain:
        moves = random.Random(3)
        for _ in range(200):
            whence = moves.choice([0, 0, 1, 2])
            offset = moves.randrange(0 if whence == 0 else -400_000, 1_600_000 if not whence else 1)
            offset = max(offset, -plain.tell()) if whence == 1 else offset
            assert file.seek(offset, whence) == plain.seek(offset, whence)
            length = moves.choice([0, 1, 512, 70_000, 900_000])
            assert file.read(length) == plain.read(length)
            assert file.tell() == plain.tell()
        file.seek(7)
        assert file.read() == data[7:]
        assert file.read() == b""
    with store.open("f") as file:
        assert list(file) == list(io.BytesIO(data))


def test_shards_are_planned_and_read_wherever_they_are(root: str) -> None:
    store = open_store(root)
    samples = [
        Sample(
            sample_id=f"{number:03d}",
            images=(ImageFile(data=b"\x89PNG\r\n\x1a\n" + bytes(3000), name=f"{number:03d}.png"),),
            turns=caption_turns(f"picture {number}"),
            source="web",
        )
        for number in range(40)
    ]
    lines = b"".join(
        json.dumps(
            {"id": item.sample_id, "image": item.images[0].name, "caption": item.caption}
        ).encode()
        + b"\n"
        for item in samples
    )
    for item in samples:
        store.write(f"lines/{item.images[0].name}", item.images[0].data)
    store.write("lines/s.jsonl", lines)
    for number in range(3):
        store.write(f"tars/{number:03d}.tar", tar_bytes(samples))
        store.write(f"tables/{number:03d}.parquet", parquet_bytes(samples, row_group_rows=16))
    for pattern, count in [
        ("tars/{000..001}.tar", 2),
        ("tars/*.tar", 3),
        ("**/*.parquet", 3),
        ("tables", 3),
        ("lines/s.jsonl", 1),
    ]:
        units = plan_units([f"{root}/{pattern}"], "web", max_rows=16)
        assert sum(unit.count for unit in units) == 40 * count
        assert len(shard_urls([f"{root}/{pattern}"])) == count
        found = [sample for unit in units for _, sample in read_unit(unit)[0]]
        assert found == samples * count
    with pytest.raises(RecipeError, match="matches no file"):
        shard_urls([f"{root}/tars/*.json"])
    with store.open("tables/000.parquet") as file:
        assert pq.ParquetFile(file).metadata.num_rows == 40


def test_half_written_files_are_not_listed_and_can_be_swept_up(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.write("a/whole", b"x")
    for name in (".tmp-1", "a/.tmp-2"):
        (tmp_path / name).write_bytes(b"ha")
    assert paths(store.list()) == ["a/whole"]
    assert paths(store.list_level()) == ["a/"]
    assert store.remove_orphans() == 2
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "whole"]


def test_a_full_disk_is_said_to_be_full_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    store = open_store(str(tmp_path))
    store.write("a", b"old")

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as changed:
        changed.setattr(os, "fsync", full)
        for write in (store.write, store.create):
            with pytest.raises(ClusterError, match=r"the disk is full; make room.*same command"):
                write("b" if write == store.create else "a", b"new")
    assert store.read("a") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
