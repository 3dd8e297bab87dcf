"""Readers, writers, planning: every row once, names and bytes kept, one reject for each fault."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consomme.base.errors import DataError
from consomme.base.sample import ImageFile, Reject, Sample, Turn, caption_turns
from consomme.storage.stores.local import LocalStore
from consomme.storage.unit import Unit
from consomme.storage.units import plan_units, read_unit
from consomme.storage.view import View, read_view_unit
from consomme.storage.writers import ParquetWriter, WebDatasetWriter, parquet_bytes, tar_bytes

PNG = b"\x89PNG\r\n\x1a\n"


def sample(key: str, text: str = "a cat", size: int = 40, **meta: Any) -> Sample:
    return Sample(
        sample_id=key,
        images=(ImageFile(data=PNG + key.encode() + bytes(size), name=f"{key}.png"),),
        turns=caption_turns(text),
        source="web",
        meta=meta,
    )


def tar_of(*members: tuple[str, bytes], **options: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return buffer.getvalue()


def pairs(*keys: str) -> list[tuple[str, bytes]]:
    return [
        member
        for key in keys
        for member in [(f"{key}.png", PNG), (f"{key}.txt", b"a " + key.encode())]
    ]


def read_all(units: list[Unit]) -> tuple[list[Sample], list[Reject]]:
    """Read units and check that each row came back exactly once."""
    samples: list[Sample] = []
    rejects: list[Reject] = []
    for unit in units:
        good, bad = read_unit(unit)
        assert sorted([row for row, _ in good] + [row for row, _ in bad]) == list(range(unit.count))
        samples += [item for _, item in good]
        rejects += [item for _, item in bad]
    return samples, rejects


def read_file(tmp_path: Path, name: str, data: bytes, **limits: int) -> Any:
    (tmp_path / name).write_bytes(data)
    return read_all(plan_units([str(tmp_path / name)], "web", **limits))


def json_lines(*records: Any) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


# --- round trips -----------------------------------------------------------------------------

names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
contents = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12).map(
    lambda text: "x" + text
)
# In a user turn, `<image>` marks the place of the picture and is not text.
asked = contents.filter(lambda text: "<image>" not in text)
conversations = st.one_of(
    contents.map(caption_turns),
    st.tuples(asked, contents).map(
        lambda said: (
            Turn(role="user", content=said[0]),
            Turn(role="assistant", content=said[1]),
        )
    ),
)
samples_lists = st.lists(
    st.builds(
        Sample,
        sample_id=names,
        images=st.tuples(
            st.builds(
                ImageFile,
                data=st.binary(min_size=1, max_size=30),
                name=names | names.map(lambda name: name + ".jpg"),
            )
        ),
        turns=conversations,
        source=st.just("web"),
        meta=st.dictionaries(
            st.sampled_from(["url", "license", "consomme_model", "width"]),
            st.integers() | contents | st.lists(contents),
            max_size=2,
        ),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda item: item.sample_id,
)


@pytest.mark.parametrize("pack", [(tar_bytes, "tar"), (parquet_bytes, "parquet")])
@given(samples=samples_lists)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    pack: tuple[Callable[[list[Sample]], bytes], str],
    samples: list[Sample],
) -> None:
    write, suffix = pack
    data = write(samples)
    assert write(samples) == data
    folder = tmp_path_factory.mktemp("shards")
    found, rejects = read_file(folder, f"s.{suffix}", data, max_rows=4)
    assert rejects == []
    assert found == samples


@pytest.mark.parametrize("pack", [(tar_bytes, "tar"), (parquet_bytes, "parquet")])
def test_what_consomme_writes_has_no_marks_but_its_own(
    tmp_path: Path, pack: tuple[Callable[[list[Sample]], bytes], str]
) -> None:
    write, suffix = pack
    turns = (
        Turn(role="user", content="<image>\nwhat does the tag mean?"),
        Turn(role="assistant", content="<image> and <image> again"),
    )
    sample = Sample(
        sample_id="a", images=(ImageFile(data=PNG, name="a.png"),), turns=turns, source="web"
    )
    image = ImageFile(data=PNG, name="b.png")
    caption = replace(sample, sample_id="b", images=(image,), turns=caption_turns("x<image>"))
    found, rejects = read_file(tmp_path, f"s.{suffix}", write([sample, caption]))
    assert rejects == []
    assert found == [sample, caption]


def test_webdataset_names_are_kept(tmp_path: Path) -> None:
    members = [
        ("./a/000.1.PNG", PNG),
        ("./a/000.caption", b"one \xc3\xa9"),
        ("./a/000.json", b'{"url": "u", "caption": "ignored"}'),
        ("b.JPEG", b"jpeg"),
        ("b.cls", b"7"),
        ("b.json", b'{"text": "two"}'),
        ("._b.jpg", b"left by a Mac"),
        ("c" * 150 + ".webp", b"webp"),
        ("c" * 150 + ".txt", b"three\n"),
    ]
    for options in [{"format": tarfile.GNU_FORMAT}, {"format": tarfile.PAX_FORMAT}]:
        samples, rejects = read_file(tmp_path, "s.tar", tar_of(*members, **options))
        assert rejects == []
        assert [(item.sample_id, item.images[0].name, item.caption) for item in samples] == [
            ("a/000", "./a/000.1.PNG", "one é"),
            ("b", "b.JPEG", "two"),
            ("c" * 150, "c" * 150 + ".webp", "three\n"),
        ]
        assert samples[0].meta == {"url": "u", "caption": "ignored"}


def test_tar_members_written_are_named_like_those_read(tmp_path: Path) -> None:
    data = tar_of(*pairs("x/1", "x/2"))
    samples, _ = read_file(tmp_path, "s.tar", data)
    with tarfile.open(fileobj=io.BytesIO(tar_bytes(samples))) as tar:
        assert tar.getnames() == ["x/1.png", "x/1.txt", "x/2.png", "x/2.txt"]
        assert {(item.mtime, item.uid, item.uname) for item in tar.getmembers()} == {(0, 0, "")}


def test_writers_cut_shards_by_rows_and_size(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    writer = WebDatasetWriter(store, "kept/web", max_rows=2)
    for number in range(5):
        writer.write(sample(f"{number}"))
    files = writer.close()
    assert [file.path for file in files] == [f"kept/web-00000{number}.tar" for number in range(3)]
    assert [file.size for file in files] == [store.size(file.path) for file in files]
    samples, _ = read_all(plan_units([str(tmp_path / "kept")], "web"))
    assert samples == [sample(f"{number}") for number in range(5)]
    with ParquetWriter(store, "big", max_mb=1) as parquet:
        for number in range(3):
            parquet.write(sample(f"{number}", size=700_000))
    assert len(parquet.close()) == 3
    with pytest.raises(DataError, match="occurs twice"):
        tar_bytes([sample("1"), sample("1")])


def test_parquet_of_others(tmp_path: Path) -> None:
    (tmp_path / "pic.png").write_bytes(PNG)
    table = pa.table(
        {
            "image": [
                {"bytes": PNG, "path": "in.png"},
                {"bytes": None, "path": "pic.png"},
                {"bytes": None, "path": None},
                {"bytes": PNG, "path": None},
            ],
            "caption": ["one", "two", "three", None],
            "width": [1, None, 3, 4],
            "thumb": [b"raw"] * 4,
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    samples, rejects = read_file(tmp_path, "hf.parquet", sink.getvalue())
    assert [(item.sample_id, item.images[0].name, dict(item.meta)) for item in samples] == [
        ("hf-00000000", "in.png", {"width": 1}),
        ("hf-00000001", "pic.png", {}),
    ]
    assert [item.reason for item in rejects] == ["image_missing", "caption_missing"]
    assert rejects[0].reference.endswith("hf.parquet#2")
    sink = io.BytesIO()
    pq.write_table(table.drop(["caption"]), sink)
    with pytest.raises(DataError, match="expected image or images, and caption or text"):
        read_file(tmp_path, "hf.parquet", sink.getvalue())


def test_llava_conversations(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(PNG)
    good = {
        "id": 7,
        "image": "images/1.png",
        "conversations": [
            {"from": "human", "value": '<image>\nWhat, [here] "}\\"?'},
            {"from": "gpt", "value": "A cat."},
        ],
        "lang": "en",
    }
    bad = [
        {**good, "id": 1, "image": "images/2.png"},
        {**good, "id": 2, "conversations": []},
        {**good, "id": 3, "conversations": good["conversations"][:1]},
        {**good, "id": 4, "conversations": [{"from": "bird", "value": "x"}]},
        {**good, "id": 5, "conversations": [{"from": "gpt", "value": 5}]},
        {**good, "id": 6, "conversations": good["conversations"] * 2 + good["conversations"][:1]},
        {key: value for key, value in good.items() if key != "image"},
        "text",
    ]
    data = b"\xef\xbb\xbf " + json.dumps([good, *bad, {**good, "id": 8}], indent=2).encode()
    samples, rejects = read_file(tmp_path, "l.json", data, max_rows=3)
    assert [(item.sample_id, item.meta) for item in samples] == [
        ("7", {"lang": "en"}),
        ("7@7", {"lang": "en"}),
        ("8", {"lang": "en"}),
    ]
    assert samples[1].images == ()
    assert samples[1].turns[0].content == good["conversations"][0]["value"]
    assert samples[0].turns == (
        Turn(role="user", content='What, [here] "}\\"?'),
        Turn(role="assistant", content="A cat."),
    )
    assert [item.reason for item in rejects] == [
        "image_missing",
        *["conversation_malformed"] * 5,
        "record_malformed",
    ]
    for text, reasons in [
        (b'{"a": 1}', ["caption_missing"]),
        (b"[1, 2", ["record_malformed", "record_malformed", "record_truncated"]),
        (b"[1] 2", ["record_malformed", "record_malformed"]),
        (b"", ["shard_unreadable"]),
    ]:
        found = read_file(tmp_path, "l.json", text)[1]
        assert [item.reason for item in found] == reasons
    assert read_file(tmp_path, "l.json", b" [ ] ") == ([], [])


# --- planning --------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=12),
    max_rows=st.integers(1, 5),
    max_bytes=st.integers(500, 9000),
    kind=st.sampled_from(["tar", "parquet", "jsonl", "json"]),
)
def test_planning_covers_each_row_once(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    max_rows: int,
    max_bytes: int,
    kind: str,
) -> None:
    folder = tmp_path_factory.mktemp("plan")
    (folder / "i.png").write_bytes(PNG)
    rows = [sample(f"{index}", "x" * (1 + size), size) for index, size in enumerate(sizes)]
    records = [{"id": item.sample_id, "image": "i.png", "caption": item.caption} for item in rows]
    data = {
        "tar": lambda: tar_bytes(rows),
        "parquet": lambda: parquet_bytes(rows, row_group_rows=3),
        "jsonl": lambda: b"\n\n" + json_lines(*records).replace(b"\n", b"\r\n \n"),
        "json": lambda: json.dumps(records).encode(),
    }[kind]()
    (folder / f"s.{kind}").write_bytes(data)
    units = plan_units([str(folder / f"s.{kind}")], "web", max_rows, max_bytes)
    assert units == plan_units([str(folder / f"s.{kind}")], "web", max_rows, max_bytes)
    assert [unit.start for unit in units] == [
        sum(unit.count for unit in units[:index]) for index in range(len(units))
    ]
    assert all(0 < unit.count <= max_rows for unit in units)
    assert all(unit.num_bytes <= max_bytes or unit.count == 1 for unit in units)
    assert len({unit.unit_id for unit in units}) == len(units)
    samples, rejects = read_all(units)
    assert rejects == []
    assert [item.sample_id for item in samples] == [item.sample_id for item in rows]
    assert [item.caption for item in samples] == [item.caption for item in rows]


def test_unit_ids_do_not_depend_on_the_place(tmp_path: Path) -> None:
    for place in ["one", "two/deeper"]:
        for part in ["a", "b"]:
            (tmp_path / place / part).mkdir(parents=True)
            (tmp_path / place / part / "0 é.tar").write_bytes(tar_of(*pairs("1", "2", "3")))
    one = plan_units([str(tmp_path / "one")], "my web", max_rows=2)
    two = plan_units([str(tmp_path / "two")], "my web", max_rows=2)
    ids = [unit.unit_id for unit in one]
    assert ids == [unit.unit_id for unit in two]
    assert len(set(ids)) == 4
    assert all(unit_id.isascii() and "/" not in unit_id for unit_id in ids)
    assert Unit.from_dict(json.loads(json.dumps(one[1].to_dict()))) == one[1]


def test_planning_a_tar_reads_no_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = [sample(f"{number}", size=1 << 20) for number in range(8)]
    (tmp_path / "s.tar").write_bytes(tar_bytes(big))
    taken = 0

    class Counting(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            nonlocal taken
            data = super().read(size)
            taken += len(data)
            return data

    monkeypatch.setattr(
        LocalStore, "open", lambda _, path: Counting((tmp_path / path).read_bytes())
    )
    assert sum(unit.count for unit in plan_units([str(tmp_path / "s.tar")], "web")) == 8
    assert taken < 100_000


def test_a_shard_that_changed_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_bytes(json_lines({"a": 1}, {"a": 2}))
    units = plan_units([str(path)], "web")
    path.write_bytes(json_lines({"a": 1}))
    with pytest.raises(DataError, match="found 1 rows from row 0, planned 2"):
        read_unit(units[0])
    path.unlink()
    with pytest.raises(DataError, match="is gone"):
        read_unit(units[0])


def test_views_read_the_kept_rows(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(tar_of(*pairs("1", "2"), ("3.png", PNG)))
    units = plan_units([str(tmp_path / "s.tar")], "web")
    view = View.from_rows(units, {units[0].unit_id: [1]})
    ((unit, bitmap),) = view.entries
    assert [(row, item.sample_id) for row, item in read_view_unit(unit, bitmap)] == [(1, "2")]
    ((unit, bitmap),) = View.from_rows(units, {units[0].unit_id: [2]}).entries
    with pytest.raises(DataError, match="row 2 is in the view but is not readable"):
        read_view_unit(unit, bitmap)


# --- faults: each one costs exactly one reject ------------------------------------------------

WHOLE = tar_of(*pairs("1", "2", "3", "4"))
MEMBER = 1024
"""Bytes of one small member: a header block and a data block."""


def damaged(offset: int) -> bytes:
    return WHOLE[:offset] + b"\xff" * 512 + WHOLE[offset + 512 :]


def linked() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        header = tarfile.TarInfo("2.png")
        header.type, header.linkname = tarfile.SYMTYPE, "/etc/passwd"
        for name, data in pairs("1"):
            plain = tarfile.TarInfo(name)
            plain.size = len(data)
            tar.addfile(plain, io.BytesIO(data))
        tar.addfile(header)
        plain = tarfile.TarInfo("2.txt")
        plain.size = 1
        tar.addfile(plain, io.BytesIO(b"x"))
    return buffer.getvalue()


@pytest.mark.parametrize("max_rows", [1, 2, 100])
@pytest.mark.parametrize(
    ("data", "kept", "reason"),
    [
        pytest.param(WHOLE[: 6 * MEMBER + 515], "123", "record_truncated", id="cut in pixels"),
        pytest.param(
            WHOLE[: 7 * MEMBER + 514], "123", "record_truncated", id="cut inside a caption"
        ),
        pytest.param(
            WHOLE[: 6 * MEMBER + 100], "123", "record_malformed", id="cut inside a header"
        ),
        pytest.param(
            WHOLE[: 7 * MEMBER + 100], "123", "record_malformed", id="cut in text's header"
        ),
        pytest.param(WHOLE[: 6 * MEMBER + 600], "123", "caption_missing", id="cut in padding"),
        pytest.param(
            WHOLE[: 7 * MEMBER + 600], "1234", "record_malformed", id="cut in last padding"
        ),
        pytest.param(WHOLE[: 6 * MEMBER], "123", "record_malformed", id="cut between samples"),
        pytest.param(WHOLE[: 7 * MEMBER], "123", "caption_missing", id="cut between members"),
        pytest.param(damaged(2 * MEMBER), "134", "record_malformed", id="damaged image header"),
        pytest.param(damaged(3 * MEMBER), "134", "record_malformed", id="damaged text header"),
        pytest.param(damaged(0), "234", "record_malformed", id="damaged first header"),
        pytest.param(b"<html>not found</html>", "", "shard_unreadable", id="a web page"),
        pytest.param(b"x" * 5000, "", "shard_unreadable", id="not a tar"),
        pytest.param(b"", "", "shard_unreadable", id="empty file"),
        pytest.param(
            tar_of(("1.png", PNG), ("1.txt", b"\xff\xfe")), "", "caption_not_utf8", id="utf8"
        ),
        pytest.param(tar_of(("1.png", PNG), ("1.txt", b" \n")), "", "caption_empty", id="empty"),
        pytest.param(
            tar_of(("1.png", PNG), ("1.txt", b"x" * 200_000)), "", "caption_too_long", id="200 kB"
        ),
        pytest.param(tar_of(*pairs("1"), ("2.png", PNG)), "1", "caption_missing", id="no caption"),
        pytest.param(tar_of(*pairs("1"), ("2.txt", b"x")), "1", "image_missing", id="no image"),
        pytest.param(tar_of(("1.png", b""), ("1.txt", b"x")), "", "image_empty", id="empty image"),
        pytest.param(
            tar_of(("1.png", PNG), ("1.jpg", PNG), ("1.txt", b"x")),
            "",
            "record_malformed",
            id="two",
        ),
        pytest.param(tar_of(*pairs("1", "/etc/2")), "1", "unsafe_path", id="absolute path"),
        pytest.param(tar_of(*pairs("1", "a/../../2")), "1", "unsafe_path", id="parent path"),
        pytest.param(linked(), "1", "record_malformed", id="symbolic link"),
        pytest.param(
            tar_of(("1.png", PNG), ("1.json", b"[" * 100_000)),
            "",
            "record_malformed",
            id="deep json",
        ),
        pytest.param(
            tar_of(("1.png", PNG), ("1.json", b'{"caption": 5}')),
            "",
            "record_malformed",
            id="number",
        ),
        pytest.param(
            tar_of(("1.png", PNG), ("1.json", b'{"turns": [{"role": "user", "content": "x"}]}')),
            "",
            "conversation_malformed",
            id="nobody answers",
        ),
    ],
)
def test_each_fault_in_a_tar_is_one_reject(
    tmp_path: Path, data: bytes, kept: str, reason: str, max_rows: int
) -> None:
    samples, rejects = read_file(tmp_path, "s.tar", data, max_rows=max_rows)
    assert [item.sample_id for item in samples] == list(kept)
    assert [item.reason for item in rejects] == [reason], rejects
    shard, _, span = rejects[0].reference.rpartition("@")
    offset, length = map(int, span.split("+"))
    assert shard == str(tmp_path / "s.tar")
    assert offset + length <= len(data)


def test_a_tar_cut_anywhere_costs_one_reject(tmp_path: Path) -> None:
    for length in [*range(0, 8 * MEMBER, 37), *range(0, 8 * MEMBER, 512)]:
        samples, rejects = read_file(tmp_path, "s.tar", WHOLE[:length], max_rows=2)
        assert len(rejects) == 1, length
        # The caption's eighth byte is the last that a sample needs; the rest is padding.
        assert len(samples) == (length + 2 * MEMBER - (MEMBER + 512 + 3)) // (2 * MEMBER), length


def test_tars_laid_end_to_end_are_read_to_the_end(tmp_path: Path) -> None:
    samples, rejects = read_file(tmp_path, "s.tar", WHOLE + tar_of(*pairs("5")))
    assert [item.sample_id for item in samples] == list("12345")
    assert rejects == []


@given(offset=st.integers(0, len(WHOLE) - 1), junk=st.binary(min_size=1, max_size=1500))
def test_no_damage_breaks_the_reader(
    tmp_path_factory: pytest.TempPathFactory, offset: int, junk: bytes
) -> None:
    data = (WHOLE[:offset] + junk + WHOLE[offset + len(junk) :])[: len(WHOLE)]
    folder = tmp_path_factory.mktemp("damage")
    whole, rejected = read_file(folder, "s.tar", data)
    cut, cut_rejected = read_file(folder, "s.tar", data, max_rows=1)
    assert len(whole) + len(rejected) >= 2
    assert len(cut) + len(cut_rejected) == len(whole) + len(rejected)


GOOD_LINE = {"id": "1", "image": "i.png", "caption": "a cat"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"id": "2", "image": "i.png"', "record_malformed"),
        (b"[1]", "record_malformed"),
        (b'{"id": "2", "image": "i.png", "caption": "\xff"}', "record_malformed"),
        (b'{"id": "2", "image": "i.png", "caption": "\\ud800"}', "caption_not_utf8"),
        (b'{"id": "2", "image": "i.png", "caption": ""}', "caption_empty"),
        (b'{"id": "2", "image": "i.png"}', "caption_missing"),
        (b'{"id": "2", "caption": "x"}', "image_missing"),
        (b'{"id": "2", "image": "none.png", "caption": "x"}', "image_missing"),
        (b'{"id": "2", "image": "https://x/y.png", "caption": "x"}', "image_missing"),
        (b'{"id": "2", "image": ".", "caption": "x"}', "unsafe_path"),
        (b'{"id": "2", "image": "/etc/hosts", "caption": "x"}', "unsafe_path"),
        (b'{"id": "2", "image": "../i.png", "caption": "x"}', "unsafe_path"),
        (b'{"id": "2", "image": 5, "caption": "x"}', "record_malformed"),
        (b'{"id": "2\\ud800", "image": "i.png", "caption": "x"}', "record_malformed"),
        (b"9" * 5000, "record_malformed"),
    ],
)
def test_each_broken_line_is_one_reject(tmp_path: Path, line: bytes, reason: str) -> None:
    (tmp_path / "i.png").write_bytes(PNG)
    last = {**GOOD_LINE, "id": "3"}
    data = json_lines(GOOD_LINE) + line + b"\n" + json_lines(last)
    samples, rejects = read_file(tmp_path, "s.jsonl", data)
    assert [item.sample_id for item in samples] == ["1", "3"]
    assert [item.reason for item in rejects] == [reason]
    own_id = "2\\ud800" if b"2\\u" in line else "2"
    is_parsed = line.startswith(b"{") and line.endswith(b"}") and b"\xff" not in line
    assert rejects[0].sample_id == (own_id if is_parsed else "s-00000001")
    assert rejects[0].reference == f"{tmp_path}/s.jsonl@{data.index(line)}+{len(line) + 1}"
    rejects[0].detail.encode()


def test_a_row_group_that_cannot_be_decoded_costs_its_rows(tmp_path: Path) -> None:
    rows = [sample(f"{number}", size=2000) for number in range(8)]
    data = bytearray(parquet_bytes(rows, row_group_rows=4))
    start = pq.ParquetFile(io.BytesIO(bytes(data))).metadata.row_group(1).column(0).data_page_offset
    data[start : start + 40] = b"\xff" * 40
    samples, rejects = read_file(tmp_path, "s.parquet", bytes(data), max_rows=4)
    assert [item.sample_id for item in samples] == ["0", "1", "2", "3"]
    assert [item.reason for item in rejects] == ["record_malformed"] * 4
    (cut,) = read_file(tmp_path, "s.parquet", bytes(data[:500]))[1]
    assert (cut.sample_id, cut.reason) == ("s.parquet", "shard_unreadable")


def test_shards_of_one_image_each_have_the_bytes_of_before() -> None:
    """The digest of the tar is of those that were written before samples had several images.

    That of Parquet changed once since: an image is a struct, and marked as one for `datasets`.
    """

    def one(key: str, name: str, *turns: Turn, **meta: Any) -> Sample:
        image = ImageFile(data=PNG + key[-1:].encode(), name=name)
        return Sample(sample_id=key, images=(image,), turns=turns, source="web", meta=meta)

    talk = (Turn(role="user", content="what?"), Turn(role="assistant", content="a dog, no"))
    rows = [
        one("a", "a.png", *caption_turns("a cat"), w=1),
        one("x/b", "other.JPG", *talk),
        one("c", "c.png", *caption_turns("x<image>")),
    ]
    digests = [hashlib.sha256(pack(rows)).hexdigest()[:16] for pack in (tar_bytes, parquet_bytes)]
    assert digests == ["3fc5fae4b8f4e4a6", "ef04418a2f9c0ae8"]
