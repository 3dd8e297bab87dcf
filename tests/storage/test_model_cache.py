"""Models of object storage are fetched once per machine, checked before use, and make room."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from consomme.base.errors import CheckpointError, ClusterError, RecipeError
from consomme.base.places import lock
from consomme.storage import model_cache
from consomme.storage.model_cache import cached_model
from consomme.storage.stores.local import LocalStore
from consomme.storage.stores.store import FileInfo

WEIGHTS = bytes(range(256)) * 4000


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Use an empty cache; models count as in use by nobody before and after."""
    monkeypatch.setenv("CONSOMME_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(model_cache, "_in_use", {})
    yield tmp_path / "cache" / "consomme" / "models"
    leave()


def leave() -> None:
    """Stop using models, as the end of a process does."""
    for held in model_cache._in_use.values():
        held.close()
    model_cache._in_use.clear()


def make_model(folder: Path, weights: bytes = WEIGHTS) -> LocalStore:
    (folder / "deep").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "deep" / "model.safetensors").write_bytes(weights)
    return LocalStore(str(folder))


def fetch(store: LocalStore) -> Path:
    return cached_model(store, list(store.list()))


def fetches(caplog: pytest.LogCaptureFixture) -> int:
    return sum(record.message.startswith("fetching") for record in caplog.records)


def test_a_model_is_fetched_once_and_again_when_it_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    store = make_model(tmp_path / "model")
    first = fetch(store)
    assert (first / "deep" / "model.safetensors").read_bytes() == WEIGHTS
    leave()
    assert fetch(store) == first
    assert fetches(caplog) == 1
    (tmp_path / "model" / "config.json").write_text('{"new": 1}')
    assert fetch(store) != first
    assert fetches(caplog) == 2


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "link", "marker"])
def test_a_damaged_copy_is_not_used(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    store = make_model(tmp_path / "model")
    weights = fetch(store) / "deep" / "model.safetensors"
    leave()
    times = weights.stat()
    if damage == "flip":
        weights.write_bytes(b"\xff" + WEIGHTS[1:])
        # The time of the last change to the inode cannot be set back.
        os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    elif damage == "cut":
        weights.write_bytes(WEIGHTS[:-1])
    elif damage == "marker":
        weights.parent.parent.with_suffix(".complete").write_text("[{")
    else:
        weights.unlink()
        if damage == "link":
            weights.symlink_to(tmp_path / "model" / "deep" / "model.safetensors")
    again = fetch(store) / "deep" / "model.safetensors"
    assert again.read_bytes() == WEIGHTS
    assert not again.is_symlink()
    assert fetches(caplog) == 2


def test_a_touched_copy_is_read_and_not_fetched_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    store = make_model(tmp_path / "model")
    folder = fetch(store)
    leave()
    os.utime(folder / "config.json")
    fetch(store)
    assert fetches(caplog) == 1


def test_a_fetch_that_breaks_off_leaves_nothing_that_is_used(tmp_path: Path) -> None:
    store = make_model(tmp_path / "model")
    files = [FileInfo(path=f.path, size=f.size + 1) for f in store.list()]
    with pytest.raises(ClusterError, match=r"found 2 bytes, expected 3"):
        cached_model(store, files)
    with pytest.raises(CheckpointError, match=r"'\.\./x', whose path is not allowed"):
        cached_model(store, [FileInfo(path="../x", size=1)])


def test_what_a_killed_process_left_of_a_fetch_is_removed(tmp_path: Path, cache: Path) -> None:
    fetch(make_model(tmp_path / "model"))
    (cache / "abandoned").mkdir()
    (cache / "abandoned" / "model.safetensors").write_text("half of it")
    (cache / "abandoned.lock").touch()
    (cache / "going-on").mkdir()
    going_on = lock(cache / "going-on.lock")
    fetch(make_model(tmp_path / "other"))
    assert not (cache / "abandoned").exists()
    assert not (cache / "abandoned.lock").exists()
    assert (cache / "going-on").exists()
    assert going_on is not None


def test_processes_that_want_one_model_at_once_fetch_it_once(tmp_path: Path) -> None:
    store = make_model(tmp_path / "model", WEIGHTS * 40)
    program = (
        "import logging, sys\n"
        "from consomme.storage.model_cache import cached_model\n"
        "from consomme.storage.stores.local import LocalStore\n"
        "logging.basicConfig(level=logging.INFO, stream=sys.stdout)\n"
        f"store = LocalStore({store.root!r})\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "print('at', cached_model(store, list(store.list())), flush=True)\n"
        "sys.stdin.readline()\n"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    try:
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
        # None waits for another one to end: all of them use the model at the same time.
        lines = []
        for child in children:
            assert child.stdout is not None
            for line in child.stdout:
                lines.append(line)
                if line.startswith("at "):
                    break
        assert sum("INFO" in line and ":fetching " in line for line in lines) == 1
        assert len({line for line in lines if line.startswith("at ")}) == 1
    finally:
        for child in children:
            child.communicate("\n", timeout=20)


def test_the_model_used_least_recently_makes_room_and_one_in_use_never(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSOMME_CACHE_GB", str(2.5 * len(WEIGHTS) / 1e9))
    stores = [make_model(tmp_path / f"model-{k}") for k in range(4)]
    first, second = fetch(stores[0]), fetch(stores[1])
    leave()
    for age, folder in ((100, second), (200, first)):
        stamp = (cache / f"{folder.name}.lock").stat().st_mtime - age
        os.utime(cache / f"{folder.name}.lock", (stamp, stamp))
    assert fetch(stores[0]) == first
    leave()
    third = fetch(stores[2])
    assert first.exists()
    assert not second.exists()
    assert {path.name for path in cache.iterdir() if path.is_dir()} == {first.name, third.name}
    assert fetch(stores[0]) == first
    # Both are in use, so the cache grows beyond its limit.
    fourth = fetch(stores[3])
    assert first.exists()
    assert third.exists()
    assert fourth.exists()


def test_a_size_that_is_no_number_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSOMME_CACHE_GB", "much")
    with pytest.raises(RecipeError, match="CONSOMME_CACHE_GB: found 'much', expected"):
        fetch(make_model(tmp_path / "model"))


def test_a_damaged_copy_that_others_use_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_cache, "_TRIES", 2)
    store = make_model(tmp_path / "model")
    folder = fetch(store)
    others = dict(model_cache._in_use)
    model_cache._in_use.clear()
    (folder / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="that other processes are using"):
        fetch(store)
    model_cache._in_use.update(others)
