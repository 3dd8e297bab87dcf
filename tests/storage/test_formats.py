"""What becomes of files in the shapes that people have: samples, and rejects by reason."""

import bz2
import csv
import gzip
import io
import json
import lzma
import tarfile
from base64 import b64encode
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.zoo_images import good_image

from consomme.base.errors import DataError
from consomme.base.sample import Reject, Sample
from consomme.storage.reading import Reading
from consomme.storage.shards import Shard, find_shards
from consomme.storage.units import plan_shard, read_unit

CASES = Path(__file__).parents[1] / "cases"
PNG = good_image("a")

TABLE: list[tuple[str, dict[str, Any], int, dict[str, int]]] = [
    ("02-img2dataset-wds/00000.tar", {}, 5, {"caption_empty": 1}),
    ("02-img2dataset-wds/00000_stats.json", {}, 0, {"shard_unreadable": 1}),
    ("02-img2dataset-wds/00001.tar", {}, 0, {}),
    ("02-img2dataset-wds/00002.tar", {}, 0, {"shard_unreadable": 1}),
    ("03-dotted-keys/a.tar", {}, 4, {}),
    ("03-dotted-keys/b.tar", {}, 4, {}),
    ("03-dotted-keys/c.tar", {}, 4, {}),
    ("04-two-part-extensions/shard-000000.tar", {}, 4, {}),
    (
        "04-two-part-extensions/shard-000000.tar",
        {"columns": {"image": "input.jpg", "caption": "outputs.txt"}},
        4,
        {},
    ),
    ("05-unsorted-tar/00000.tar", {}, 0, {"caption_missing": 5}),
    ("07-llava-text-only/mix.json", {}, 10, {}),
    *(
        (
            f"08-llamafactory/mllm.{ending}",
            {},
            8,
            {"conversation_malformed": 2, "unsafe_path": 1, "video_unsupported": 1},
        )
        for ending in ("json", "jsonl")
    ),
    ("09-content-lists/qwen.jsonl", {}, 4, {}),
    ("16-paths/shard[0].tar", {}, 1, {}),
    ("16-paths/größe-图像/00000.tar", {}, 2, {}),
    ("16-paths/part [1]/00000.tar", {}, 2, {}),
    ("17-checkpoints/train.jsonl", {}, 3, {}),
    ("17-hidden/00000.tar", {}, 3, {}),
    ("17-macos-members/m.tar", {}, 3, {}),
    *(
        (f"18-lfs/{name}", {}, 0, {"shard_unreadable": 1})
        for name in ("b.tar", "c.json", "d.jsonl")
    ),
    *(
        (f"18-lfs/{name}", {}, 0, {"shard_unreadable": 1})
        for name in ("f.tar", "g.json", "h.jsonl")
    ),
    *(
        (f"18-lfs/{name}", {}, 0, {"shard_unreadable": 1})
        for name in ("j.tar", "k.json", "l.jsonl")
    ),
    ("18-lfs/o.json", {}, 0, {}),
    ("19-pictures/ext.tar", {}, 3, {"image_missing": 6}),
    ("19-pictures/pics.tar", {}, 35, {}),
    ("19-pictures/pics.tar", {"min_side_px": 50}, 29, {"image_too_small": 6}),
    ("20-captions/captions.tar", {}, 16, {}),
    ("23-json/array.jsonl", {}, 3, {}),
    ("23-json/arrayline.jsonl", {}, 3, {}),
    ("23-json/bom.json", {}, 3, {}),
    ("23-json/coco.json", {"image_root": str(CASES / "23-json/images")}, 1, {}),
    ("23-json/crlf.jsonl", {}, 3, {}),
    ("23-json/lines.json", {}, 3, {}),
    ("23-json/nan.jsonl", {}, 1, {}),
    ("23-json/nfd.jsonl", {}, 0, {"image_missing": 1}),
    ("23-json/object.json", {}, 3, {}),
    (
        "23-json/odd.jsonl",
        {"captions": "each"},
        22,
        {
            "caption_empty": 1,
            "conversation_malformed": 1,
            "image_missing": 6,
            "unsafe_path": 1,
            "video_unsupported": 1,
        },
    ),
    ("23-json/trailing.json", {}, 3, {}),
    ("23-json/sub/parent.jsonl", {}, 0, {"unsafe_path": 1}),
    ("23-json/sub/parent.jsonl", {"image_root": str(CASES / "23-json/sub")}, 0, {"unsafe_path": 1}),
    ("24-tar/gnu.tar", {}, 2, {}),
    ("24-tar/gz.tar", {}, 2, {}),
    ("24-tar/links.tar", {}, 1, {"record_malformed": 3}),
    ("24-tar/multi.tar", {}, 3, {"caption_missing": 2, "record_malformed": 3}),
    ("24-tar/pax.tar", {}, 2, {}),
    ("24-tar/updated.tar", {}, 1, {"caption_missing": 1, "image_missing": 1}),
    ("24-tar/ustar.tar", {}, 2, {}),
    ("24-tar/v7.tar", {}, 1, {"caption_missing": 1}),
    ("24-tar/x.tar.gz", {}, 2, {}),
]
"""File, options of `reading`, samples, rejects by reason."""


def read(
    path: Path | str, max_rows: int = 1024, **options: Any
) -> tuple[list[Sample], list[Reject]]:
    size = Path(path).stat().st_size
    shard = Shard(url=str(path), size=size)
    samples: list[Sample] = []
    rejects: list[Reject] = []
    for unit in plan_shard(shard, max_rows, reading=Reading(**options).for_units()):
        found, lost = read_unit(unit)
        assert sorted(row for row, _ in (*found, *lost)) == list(range(unit.count))
        samples += [one for _, one in found]
        rejects += [one for _, one in lost]
    assert len({one.sample_id for one in samples}) == len(samples), "ids are unique"
    return samples, rejects


def facts(path: Path | str, max_rows: int, **options: Any) -> Any:
    """Everything about samples and rejects but the order among each other."""
    samples, rejects = read(path, max_rows, **options)
    return samples, [(one.sample_id, one.reason, one.reference) for one in rejects]


@pytest.mark.parametrize(("name", "options", "num_samples", "reasons"), TABLE)
def test_what_becomes_of_a_file(
    name: str, options: dict[str, Any], num_samples: int, reasons: dict[str, int]
) -> None:
    samples, rejects = read(CASES / name, **options)
    assert (len(samples), Counter(one.reason for one in rejects)) == (num_samples, reasons)
    for reject in rejects:
        assert "iVBOR" not in reject.detail
        assert "/9j/" not in reject.detail
    whole = facts(CASES / name, 1024, **options)
    assert all(facts(CASES / name, rows, **options) == whole for rows in (1, 2, 3))


# --- one record in many containers --------------------------------------------------------------


RECORDS = [
    {"id": "a", "image": "i.png", "caption": "one"},
    {"id": "b", "image": "none.png", "caption": "two"},
    {"id": "a", "image": "i.png", "caption": "three, with a comma"},
    {"id": "c", "image": "i.png", "caption": 'four "quoted"\nand of two lines'},
    {"id": "a", "image": "i.png", "caption": "five"},
]


def lines(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def table(records: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(records[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(records)
    return file.getvalue().encode()


def zstd(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)  # type: ignore[no-any-return]


def tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


CONTAINERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "s.jsonl": lines,
    "lines.json": lines,
    "s.json": lambda records: json.dumps(records, indent=1).encode(),
    "array.jsonl": lambda records: json.dumps(records).encode(),
    "object.json": lambda records: json.dumps({"version": 1, "data": records}).encode(),
    "s.csv": table,
    "s.tsv": lambda records: table(records, "\t"),
    "s.jsonl.gz": lambda records: gzip.compress(lines(records)),
    "s.jsonl.zst": lambda records: zstd(lines(records)),
    "s.json.gz": lambda records: gzip.compress(json.dumps(records).encode()),
    "s.csv.gz": lambda records: gzip.compress(table(records)),
    "s.jsonl.bz2": lambda records: bz2.compress(lines(records)),
    "s.jsonl.xz": lambda records: lzma.compress(lines(records)),
    "gzip.jsonl": lambda records: gzip.compress(lines(records)),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_the_container_makes_no_difference(tmp_path: Path, name: str) -> None:
    (tmp_path / "i.png").write_bytes(PNG)
    (tmp_path / name).write_bytes(CONTAINERS[name](RECORDS))
    for max_rows in (1, 2, 3, 1024):
        samples, rejects = read(tmp_path / name, max_rows)
        assert [one.sample_id for one in samples] == ["a", "a@2", "c", "a@4"]
        assert [one.caption for one in samples] == [RECORDS[k]["caption"] for k in (0, 2, 3, 4)]
        assert [(one.sample_id, one.reason) for one in rejects] == [("b", "image_missing")]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    records=st.lists(
        st.fixed_dictionaries(
            {
                "id": st.sampled_from(["a", "b", "c", "é", 7]),
                "caption": st.one_of(
                    st.text("ab,\"\n\té'", max_size=8),
                    st.lists(st.text("xyz", max_size=3), max_size=3),
                ),
                "image": st.sampled_from(["i.png", "none.png"]),
            }
        ),
        min_size=1,
        max_size=12,
    ),
    name=st.sampled_from(sorted(CONTAINERS)),
    captions=st.sampled_from([None, "each", "first", "random"]),
    max_rows=st.integers(1, 13),
)
def test_nothing_depends_on_how_units_are_cut(
    tmp_path: Path, records: list[dict[str, Any]], name: str, captions: Any, max_rows: int
) -> None:
    (tmp_path / "i.png").write_bytes(PNG)
    (tmp_path / name).write_bytes(CONTAINERS[name](records))
    whole = facts(tmp_path / name, 1024, captions=captions)
    assert facts(tmp_path / name, max_rows, captions=captions) == whole


# --- kinds of faults ----------------------------------------------------------------------------


def test_metadata_never_costs_a_sample(tmp_path: Path) -> None:
    text = (
        b'{"id": "a", "image": "i.png", "caption": "x", "s": NaN, "t": [{"u": -Infinity}, 1e999]}'
    )
    (tmp_path / "i.png").write_bytes(PNG)
    (tmp_path / "s.jsonl").write_bytes(text)
    (sample,), rejects = read(tmp_path / "s.jsonl")
    assert not rejects
    assert sample.meta == {"s": None, "t": [{"u": None}, None]}
    packed = tar({"a.png": PNG, "a.txt": b"x", "a.json": b'{"similarity": NaN, "w": 3}'})
    (tmp_path / "s.tar").write_bytes(packed)
    ((sample,), _) = read(tmp_path / "s.tar")
    assert sample.meta == {"similarity": None, "w": 3}


def test_a_file_that_was_cut_says_so_once(tmp_path: Path) -> None:
    (tmp_path / "i.png").write_bytes(PNG)
    data = json.dumps([RECORDS[0], RECORDS[3]]).encode()
    for cut in (len(data) - 1, len(data) - 20):
        (tmp_path / "s.json").write_bytes(data[:cut])
        for max_rows in (1, 1024):
            samples, rejects = read(tmp_path / "s.json", max_rows)
            assert [one.reason for one in rejects] == ["record_truncated"]
            assert len(samples) == (2 if cut == len(data) - 1 else 1)
    noise = lines([{**RECORDS[0], "id": f"{k}", "k": k * 2654435761 % 2**61} for k in range(2000)])
    (tmp_path / "s.jsonl.gz").write_bytes(gzip.compress(noise)[: len(gzip.compress(noise)) // 2])
    samples, rejects = read(tmp_path / "s.jsonl.gz")
    assert samples
    assert rejects[-1].reason == "record_truncated"
    assert "gzip file is damaged" in rejects[-1].detail


def test_no_name_that_was_written_decides_what_exists(tmp_path: Path) -> None:
    members = {}
    for key in ("v1.0", "v1.1", "v1.2"):
        members |= {f"{key}.png": PNG, f"{key}.json": b'{"caption": "x"}'}
    members |= {"x.left.png": PNG, "x.right.png": PNG, "x.txt": b"two", "Thumbs.db": b"junk"}
    (tmp_path / "s.tar").write_bytes(tar(members))
    for max_rows in (1, 2, 1024):
        samples, rejects = read(tmp_path / "s.tar", max_rows)
        assert [one.sample_id for one in samples] == ["v1.0", "v1.1", "v1.2"]
        assert [one.reason for one in rejects] == ["record_malformed"]
        assert "reading.columns" in rejects[0].detail
    samples, _ = read(tmp_path / "s.tar", columns={"image": ("right.png", "left.png")})
    assert [len(one.images) for one in samples if one.sample_id == "x"] == [2]


@pytest.mark.parametrize("max_rows", [1, 2, 1024])
def test_the_halves_of_a_sample_count_once(tmp_path: Path, max_rows: int) -> None:
    keys = [f"{number:04d}" for number in range(6)]
    pictures, texts = {f"{k}.jpg": PNG for k in keys}, {f"{k}.txt": b"x" for k in keys}
    good = {"z.jpg": PNG, "z.txt": b"x"}
    for members, reason in (
        (pictures | texts | good, "caption_missing"),
        (texts | good | pictures, "image_missing"),
    ):
        (tmp_path / "s.tar").write_bytes(tar(members))
        samples, rejects = read(tmp_path / "s.tar", max_rows)
        assert [one.sample_id for one in samples] == ["z"]
        assert [(one.sample_id, one.reason) for one in rejects] == [(k, reason) for k in keys]
        assert "--sort=name" in rejects[0].detail


@pytest.mark.parametrize(
    "image",
    [
        b64encode(PNG).decode(),
        "data:image/png;base64," + b64encode(PNG).decode(),
        {"bytes": b64encode(PNG).decode(), "path": None},
        [b64encode(PNG).decode()],
        {"url": "data:image/png;base64," + b64encode(PNG).decode()},
    ],
)
def test_pictures_in_base64(tmp_path: Path, image: Any) -> None:
    (tmp_path / "s.jsonl").write_bytes(lines([{"image": image, "caption": "x"}]))
    (sample,), rejects = read(tmp_path / "s.jsonl")
    assert not rejects
    assert sample.images[0].data == PNG


def test_messages_never_quote_a_picture(tmp_path: Path) -> None:
    broken = b64encode(PNG).decode()
    texts = [f"data:image/png,{broken}", f"data:image/png;base64,!{broken}", f"{broken[:-3]}.?"]
    records = [{"id": str(k), "image": text, "caption": "x"} for k, text in enumerate(texts)]
    (tmp_path / "s.jsonl").write_bytes(lines(records))
    _, rejects = read(tmp_path / "s.jsonl")
    assert [one.sample_id for one in rejects] == ["0", "1", "2"]
    assert all(broken[:40] not in one.detail for one in rejects), rejects


def test_a_table_of_questions_as_vlmevalkit_writes_it(tmp_path: Path) -> None:
    rows = [{"index": 1, "image": b64encode(PNG).decode(), "question": "What?", "answer": "A"}]
    (tmp_path / "bench.tsv").write_bytes(table(rows, "\t"))
    (sample,), _ = read(tmp_path / "bench.tsv")
    assert [turn.content for turn in sample.turns] == ["What?", "A"]
    assert sample.images[0].data == PNG


def test_a_table_that_is_not_understood_shows_a_mapping_to_try(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_bytes(b"photo_file,words,source\n1.png,a cat,web\n")
    with pytest.raises(DataError, match=r"photo_file, words, source.*image: photo_file"):
        read(tmp_path / "s.csv")
    with pytest.raises(DataError, match=r"names wrds; found the columns photo_file"):
        read(tmp_path / "s.csv", columns={"image": "photo_file", "caption": "wrds"})
    (tmp_path / "1.png").write_bytes(PNG)
    samples, _ = read(tmp_path / "s.csv", columns={"image": "photo_file", "caption": "words"})
    assert [one.caption for one in samples] == ["a cat"]


def test_quotes_that_are_never_closed_are_text(tmp_path: Path) -> None:
    (tmp_path / "i.png").write_bytes(PNG)
    text = 'image\tcaption\ni.png\tone\ni.png\t"two\ni.png\tthree\n'
    (tmp_path / "s.tsv").write_text(text)
    for max_rows in (1, 2, 1024):
        samples, _ = read(tmp_path / "s.tsv", max_rows)
        assert [one.caption for one in samples] == ["one", '"two', "three"]


def test_one_bad_line_of_a_table_costs_that_line(tmp_path: Path) -> None:
    (tmp_path / "i.png").write_bytes(PNG)
    text = b"id,image,caption\n1,i.png,one\n2,i.png,caf\xe9\n3,i.png\n4,i.png,four\n"
    (tmp_path / "s.csv").write_bytes(text)
    samples, rejects = read(tmp_path / "s.csv")
    assert [one.sample_id for one in samples] == ["1", "4"]
    assert [one.reason for one in rejects] == ["caption_not_utf8", "record_malformed"]


def test_coco_annotations_are_pictures_with_their_captions(tmp_path: Path) -> None:
    (tmp_path / "train2017").mkdir()
    (tmp_path / "annotations").mkdir()
    images = [{"id": k, "file_name": f"{k:012d}.png", "height": 4, "width": 6} for k in (7, 3, 9)]
    for image in images:
        (tmp_path / "train2017" / str(image["file_name"])).write_bytes(PNG)
    annotations = [
        {"id": 10 * k + n, "image_id": k, "caption": f"{k} {n}"} for n in range(3) for k in (3, 7)
    ]
    path = tmp_path / "annotations" / "captions_train2017.json"
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations}
    for indent in (None, 2):
        path.write_text(json.dumps(content, indent=indent))
        for max_rows in (1, 2, 1024):
            samples, rejects = read(
                path, max_rows, captions="each", image_root=str(tmp_path / "train2017")
            )
            assert [(one.sample_id, one.caption) for one in samples] == [
                *((f"7#{n}", f"7 {n}") for n in range(3)),
                *((f"3#{n}", f"3 {n}") for n in range(3)),
            ]
            assert [(one.sample_id, one.reason) for one in rejects] == [("9", "caption_missing")]
    assert samples[0].meta["height"] == 4


def test_a_first_line_that_is_long_is_a_line(tmp_path: Path) -> None:
    content = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}]
    content[0]["image_url"]["url"] += b64encode(PNG + bytes(200_000)).decode()  # type: ignore[index]
    record = {"messages": [{"role": "user", "content": content}]}
    record["messages"].append({"role": "assistant", "content": "x"})  # type: ignore[dict-item]
    for name in ("s.jsonl", "s.json"):
        (tmp_path / name).write_bytes(lines([record, record]))
        samples, rejects = read(tmp_path / name)
        assert (len(samples), len(rejects)) == (2, 0)


def test_compressed_shards_are_read_on_from_where_they_are(tmp_path: Path) -> None:
    members = {}
    for number in range(40):
        members |= {f"{number:03d}.png": PNG + bytes(40_000), f"{number:03d}.txt": b"x"}
    (tmp_path / "s.tar").write_bytes(tar(members))
    for name, pack in (("s.tar.gz", gzip.compress), ("s.tar.zst", zstd), ("t.tar", gzip.compress)):
        (tmp_path / name).write_bytes(pack((tmp_path / "s.tar").read_bytes()))
        plain = [replace_source(one) for one in read(tmp_path / "s.tar", 7)[0]]
        assert [replace_source(one) for one in read(tmp_path / name, 7)[0]] == plain


def replace_source(sample: Sample) -> tuple[Any, ...]:
    return sample.sample_id, sample.turns, sample.images


def test_a_folder_of_pictures_with_texts_is_one_shard(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    for name in ("a", "b", "cats/a"):
        (tmp_path / f"{name}.png").write_bytes(PNG)
        (tmp_path / f"{name}.txt").write_text(f"text of {name}")
    (tmp_path / "b.json").write_text('{"year": 2020}')
    (tmp_path / "c.png").write_bytes(PNG)
    (shard,) = find_shards([str(tmp_path)])
    assert find_shards([f"{tmp_path}/"]) == [shard]
    for max_rows in (1, 2, 1024):
        samples, rejects = [], []
        for unit in plan_shard(shard, max_rows):
            found, lost = read_unit(unit)
            samples += [one for _, one in found]
            rejects += [one for _, one in lost]
        assert [(one.sample_id, one.caption) for one in samples] == [
            ("a.png", "text of a"),
            ("b.png", "text of b"),
            ("cats/a.png", "text of cats/a"),
        ]
        assert samples[1].meta == {"year": 2020}
        assert [(one.sample_id, one.reason) for one in rejects] == [("c.png", "caption_missing")]
    (tmp_path / "a.txt").write_text("another")
    assert find_shards([str(tmp_path)])[0].version != shard.version


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_image_folders_of_hugging_face(tmp_path: Path, name: str) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "1.png").write_bytes(PNG)
    records = [{"file_name": "1.png", "text": "a cat"}]
    (tmp_path / "train" / name).write_bytes(
        lines(records) if name.endswith("l") else table(records)
    )
    (shard,) = find_shards([str(tmp_path)])
    (unit,) = plan_shard(shard)
    ((_, sample),) = read_unit(unit)[0]
    assert (sample.caption, sample.images[0].data) == ("a cat", PNG)
