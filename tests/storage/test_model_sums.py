"""The weights of a model are read once by a process, and again if they may have changed."""

import os
from pathlib import Path

import pytest

from consomme.storage import model_folder
from consomme.storage.model_folder import model_content_hash


def make(folder: Path, content: bytes, age_s: float) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    file = folder / "model.safetensors"
    file.write_bytes(content)
    made = file.stat().st_mtime - age_s
    os.utime(file, (made, made))
    return file


def test_a_change_is_noticed_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if the files had been there for long.
    monkeypatch.setattr(model_folder, "_SETTLED_S", -1.0)
    file = make(tmp_path / "one", b"a" * 100, 1000.0)
    before, times = model_content_hash(file.parent), file.stat()
    assert model_content_hash(file.parent) == before
    assert any(str(file) in key for key in model_folder._SUMS)
    file.write_bytes(b"b" * 100)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert model_content_hash(file.parent) != before
    # The same name and size, another file.
    other = make(tmp_path / "other", b"c" * 100, 1000.0)
    now = model_content_hash(file.parent)
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(file)
    assert model_content_hash(file.parent) not in (before, now)


def test_a_file_that_was_just_written_is_read_again(tmp_path: Path) -> None:
    file = make(tmp_path / "new", b"a" * 100, 0.0)
    model_content_hash(file.parent)
    assert not any(str(file) in key for key in model_folder._SUMS)
