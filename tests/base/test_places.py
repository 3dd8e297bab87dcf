"""Caches and scratch folders: of this user, for nobody else, and never what others made before."""

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from consomme.base import places
from consomme.base.errors import RecipeError
from consomme.base.places import Scratch, cache_folder, lock, remove_leftovers, temporary_base

STRANGER = 12345


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Have only what a test sets: no cache, no home, temporary files below the test's folder."""
    for name in ("CONSOMME_CACHE_DIR", "XDG_CACHE_HOME", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/proc/no-home")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))


def make_foreign(path: Path, mode: int = 0o777) -> None:
    """Let another user own a folder: a stranger's where the tests run as root, else root's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if os.geteuid():
        path.symlink_to("/usr")
        return
    path.mkdir()
    path.chmod(mode)
    (path / "planted").write_text("not ours")
    os.chown(path, STRANGER, STRANGER)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_the_cache_is_closed_under_any_umask(
    umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    before = os.umask(umask)
    try:
        folder = cache_folder("models", "deep")
        with Scratch() as scratch:
            assert mode_of(scratch) == 0o700
    finally:
        os.umask(before)
    assert folder == tmp_path / "home/.cache/consomme/models/deep"
    for path in (folder, *folder.parents[:4]):
        assert mode_of(path) == 0o700, path


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "HOME"])
@pytest.mark.parametrize("mode", [0o700, 0o777])
def test_what_a_stranger_made_first_is_not_used(
    variable: str, mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, str(tmp_path / "place"))
    inside = "consomme" if variable == "XDG_CACHE_HOME" else ".cache/consomme"
    make_foreign(tmp_path / "place" / inside, mode)
    folder = cache_folder("models")
    assert folder.is_relative_to(tmp_path / "tmp")
    assert not (folder.parent / "planted").exists()
    assert folder.stat().st_uid == os.geteuid()


def test_a_stranger_who_owns_the_home_is_not_trusted_with_what_we_make_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_foreign(tmp_path / "home")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder().is_relative_to(tmp_path / "tmp")


def test_a_folder_that_everyone_may_write_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "open"))
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    assert cache_folder().is_relative_to(tmp_path / "tmp")
    # With the sticky bit, only the owner of a folder can replace it.
    (tmp_path / "open").chmod(0o1777)
    assert cache_folder() == tmp_path / "open" / "consomme"
    # Others may have written into this one.
    (tmp_path / "open" / "consomme").chmod(0o777)
    assert cache_folder().is_relative_to(tmp_path / "tmp")


def test_a_folder_that_others_may_only_read_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    cache_folder().chmod(0o755)
    assert mode_of(cache_folder()) == 0o700


def test_links_at_the_name_of_the_cache_lead_to_a_checked_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "cache" / "consomme").symlink_to(tmp_path / "elsewhere")
    assert cache_folder() == tmp_path / "elsewhere"
    (tmp_path / "cache" / "consomme").unlink()
    make_foreign(tmp_path / "theirs")
    (tmp_path / "cache" / "consomme").symlink_to(tmp_path / "theirs")
    assert cache_folder().is_relative_to(tmp_path / "tmp")


def test_a_named_cache_that_cannot_be_used_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSOMME_CACHE_DIR", str(tmp_path / "named"))
    assert cache_folder() == tmp_path / "named" / "consomme"
    (tmp_path / "named" / "consomme" / ".lock").unlink()
    (tmp_path / "named" / "consomme").rmdir()
    make_foreign(tmp_path / "named" / "consomme")
    with pytest.raises(RecipeError, match=r"CONSOMME_CACHE_DIR=.*uid \d+, expected one of uid"):
        cache_folder()


def test_without_a_home_all_processes_of_a_user_find_one_cache(tmp_path: Path) -> None:
    make_foreign(tmp_path / "tmp" / "consomme-cache-aaaaaaaa")
    first = cache_folder("models")
    assert first.parent.name.startswith("consomme-cache-")
    assert first.parent.name != "consomme-cache-aaaaaaaa"
    program = "from consomme.base.places import cache_folder; print(cache_folder('models'))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == str(first), done.stderr


def test_without_any_place_the_reasons_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    monkeypatch.setattr(places, "_TEMPORARY_FOLDERS", (str(tmp_path / "open"),))
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    monkeypatch.chdir(tmp_path / "open")
    for act in (cache_folder, temporary_base, Scratch):
        with pytest.raises(RecipeError) as caught:
            act()
        assert "nowhere: No such file" in str(caught.value)
        assert "has no sticky bit" in str(caught.value)
        assert "set CONSOMME_CACHE_DIR" in str(caught.value)


def test_scratch_of_dead_processes_is_removed_and_nothing_else(tmp_path: Path) -> None:
    base = tmp_path / "tmp"
    program = (
        "import os, signal\n"
        "from consomme.base.places import Scratch\n"
        "scratch = Scratch()\n"
        "(scratch.path / 'checkpoint').write_text('large')\n"
        "print(scratch.path, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    left = Path(done.stdout.strip())
    assert (left / "checkpoint").exists()
    make_foreign(base / "consomme-tmp-theirs")
    (base / "consomme-tmp-no-lock").mkdir(mode=0o700)
    (base / "consomme-tmp-file").write_text("a file")
    (base / "consomme-results").mkdir(mode=0o700)
    with Scratch() as mine, Scratch() as other:
        assert not left.exists()
        assert remove_leftovers(base) == 0
        assert mine.exists()
        assert other.exists()
        (mine / "file").write_text("x")
    names = {path.name for path in base.iterdir()}
    theirs = {"consomme-tmp-theirs", "consomme-tmp-no-lock", "consomme-tmp-file"}
    assert names == theirs | {"consomme-results"}


def test_a_lock_ends_with_its_process_and_survives_a_removed_file(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from consomme.base.places import lock\n"
        f"held = lock(Path({str(path)!r}))\n"
        "print('held', flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert lock(path, wait=False) is None
        assert lock(path, wait=False, is_shared=True) is None
        child.kill()
    start = time.monotonic()
    first = lock(path)
    assert first is not None
    assert time.monotonic() - start < 5
    # A lock on a removed file keeps nobody out, so it must not be taken for one.
    path.unlink()
    second = lock(path, wait=False)
    assert second is not None
    second.close()
    first.close()
