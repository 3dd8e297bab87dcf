"""The local store on file systems that are away, full, read-only, or without hard links."""

import ctypes
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consomme.base.errors import ClusterError, RecipeError, StorageAwayError
from consomme.storage.shards import find_shards
from consomme.storage.stores import local
from consomme.storage.stores.local import LocalStore, away_errors
from consomme.storage.stores.retries import patience


def failing(function: Callable[..., Any], code: int, times: int) -> Callable[..., Any]:
    """Fail some times as a file system would, then work."""
    left = [times]

    def call(*args: Any, **kwargs: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise OSError(code, os.strerror(code))
        return function(*args, **kwargs)

    return call


@pytest.mark.parametrize("code", [errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN])
def test_a_network_file_system_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    store = LocalStore(str(tmp_path))
    for name in ("replace", "link", "fsync", "scandir"):
        monkeypatch.setattr(os, name, failing(getattr(os, name), code, 2))
    store.write("a/b", b"1")
    assert store.create("a/c", b"2")
    assert not store.create("a/c", b"3")
    assert [file.path for file in store.list()] == ["a/b", "a/c"]
    monkeypatch.setattr(Path, "open", failing(Path.open, code, 2))
    assert store.read("a/c") == b"2"
    assert not list(tmp_path.rglob(".tmp*"))
    with patience(0.3):
        monkeypatch.setattr(os, "replace", failing(os.replace, code, 10_000))
        with pytest.raises(StorageAwayError, match=r"a/b: gave up after \d+ tries"):
            store.write("a/b", b"4")
    with pytest.raises(StorageAwayError), away_errors():
        raise OSError(code, "while reading an open file")


def test_a_create_whose_success_was_hidden_by_an_error_knows_its_own_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS links the file, and its answer is lost."""
    store = LocalStore(str(tmp_path))
    link = os.link
    lost = [True]

    def linked_but(source: Any, target: Any) -> None:
        link(source, target)
        if lost.pop() if lost else False:
            raise OSError(errno.ETIMEDOUT, "timed out")

    monkeypatch.setattr(os, "link", linked_but)
    assert store.create("a", b"same")
    lost.append(True)
    assert not store.create("a", b"same"), "this is another writer, with the same bytes"


def test_an_io_error_is_waited_for_on_a_network_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(str(tmp_path))
    monkeypatch.setattr(os, "fsync", failing(os.fsync, errno.EIO, 2))
    with pytest.raises(ClusterError, match="the disk failed; check it"):
        store.write("a", b"1")
    monkeypatch.setattr(local, "_is_on_network", lambda target: True)
    store.write("a", b"1")
    assert store.read("a") == b"1"


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_without_hard_links_one_of_several_writers_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(os, "link", failing(os.link, code, 10_000))
    for number in range(20):
        won: list[int] = []

        def race(k: int, path: str = f"lock-{number}", won: list[int] = won) -> None:
            if LocalStore(str(tmp_path)).create(path, b"%d" % k * 100_000):
                won.append(k)

        threads = [threading.Thread(target=race, args=(k,)) for k in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (winner,) = won
        assert (tmp_path / f"lock-{number}").read_bytes() == b"%d" % winner * 100_000
    assert not list(tmp_path.glob(".tmp*"))


def test_a_file_system_without_any_exclusive_creation_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", failing(os.link, errno.EPERM, 10_000))
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    with pytest.raises(RecipeError, match=r"neither hard links .* nor renames .* another file"):
        LocalStore(str(tmp_path)).create("a", b"")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.EROFS, "mounted read-only"),
        (errno.EACCES, "may not be written to by this user"),
        (errno.EPERM, "may not be written to by this user"),
        (errno.ENAMETOOLONG, "too long a name"),
    ],
)
def test_a_place_that_cannot_be_written_to_is_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, message: str
) -> None:
    monkeypatch.setattr(Path, "mkdir", failing(Path.mkdir, code, 10_000))
    for write in (LocalStore(str(tmp_path)).write, LocalStore(str(tmp_path)).create):
        with pytest.raises(RecipeError, match=message):
            write("a/b", b"")


def test_links_that_lead_in_a_circle_are_answered(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "inner").mkdir(parents=True)
    (data / "a.tar").write_bytes(b"")
    (data / "inner" / "up").symlink_to(data)
    with pytest.raises(RecipeError, match=r"inner/up: this link to .*data leads in a circle"):
        find_shards([str(data)])
    (data / "inner" / "up").unlink()
    (data / "self").symlink_to("self")
    # What is no shard may be broken: a picture that cannot be opened costs its sample.
    (data / "gone.png").symlink_to("nowhere.png")
    assert [s.name for s in find_shards([str(data)])] == ["a.tar"]
    with pytest.raises(RecipeError, match="self lies behind symbolic links that point at each"):
        find_shards([str(data / "self")])
    (data / "self").unlink()
    (data / "b.tar").symlink_to("gone.tar")
    with pytest.raises(RecipeError, match=r"b.tar is a link that leads to nothing"):
        find_shards([str(data)])
    (data / "b.tar").unlink()
    # A link to another folder is no circle.
    (data / "inner" / "c.tar").write_bytes(b"")
    (data / "more").symlink_to(data / "inner")
    assert [s.name for s in find_shards([str(data)])] == ["a.tar", "inner/c.tar", "more/c.tar"]


def test_a_mistyped_top_level_path_is_answered_not_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    scanned: list[str] = []
    scandir = os.scandir

    def scan(path: Any) -> Any:
        scanned.append(str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    with pytest.raises(RecipeError, match=r"/hmoe: no such file or folder; did you mean 'home'"):
        find_shards(["/hmoe"])
    assert set(scanned) <= {"/", "/hmoe"}


def test_an_empty_folder_is_called_empty(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is empty; expected files ending in"):
        find_shards([str(tmp_path)])
