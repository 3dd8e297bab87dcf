"""Files that are no files: pipes, sockets, devices, and links out of the data folder.

Each is a reject (or, as a shard, an error) with the true reason, at once, in every format that
names pictures by their paths.
"""

import errno
import io
import json
import os
import socket
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from consomme.base.errors import CheckpointError, DataError, RecipeError
from consomme.base.sample import Reject, Sample
from consomme.storage.model_folder import model_folder
from consomme.storage.shards import Shard, find_shards
from consomme.storage.stores.local import LocalStore
from consomme.storage.units import plan_shard, plan_units, read_unit
from consomme.storage.url_lists import plan_urls
from consomme.storage.view import View

PICTURE = b"\x89PNG\r\n\x1a\n a picture, as far as a reader looks"
SECRET = b"\x89PNG\r\n\x1a\n the user's own secret"
PIPE, OUT = "it is a pipe (FIFO)", "leads out of the folder"

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A data folder with everything that a stranger may put there, and secrets beside it."""
    outside, data = tmp_path / "outside", tmp_path / "data"
    (data / "real" / "deep").mkdir(parents=True)
    outside.mkdir()
    (outside / "secret.png").write_bytes(SECRET)
    os.mkfifo(outside / "pipe")
    (data / "real" / "a.png").write_bytes(PICTURE)
    (data / "real" / "deep" / "b.png").write_bytes(PICTURE)
    os.link(outside / "secret.png", data / "hard.png")
    links = {
        "in.png": "real/a.png",
        "real/in-above.png": "../real/deep/b.png",
        "in-absolute.png": data / "real" / "a.png",
        "in-chain.png": "in.png",
        "in-folder": "real",
        "in-roundabout": "real/deep/../../real",
        "out.png": outside / "secret.png",
        "out-relative.png": "../outside/secret.png",
        "out-chain.png": "out.png",
        "out-and-in.png": "../data/real/a.png",
        "out-folder": "../outside",
        "real/out-above": "../..",
        "out-device.png": "/dev/zero",
        "out-terminal.png": "/dev/tty",
        "out-process.png": "/proc/self/environ",
        "dangling.png": "nowhere.png",
        "loop.png": "loop.png",
        "loop-a.png": "loop-b.png",
        "loop-b.png": "loop-a.png",
        "in-pipe.png": "pipe.png",
        "a-folder.png": "real",
    }
    for name, target in links.items():
        (data / name).symlink_to(target)
    os.mkfifo(data / "pipe.png")
    os.chmod(data / "pipe.png", 0o666)
    # A path to a socket has few characters, so it is bound from inside of the folder.
    with socket.socket(socket.AF_UNIX) as listening:
        here = Path.cwd()
        os.chdir(data)
        listening.bind("socket.png")
        os.chdir(here)
        yield data


GOOD = [
    "real/a.png",
    "hard.png",
    "in.png",
    "real/in-above.png",
    "in-absolute.png",
    "in-chain.png",
    "in-folder/a.png",
    "in-folder/deep/b.png",
    "in-roundabout/a.png",
    "./real/./a.png",
]

BAD = {
    "pipe.png": ("unsafe_path", PIPE),
    "in-pipe.png": ("unsafe_path", PIPE),
    "socket.png": ("unsafe_path", "it is a socket"),
    "out.png": ("unsafe_path", OUT),
    "out-relative.png": ("unsafe_path", OUT),
    "out-chain.png": ("unsafe_path", OUT),
    "out-and-in.png": ("unsafe_path", OUT),
    "out-folder/secret.png": ("unsafe_path", OUT),
    "out-folder/pipe": ("unsafe_path", OUT),
    "real/out-above/outside/secret.png": ("unsafe_path", OUT),
    "in-folder/out-above/outside/secret.png": ("unsafe_path", OUT),
    "out-device.png": ("unsafe_path", OUT),
    "out-terminal.png": ("unsafe_path", OUT),
    "out-process.png": ("unsafe_path", OUT),
    "/etc/passwd": ("unsafe_path", OUT),
    "../outside/secret.png": ("unsafe_path", OUT),
    "dangling.png": ("image_missing", "No such file"),
    "loop.png": ("image_missing", "Too many levels"),
    "loop-a.png": ("image_missing", "Too many levels"),
    "a-folder.png": ("image_missing", "Is a directory"),
    "real": ("image_missing", "Is a directory"),
    "in.png/x.png": ("image_missing", "Not a directory"),
    "absent/x.png": ("image_missing", "No such file"),
}


def write_jsonl(folder: Path, paths: list[str]) -> Path:
    lines = [json.dumps({"image": path, "caption": path}) for path in paths]
    (folder / "part.jsonl").write_text("\n".join(lines))
    return folder / "part.jsonl"


def write_json(folder: Path, paths: list[str]) -> Path:
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "text"}]
    records = [{"image": path, "conversations": turns} for path in paths]
    (folder / "part.json").write_text(json.dumps(records))
    return folder / "part.json"


def write_paths(folder: Path, paths: list[str]) -> Path:
    pq.write_table(pa.table({"image": paths, "caption": paths}), folder / "part.parquet")
    return folder / "part.parquet"


def write_structs(folder: Path, paths: list[str]) -> Path:
    images = pa.array(
        [{"bytes": None, "path": path} for path in paths],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    pq.write_table(pa.table({"image": images, "caption": paths}), folder / "structs.parquet")
    return folder / "structs.parquet"


Write = Callable[[Path, list[str]], Path]
WRITERS: list[Write] = [write_jsonl, write_json, write_paths, write_structs]


def read(shard: Path) -> tuple[list[tuple[int, Sample]], list[tuple[int, Reject]]]:
    (unit,) = plan_units([str(shard)], "data")
    return read_unit(unit)


@pytest.mark.parametrize("write", WRITERS)
def test_pictures_are_regular_files_below_the_data_folder(folder: Path, write: Write) -> None:
    begin = time.monotonic()
    samples, rejects = read(write(folder, [*GOOD, *BAD]))
    assert time.monotonic() - begin < 10
    assert {sample.images[0].name for _, sample in samples} == set(GOOD)
    assert {s.images[0].data for _, s in samples} == {PICTURE, SECRET}, (
        "the hard link is a file of its own"
    )
    found = {list(BAD)[row - len(GOOD)]: (r.reason, r.detail) for row, r in rejects}
    assert {path: reason for path, (reason, _) in found.items()} == {
        path: reason for path, (reason, _) in BAD.items()
    }
    for path, (_, detail) in BAD.items():
        assert path in found[path][1]
        if not path.startswith(("/", "..")):
            assert detail in found[path][1], path


@pytest.mark.parametrize("write", WRITERS)
def test_the_data_folder_itself_may_be_a_link(folder: Path, tmp_path: Path, write: Write) -> None:
    write(folder, [*GOOD, "out.png"])
    (tmp_path / "chosen").symlink_to(folder)
    (name,) = (
        folder.glob("*.parquet")
        if write in (write_paths, write_structs)
        else folder.glob("*.json*")
    )
    samples, rejects = read(tmp_path / "chosen" / name.name)
    assert len(samples) == len(GOOD)
    assert [reject.reason for _, reject in rejects] == ["unsafe_path"]


def test_a_cache_of_the_hub_is_one_folder(tmp_path: Path) -> None:
    """Its snapshots hold nothing but links to the blobs beside them."""
    repository = tmp_path / "datasets--org--name"
    snapshot = repository / "snapshots" / "0123abc"
    (repository / "blobs").mkdir(parents=True)
    (snapshot / "images").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(SECRET)
    (repository / "blobs" / "1f").write_bytes(PICTURE)
    (snapshot / "images" / "a.png").symlink_to("../../../blobs/1f")
    (snapshot / "images" / "b.png").symlink_to("../../../../secret.png")
    write_jsonl(repository / "blobs", ["images/a.png", "images/b.png"])
    (snapshot / "part.jsonl").symlink_to("../../blobs/part.jsonl")
    (shard,) = find_shards([str(snapshot)])
    samples, rejects = read(Path(shard.url))
    assert [sample.images[0].data for _, sample in samples] == [PICTURE]
    assert [reject.reason for _, reject in rejects] == ["unsafe_path"]


def test_nobody_can_put_a_link_in_place_between_check_and_opening(folder: Path) -> None:
    """One thread swaps a file, and a folder above another, for links out, as fast as it can."""
    stop = threading.Event()
    (folder / "swap").mkdir()
    (folder / "swap" / "secret.png").write_bytes(PICTURE)
    (folder / "link").symlink_to("../outside")

    def swap() -> None:
        while not stop.is_set():
            (folder / "new").symlink_to("../outside/secret.png")
            os.replace(folder / "new", folder / "file.png")
            os.rename(folder / "swap", folder / "parked")
            os.rename(folder / "link", folder / "swap")
            (folder / "new").write_bytes(PICTURE)
            os.replace(folder / "new", folder / "file.png")
            os.rename(folder / "swap", folder / "link")
            os.rename(folder / "parked", folder / "swap")

    thread = threading.Thread(target=swap)
    thread.start()
    store, seen = LocalStore(str(folder)), set()
    try:
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            for path in ("file.png", "swap/secret.png"):
                try:
                    seen.add(store.read_inside(path))
                except OSError as error:
                    seen.add(type(error).__name__)
    finally:
        stop.set()
        thread.join()
    assert SECRET not in seen
    assert {PICTURE, "UnsafeFileError"} <= seen, "both states were met"


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".tar", ".parquet"])
def test_shards_that_are_no_files_are_refused_at_once(
    folder: Path, tmp_path: Path, suffix: str
) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    os.mkfifo(shards / f"pipe{suffix}")
    (folder.parent / "outside" / f"private{suffix}").write_bytes(b"")
    begin = time.monotonic()
    for given in (shards, shards / f"*{suffix}", shards / f"pipe{suffix}"):
        with pytest.raises(RecipeError, match=r"pipe \(FIFO\)"):
            find_shards([str(given)])
    unlisted = Shard(url=str(shards / f"pipe{suffix}"), size=0)
    for plan in (plan_urls, plan_shard):
        with pytest.raises(
            DataError, match=rf"pipe{suffix}: it is a pipe \(FIFO\), expected a reg"
        ):
            plan(unlisted, 10)
    (shards / f"pipe{suffix}").unlink()
    for target in ("../outside", "../outside/"):
        (shards / "link").symlink_to(target)
        with pytest.raises(RecipeError, match="leads out of the folder"):
            find_shards([str(shards)])
        (shards / "link").unlink()
    (shards / f"link{suffix}").symlink_to(f"../outside/private{suffix}")
    for given in (shards, shards / f"*{suffix}", shards / f"**/*{suffix}"):
        with pytest.raises(RecipeError, match="leads out of the folder"):
            find_shards([str(given)])
    (shards / f"more{suffix}").symlink_to(f"../outside/private{suffix}")
    for given in (f"link{suffix}", f"{{link,more}}{suffix}"):
        urls = [shard.url for shard in find_shards([str(shards / given)])]
        assert urls[0] == str(shards / f"link{suffix}"), "named, so the user's own choice"
    assert time.monotonic() - begin < 5


def test_links_between_shards_of_one_folder_are_followed(folder: Path, tmp_path: Path) -> None:
    write_jsonl(folder, ["real/a.png"])
    shards = tmp_path / "shards"
    (shards / "b").mkdir(parents=True)
    (shards / "b" / "part.tar").write_bytes(bytes(10240))
    (shards / "a.tar").symlink_to("b/part.tar")
    names = [shard.name for shard in find_shards([str(shards)])]
    assert names == ["a.tar", "b/part.tar"]


def test_members_of_a_tar_that_are_no_files_are_rejects(tmp_path: Path) -> None:
    kinds = {
        "symlink": (tarfile.SYMTYPE, "/etc/passwd"),
        "hardlink": (tarfile.LNKTYPE, "../../etc/passwd"),
        "pipe": (tarfile.FIFOTYPE, ""),
        "device": (tarfile.CHRTYPE, ""),
        "block": (tarfile.BLKTYPE, ""),
        "/absolute": (tarfile.REGTYPE, ""),
        "../above": (tarfile.REGTYPE, ""),
        "good": (tarfile.REGTYPE, ""),
    }
    with tarfile.open(tmp_path / "part.tar", "w") as tar:
        for name, (kind, target) in kinds.items():
            member = tarfile.TarInfo(f"{name}.png")
            member.type, member.linkname = kind, target
            member.size = len(PICTURE) if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(PICTURE))
            text = tarfile.TarInfo(f"{name}.txt")
            text.size = 4
            tar.addfile(text, io.BytesIO(b"text"))
    samples, rejects = read(tmp_path / "part.tar")
    assert [sample.sample_id for _, sample in samples] == ["good"]
    assert [reject.reason for _, reject in rejects] == ["record_malformed"] * 5 + [
        "unsafe_path"
    ] * 2
    assert all("not a plain file" in reject.detail for _, reject in rejects[:5])


@pytest.mark.parametrize("write", WRITERS)
def test_a_shard_that_becomes_a_pipe_does_not_block(folder: Path, write: Write) -> None:
    shard = write(folder, ["real/a.png"])
    (unit,) = plan_units([str(shard)], "data")
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(DataError, match=r"it is a pipe \(FIFO\), expected a regular file"):
        read_unit(unit)


def test_a_picture_that_may_not_be_read_costs_one_sample(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its error alone, since root may read everything."""
    ask_system = os.open

    def refuse(path: str, *arguments: int, **named: int) -> int:
        if path == "a.png":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return ask_system(path, *arguments, **named)

    shard = write_jsonl(folder, ["hard.png", "real/a.png"])
    (unit,) = plan_units([str(shard)], "data")
    monkeypatch.setattr(os, "open", refuse)
    samples, ((_, reject),) = read_unit(unit)
    assert len(samples) == 1
    assert (reject.reason, reject.detail) == ("image_missing", "real/a.png: Permission denied")


def test_files_of_runs_and_models_are_files(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    os.mkfifo(run / "view.parquet")
    with pytest.raises(DataError, match=r"pipe \(FIFO\)"):
        View.load(str(run))
    for number, name in enumerate(
        ("config.json", "model.safetensors", "tokenizer.json", "additional_chat_templates/a.jinja")
    ):
        model = tmp_path / f"model-{number}"
        (model / name).parent.mkdir(parents=True)
        (model / "config.json").write_text("{}")
        (model / name).unlink(missing_ok=True)
        os.mkfifo(model / name)
        with pytest.raises(CheckpointError, match=rf"{name} is a pipe \(FIFO\), expected a file"):
            model_folder(str(model))


@pytest.mark.parametrize("write", WRITERS)
def test_a_picture_on_the_web_is_a_job_for_download(folder: Path, write: Write) -> None:
    samples, rejects = read(write(folder, ["https://u:hunter2@example.org/a.png?sig=1", "in.png"]))
    assert len(samples) == 1
    ((_, reject),) = rejects
    assert reject.reason == "image_missing"
    assert "consomme download" in reject.detail
    assert "hunter2" not in reject.detail
