"""Stores and the shards behind a recipe's inputs."""

from pathlib import Path

import pytest

from consomme.base.errors import RecipeError
from consomme.storage.files import LocalStore, absolute_url, join_url, open_store, split_url
from consomme.storage.shards import expand, relative_names, shards_fingerprint


def make(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def test_writes_appear_in_one_go_and_leave_nothing_behind(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.write("a/b.bin", b"0123456789")
    assert store.read("a/b.bin", 2, 3) == b"234"
    assert store.read("a/b.bin", 8) == b"89"
    assert store.size("a/b.bin") == 10
    assert store.create("a/c", b"1")
    assert not store.create("a/c", b"2")
    assert store.read("a/c") == b"1"
    store.delete("a/c")
    store.delete("a/c")
    assert [file.path for file in store.list()] == ["a/b.bin"]
    (tmp_path / "a" / ".tmp-0").write_bytes(b"")
    assert [file.path for file in store.list()] == ["a/b.bin"]


def test_listing_is_in_byte_order_of_whole_paths(tmp_path: Path) -> None:
    names = ["a.x", "a/z", "a0", "b", "a/b/c", "a-", "é", "Z"]
    make(tmp_path, *names)
    store = LocalStore(str(tmp_path))
    assert [file.path for file in store.list()] == sorted(names)
    assert [file.path for file in store.list("a/")] == ["a/b/c", "a/z"]
    assert [file.path for file in store.list("a/b")] == ["a/b/c"]
    assert [file.path for file in store.list("a")] == ["a-", "a.x", "a/b/c", "a/z", "a0"]
    assert list(store.list("nothing/")) == []


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "", "a\0b"])
def test_no_path_leads_out(tmp_path: Path, path: str) -> None:
    with pytest.raises(ValueError, match="leads out"):
        open_store(str(tmp_path)).read(path)


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
    for url in ["s3://bucket/x", "gs://bucket", "http://host/x", "package://../x"]:
        with pytest.raises(RecipeError, match=url.partition(":")[0]):
            open_store(url)
    with pytest.raises(RecipeError, match="expected a file"):
        split_url("a/")


def test_inputs_expand_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, *(f"d/{number:03d}.tar" for number in range(12)), "d/e/x.tar", "n.jsonl")
    monkeypatch.chdir(tmp_path)

    def names(*inputs: str) -> list[str]:
        return [str(Path(url).relative_to(tmp_path)) for url in expand(inputs)]

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
        (["s3://b/*.tar"], "s3://"),
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
        expand(inputs)


def test_a_moved_data_set_keeps_its_fingerprint(tmp_path: Path) -> None:
    make(tmp_path / "one", "a/0.tar", "b/0.tar")
    make(tmp_path / "two/deeper", "a/0.tar", "b/0.tar")
    one, two = expand([str(tmp_path / "one")]), expand([str(tmp_path / "two")])
    assert relative_names(one) == ["a/0.tar", "b/0.tar"]
    assert shards_fingerprint(one) == shards_fingerprint(two)
    (tmp_path / "two/deeper/b/0.tar").write_bytes(b"longer than before")
    assert shards_fingerprint(one) != shards_fingerprint(two)


def test_a_listing_goes_on_behind_a_path(tmp_path):
    store = open_store(str(tmp_path))
    for path in ("a/1", "a/2", "a!", "b/1"):
        store.write(path, b"x")
    assert [file.path for file in store.list(after="a/1")] == ["a/2", "b/1"]
    assert [file.path for file in store.list("a/", after="a/1")] == ["a/2"]


def test_half_written_files_are_not_listed_and_can_be_swept_up(tmp_path):
    store = open_store(str(tmp_path))
    store.write("a/whole", b"x")
    for name in (".tmp-1", "a/.tmp-2"):
        (tmp_path / name).write_bytes(b"ha")
    assert [file.path for file in store.list()] == ["a/whole"]
    assert store.sweep() == 2
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "whole"]
