"""Ray Train's file system over our own stores does what pyarrow's own S3 client does."""

import pickle
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from consomme.pipelines.train import ray_storage
from consomme.pipelines.train.ray_storage import storage_of
from consomme.storage.stores import s3
from consomme.storage.stores.open import open_store


def make(folder: Path) -> dict[str, bytes]:
    content = {"a.bin": b"1" * 300_000, "shards/0": b"", "shards/deep/1": b"x"}
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return content


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("is_large", [False, True])
def test_folders_go_up_and_come_down(
    s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_large: bool
) -> None:
    if is_large:
        monkeypatch.setattr(s3, "MULTIPART_BYTES", 1000)
    content = make(tmp_path / "up")
    keywords = storage_of(s3_root)
    path = f"{keywords['storage_path']}/checkpoint_1"
    system = pickle.loads(pickle.dumps(keywords["storage_filesystem"]))
    assert system == keywords["storage_filesystem"]
    assert system.get_file_info(path).type == pafs.FileType.NotFound
    system.create_dir(path)
    pafs.copy_files(str(tmp_path / "up"), path, destination_filesystem=system)
    assert {f.path for f in open_store(s3_root).list()} == {f"checkpoint_1/{n}" for n in content}
    assert system.get_file_info(path).type == pafs.FileType.Directory
    info = system.get_file_info(f"{path}/a.bin")
    assert (info.type, info.size) == (pafs.FileType.File, 300_000)
    shallow = system.get_file_info(pafs.FileSelector(path))
    assert {(i.base_name, i.type.name) for i in shallow} == {
        ("a.bin", "File"),
        ("shards", "Directory"),
    }
    pafs.copy_files(path, str(tmp_path / "down"), source_filesystem=system)
    assert files(tmp_path / "down") == content
    system.delete_file(f"{path}/a.bin")
    system.delete_dir(path)
    assert not list(open_store(s3_root).list())
    with pytest.raises(FileNotFoundError):
        system.get_file_info(pafs.FileSelector(path))
    assert system.get_file_info(pafs.FileSelector(path, allow_not_found=True)) == []


def test_a_file_that_was_not_finished_is_not_stored(s3_root: str) -> None:
    upload = ray_storage._Upload(open_store(s3_root), "half")
    upload.write(b"x")
    del upload
    assert not list(open_store(s3_root).list())


def test_local_folders_are_ray_s_own_business(tmp_path: Path) -> None:
    assert storage_of(str(tmp_path)) == {"storage_path": str(tmp_path)}
