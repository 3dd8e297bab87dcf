"""Samples of any number of images: marks bind in order, nothing is moved, and what is written is
read."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consomme.base.sample import (
    ImageFile,
    ImageRef,
    Reject,
    Sample,
    Turn,
    content_of,
)
from consomme.base.sample_tables import samples_to_table, table_to_samples
from consomme.storage.units import plan_units, read_unit
from consomme.storage.writers import parquet_bytes, tar_bytes

PNG = b"\x89PNG\r\n\x1a\n"
A, B, C = (PNG + name.encode() for name in "abc")


def human(text: Any) -> dict[str, Any]:
    return {"from": "human", "value": text}


def gpt(text: Any, **more: Any) -> dict[str, Any]:
    return {"from": "gpt", "value": text, **more}


def read(folder: Path, *records: dict[str, Any]) -> tuple[list[Sample], list[Reject]]:
    for name, data in (("a", A), ("b", B), ("c", C)):
        (folder / f"{name}.png").write_bytes(data)
    lines = "\n".join(json.dumps(record) for record in records)
    (folder / "data.jsonl").write_text(lines)
    return read_path(folder / "data.jsonl")


def read_path(path: Path, max_rows: int = 1024) -> tuple[list[Sample], list[Reject]]:
    samples, rejects = [], []
    for unit in plan_units([str(path)], "web", max_rows):
        found, bad = read_unit(unit)
        samples += [sample for _, sample in found]
        rejects += [reject for _, reject in bad]
    return samples, rejects


def contents(sample: Sample) -> list[Any]:
    return [turn.content for turn in sample.turns]


def test_marks_bind_in_order_wherever_they_stand(tmp_path: Path) -> None:
    many = {"images": ["a.png", "b.png", "c.png"]}
    samples, rejects = read(
        tmp_path,
        {**many, "conversations": [human("<image>\n<image>\n<image>\nwhich?"), gpt("b")]},
        {**many, "conversations": [human("which?"), gpt("b")]},
        {**many, "conversations": [human("is <image> or <image>\n<image> it?"), gpt("b")]},
        {
            **many,
            "conversations": [
                human("<image> what?"),
                gpt("a"),
                human("and <image>"),
                gpt("b"),
                human("<image>"),
                gpt("c"),
            ],
        },
        {**many, "text": "one <image> two<image>three <image>"},
        {
            **many,
            "messages": [
                {"role": "user", "content": "<image 3> <image 1><image 2>?"},
                {"role": "assistant", "content": "no"},
            ],
        },
    )
    assert rejects == []
    assert all([image.data for image in sample.images] == [A, B, C] for sample in samples)
    first, second, third = (ImageRef(number) for number in range(3))
    assert [contents(sample) for sample in samples] == [
        ["which?", "b"],
        ["which?", "b"],
        [("is ", first, " or ", second, "\n", third, " it?"), "b"],
        [(first, "what?"), "a", ("and", second), "b", (third,), "c"],
        [("one ", first, " two", second, "three", third)],
        [(third, first, second, "?"), "no"],
    ]
    assert samples[4].is_document


def test_the_image_of_a_second_question_stays_there(tmp_path: Path) -> None:
    turns = [human("hello"), gpt("hi"), human("what is in <image> here?"), gpt("a cat")]
    (sample,), rejects = read(tmp_path, {"image": "a.png", "conversations": turns})
    assert rejects == []
    assert contents(sample) == ["hello", "hi", ("what is in ", ImageRef(0), " here?"), "a cat"]


def test_a_text_without_images_keeps_its_marks(tmp_path: Path) -> None:
    turns = [human("what does <image> mean?"), gpt("a mark")]
    for absent in ({}, {"image": None}, {"images": []}):
        (sample,), rejects = read(tmp_path, {**absent, "conversations": turns})
        assert rejects == []
        assert sample.images == ()
        assert contents(sample) == ["what does <image> mean?", "a mark"]
        assert sample.meta == {k: v for k, v in absent.items() if k == "image"} or not sample.meta


@pytest.mark.parametrize(
    ("record", "reason", "detail"),
    [
        (
            {"images": ["a.png"], "conversations": [human("<image><image>"), gpt("x")]},
            "conversation_malformed",
            "found 2 marks of images (<image>) for 1 images",
        ),
        (
            {"images": ["a.png", "b.png"], "conversations": [human("<image> what?"), gpt("x")]},
            "conversation_malformed",
            "found 1 marks",
        ),
        (
            {"image": "a.png", "conversations": [human("<image> what?"), gpt("<image>")]},
            "conversation_malformed",
            "found 2 marks",
        ),
        (
            {"images": ["a.png", "b.png"], "conversations": [human("<image 1> what?"), gpt("x")]},
            "conversation_malformed",
            "image 2 has no place in the text",
        ),
        (
            {"images": ["a.png"], "conversations": [human("<image 2> what?"), gpt("x")]},
            "conversation_malformed",
            "image 1 has no place",
        ),
        (
            {"images": ["a.png", None], "conversations": [human("what?"), gpt("x")]},
            "image_missing",
            "images: 1 of 2 is null",
        ),
        (
            {"images": ["a.png", "no.png"], "conversations": [human("what?"), gpt("x")]},
            "image_missing",
            "no.png",
        ),
        ({"caption": "a cat"}, "image_missing", "text alone is a conversation"),
        (
            {"video": "a.mp4", "conversations": [human("<video> what?"), gpt("x")]},
            "video_unsupported",
            "write its frames as images",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "video", "video": "a.mp4"}]},
                    {"role": "assistant", "content": "x"},
                ]
            },
            "video_unsupported",
            "turn 0 has a video",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image"}]},
                    {"role": "assistant", "content": "x"},
                ]
            },
            "image_missing",
            "the record no image",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "audio"}]},
                    {"role": "assistant", "content": "x"},
                ]
            },
            "conversation_unsupported",
            "a part of type 'audio'",
        ),
    ],
)
def test_what_does_not_match_is_a_reject(
    tmp_path: Path, record: dict[str, Any], reason: str, detail: str
) -> None:
    samples, (reject,) = read(tmp_path, record)
    assert samples == []
    assert (reject.reason, detail in reject.detail) == (reason, True), reject.detail


def test_content_parts_say_where_images_stand(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "is "}, {"type": "image"}, {"type": "text", "text": " it?"}]
    named = [
        {"type": "image", "image": "b.png"},
        {"type": "text", "text": "against"},
        {"type": "image_url", "image_url": {"url": "a.png"}},
    ]
    answer = {"role": "assistant", "content": [{"type": "text", "text": "an <image>"}]}
    samples, rejects = read(
        tmp_path,
        {"images": ["a.png"], "messages": [{"role": "user", "content": parts}, answer]},
        {"messages": [{"role": "user", "content": named}, answer]},
    )
    assert rejects == []
    assert contents(samples[0]) == [("is ", ImageRef(0), " it?"), "an <image>"]
    assert contents(samples[1]) == [(ImageRef(0), "against", ImageRef(1)), "an <image>"]
    assert [image.data for image in samples[1].images] == [B, A]
    assert [image.name for image in samples[1].images] == ["b.png", "a.png"]


def test_parquet_with_lists_of_images(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "x"}]
    (tmp_path / "a.png").write_bytes(A)
    rows = [
        {"images": [{"bytes": A, "path": None}, {"bytes": B, "path": "b.png"}]},
        {"images": [{"bytes": None, "path": "a.png"}]},
        {"images": []},
        {"images": None},
    ]
    table = pa.Table.from_pylist([{**row, "messages": messages} for row in rows])
    pq.write_table(table, tmp_path / "x.parquet")
    samples, rejects = read_path(tmp_path / "x.parquet")
    assert rejects == []
    found = [[(image.data, image.name) for image in sample.images] for sample in samples]
    assert found == [[(A, "x-00000000"), (B, "b.png")], [(A, "a.png")], [], []]
    pq.write_table(table.drop(["images"]), tmp_path / "text.parquet")
    samples, rejects = read_path(tmp_path / "text.parquet")
    assert (len(samples), rejects) == (4, [])


def tar_of(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return buffer.getvalue()


def test_tars_with_numbered_images_and_with_none(tmp_path: Path) -> None:
    talk = {"conversations": [human("is <image> as <image>?"), gpt("no")]}
    text = {"conversations": [human("hello"), gpt("hi")]}
    data = tar_of(
        ("x.1.png", B),
        ("x.0.png", A),
        ("x.json", json.dumps(talk).encode()),
        ("y.json", json.dumps(text).encode()),
        ("z.mp4", b"video"),
        ("z.txt", b"a film"),
        ("v.txt", b"a caption of nothing"),
        ("w.png", A),
        ("w.jpg", B),
        ("w.txt", b"which?"),
    )
    (tmp_path / "x.tar").write_bytes(data)
    samples, rejects = read_path(tmp_path / "x.tar")
    assert [image.data for image in samples[0].images] == [A, B]
    assert contents(samples[0])[0] == ("is ", ImageRef(0), " as ", ImageRef(1), "?")
    assert (samples[1].sample_id, samples[1].images) == ("y", ())
    assert [(reject.sample_id, reject.reason) for reject in rejects] == [
        ("z", "video_unsupported"),
        ("v", "image_missing"),
        ("w", "record_malformed"),
    ]


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
words = texts.filter(lambda text: any(char.isalnum() for char in text)) | st.sampled_from(
    ["<image>", "x<image>y", "<|image_1|> a", " <image 2> "]
)
names = st.text("abc-_. é%/", min_size=1, max_size=8).filter(lambda name: name.strip("./ ") != "")
image_files = st.builds(
    ImageFile, data=st.binary(min_size=1, max_size=9), name=names.map(lambda name: name + ".png")
)


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    """A caption, conversation or document with images in all places."""
    images = draw(st.lists(image_files, max_size=3).map(tuple))
    kind = draw(st.sampled_from(["caption", "conversation", "document"] if images else ["talk"]))
    waiting = list(range(len(images)))

    def parts(*, takes_all: bool = False) -> Any:
        found: list[Any] = []
        while waiting and (takes_all or draw(st.booleans())):
            found += [draw(words), ImageRef(waiting.pop(0))]
        return content_of([*found, draw(words)])

    if kind == "caption":
        turns: list[Turn] = [Turn(role="assistant", content=draw(words))]
    elif kind == "document":
        turns = [Turn(role="assistant", content=parts(takes_all=True))]
    else:
        is_placed = bool(images) and draw(st.booleans())
        num = draw(st.integers(1, 3))
        turns = []
        for number in range(num):
            asked = parts(takes_all=number == num - 1) if is_placed else draw(words)
            turns.append(Turn(role="user", content=asked))
            is_labelled = number == 0 or draw(st.booleans())
            turns.append(Turn(role="assistant", content=draw(words), is_labelled=is_labelled))
            if draw(st.booleans()):
                turns.append(Turn(role="tool", content=draw(words)))
                turns.append(Turn(role="assistant", content=draw(words)))
    if draw(st.booleans()) and kind in ("conversation", "talk"):
        turns.insert(0, Turn(role="system", content=draw(words)))
    meta = draw(st.dictionaries(st.sampled_from(["url", "width", "note"]), words, max_size=2))
    sample_id = draw(names)
    return Sample(sample_id=sample_id, images=images, turns=tuple(turns), source="web", meta=meta)


sample_lists = st.lists(samples(), min_size=1, max_size=5, unique_by=lambda one: one.sample_id)


@given(sample_lists)
def test_samples_survive_a_table(rows: list[Sample]) -> None:
    assert table_to_samples(samples_to_table(rows)) == rows


@pytest.mark.parametrize("pack", [(tar_bytes, "tar"), (parquet_bytes, "parquet")])
@given(rows=sample_lists, max_rows=st.integers(1, 6))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    pack: tuple[Callable[[list[Sample]], bytes], str],
    rows: list[Sample],
    max_rows: int,
) -> None:
    write, suffix = pack
    path = tmp_path_factory.mktemp("shards") / f"s.{suffix}"
    path.write_bytes(write(rows))
    found, rejects = read_path(path, max_rows)
    assert rejects == []
    assert found == rows
