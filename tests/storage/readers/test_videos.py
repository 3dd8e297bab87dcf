"""A video file is a reject that says so; its frames, given as images, are a sample."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from consomme.base.sample import Reject, Sample, turns_of
from consomme.datasets import scenes
from consomme.execution.stage import decoded_images
from consomme.storage.units import plan_units, read_unit
from consomme.vision.decode import DecodeProblem, decode

PNG = [scenes.encode(scenes.render(scenes.make_scene(seed))) for seed in range(3)]
VIDEOS = {
    "a.mp4": b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(500),
    "a.mov": b"\0\0\0\x14ftypqt  " + bytes(500),
    "old.mov": b"\0\0\0\x08wide\0\0\x10\0mdat" + bytes(500),
    "a.webm": b"\x1aE\xdf\xa3" + bytes(500),
    "a.avi": b"RIFF\0\1\0\0AVI LIST" + bytes(500),
    "a.flv": b"FLV\x01\x05" + bytes(500),
    "a.mpg": b"\0\0\1\xba" + bytes(500),
    "a.ogv": b"OggS" + bytes(500),
    "a.wmv": b"0&\xb2u\x8ef\xcf\x11" + bytes(500),
}


def talk(question: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": "it moves"}]


def found(path: Path) -> dict[str, Sample | Reject]:
    """What each record becomes, its images decoded as every stage does."""
    result: dict[str, Sample | Reject] = {}
    for unit in plan_units([str(path)], "data"):
        samples, rejects = read_unit(unit)
        for _, sample in samples:
            decoded = decoded_images(sample, [decode(image.data) for image in sample.images])
            result[sample.sample_id] = decoded if isinstance(decoded, Reject) else sample
        result |= {reject.sample_id: reject for _, reject in rejects}
    return result


def jsonl(folder: Path, *records: dict[str, Any]) -> Path:
    for name, data in VIDEOS.items():
        (folder / name).write_bytes(data)
    for number, data in enumerate(PNG):
        (folder / f"{number}.png").write_bytes(data)
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


RECORDS: list[dict[str, Any]] = [
    {"video": "a.mp4", "conversations": talk("<video>\nwhat happens?")},
    {"videos": ["a.mp4"], "conversations": talk("what happens?")},
    {"video": "a.mp4", "caption": "it moves"},
    {"video": "a.mp4", "image": "0.png", "conversations": talk("<image> before <video>")},
    {"image": "a.mp4", "caption": "it moves"},
    {"images": ["0.png", "a.webm"], "conversations": talk("<image><image> what happens?")},
    {
        "messages": [
            {"role": "user", "content": [{"type": "video", "video": "a.mp4"}]},
            {"role": "assistant", "content": "it moves"},
        ]
    },
    {
        "messages": [
            {"role": "user", "content": [{"type": "image", "image": "a.mp4"}]},
            {"role": "assistant", "content": "it moves"},
        ]
    },
]


@pytest.mark.parametrize("record", RECORDS, ids=str)
def test_a_record_with_a_video_is_a_reject(tmp_path: Path, record: dict[str, Any]) -> None:
    ((_, one),) = found(jsonl(tmp_path, record)).items()
    assert isinstance(one, Reject)
    assert one.reason == "video_unsupported"
    assert "frames" in one.detail


@pytest.mark.parametrize("is_struct", [True, False])
def test_a_row_with_a_video_is_a_reject(tmp_path: Path, is_struct: bool) -> None:
    data = VIDEOS["a.mp4"]
    video = {"bytes": data, "path": "a.mp4"} if is_struct else data
    columns = {
        "video": [video, None, video],
        "images": [[], [{"bytes": data, "path": "a.mp4"}], [{"bytes": PNG[0], "path": "0.png"}]],
        "conversations": [talk("what?"), talk("<image>what?"), talk("<image>what?")],
    }
    pq.write_table(pa.table(columns), tmp_path / "data.parquet")
    rows = found(tmp_path / "data.parquet")
    assert len(rows) == 3
    assert {one.reason for one in rows.values() if isinstance(one, Reject)} == {"video_unsupported"}
    assert all(isinstance(one, Reject) for one in rows.values())


def test_a_video_in_a_tar_is_a_reject(tmp_path: Path) -> None:
    members: dict[str, bytes] = {
        "caption.mp4": VIDEOS["a.mp4"],
        "caption.txt": b"it moves",
        "talk.webm": VIDEOS["a.webm"],
        "talk.json": json.dumps({"conversations": talk("<video>\nwhat?")}).encode(),
        "poster.jpg": PNG[0],
        "poster.mp4": VIDEOS["a.mp4"],
        "poster.txt": b"it moves",
        "named.jpg": VIDEOS["a.mp4"],
        "named.txt": b"it moves",
        "frames.0.png": PNG[0],
        "frames.1.png": PNG[1],
        "frames.2.png": PNG[2],
        "frames.json": json.dumps({"conversations": talk("what happens?")}).encode(),
    }
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    rows = found(tmp_path / "data.tar")
    frames = rows.pop("frames")
    assert isinstance(frames, Sample)
    assert [image.data for image in frames.images] == PNG
    assert set(rows) == {"caption", "talk", "poster", "named"}
    assert {one.reason for one in rows.values() if isinstance(one, Reject)} == {"video_unsupported"}
    assert all(isinstance(one, Reject) for one in rows.values())


def test_frames_are_a_sample_and_the_name_of_their_video_is_metadata(tmp_path: Path) -> None:
    record = {
        "id": "clip",
        "video": "a.mp4",
        "images": ["0.png", "1.png", "2.png"],
        "conversations": talk("<image><image><image>\nwhat happens?"),
    }
    sample = found(jsonl(tmp_path, record))["clip"]
    assert isinstance(sample, Sample)
    assert [image.data for image in sample.images] == PNG
    assert turns_of(sample, "")[0].image_indices == (0, 1, 2)
    assert sample.meta == {"video": "a.mp4"}


@pytest.mark.parametrize("name", VIDEOS)
def test_bytes_of_a_video_are_not_a_damaged_image(name: str) -> None:
    assert decode(VIDEOS[name]) == DecodeProblem(
        reason="video_unsupported",
        detail="a video file, expected an image; write its frames as images, in their order",
    )


@pytest.mark.parametrize("format_", ["AVIF", "WEBP", "JPEG2000"])
def test_images_in_similar_containers_are_none(format_: str) -> None:
    out = io.BytesIO()
    scenes.render(scenes.make_scene(0)).save(out, format_)
    assert isinstance(decode(out.getvalue()), Image.Image)
