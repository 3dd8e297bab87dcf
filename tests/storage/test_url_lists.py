"""URL lists in the shapes that people have: every record is a sample or one reject."""

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from consomme.base.errors import DataError, RecipeError
from consomme.base.sample import Reject, Sample
from consomme.storage import url_lists
from consomme.storage.patterns import LIST_SUFFIXES
from consomme.storage.reading import Reading
from consomme.storage.shards import find_shards
from consomme.storage.url_lists import plan_urls, read_urls

CASES = Path(__file__).parents[1] / "cases/21-url-lists"
RECORDS = [{"url": f"http://a/{k}.jpg", "caption": f"caption {k}", "w": k} for k in range(5)]


def read(path: Path, max_rows: int = 2, **reading: Any) -> tuple[list[Sample], list[Reject]]:
    options = Reading(**reading).for_units()
    samples: list[Sample] = []
    rejects: list[Reject] = []
    for shard in find_shards([str(path)], suffixes=LIST_SUFFIXES):
        for unit in plan_urls(shard, max_rows, options):
            assert unit.count <= max_rows
            good, bad = read_urls(unit)
            rows = sorted([row for row, _ in good] + [row for row, _ in bad])
            assert rows == list(range(unit.count))
            samples += [sample for _, sample in good]
            rejects += [reject for _, reject in bad]
    return samples, rejects


def said(samples: list[Sample]) -> list[tuple[str, str]]:
    return [(sample.images[0].name, sample.caption) for sample in samples]


def csv_of(records: list[dict[str, Any]], by: str = ",") -> bytes:
    lines = [by.join(records[0]), *(by.join(map(str, one.values())) for one in records)]
    return "\n".join(lines).encode() + b"\n"


def lines_of(records: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in records)


FORMS = {
    "s.csv": csv_of(RECORDS),
    "s.tsv": csv_of(RECORDS, "\t"),
    "s.jsonl": lines_of(RECORDS),
    "s.json": json.dumps(RECORDS).encode(),
    "s.csv.gz": gzip.compress(csv_of(RECORDS)),
    "s.jsonl.gz": gzip.compress(lines_of(RECORDS)),
}


@pytest.mark.parametrize("name", [*FORMS, "s.parquet"])
def test_forms(tmp_path: Path, name: str) -> None:
    if name == "s.parquet":
        pq.write_table(pa.Table.from_pylist(RECORDS), tmp_path / name, row_group_size=3)
    else:
        (tmp_path / name).write_bytes(FORMS[name])
    samples, rejects = read(tmp_path / name)
    assert not rejects
    assert said(samples) == [(one["url"], one["caption"]) for one in RECORDS]
    assert [str(sample.meta["w"]) for sample in samples] == ["0", "1", "2", "3", "4"]
    assert len({sample.sample_id for sample in samples}) == 5


@pytest.mark.parametrize(
    ("name", "num_samples"),
    [
        ("cc3m.tsv", 3),
        ("urls.csv", 3),
        ("urls.jsonl", 3),
        ("urls.txt", 3),
        ("wit.parquet", 1),
        ("convcol.parquet", 4),
        ("turnscol.parquet", 4),
        ("empty.parquet", 0),
    ],
)
def test_published_lists(name: str, num_samples: int) -> None:
    samples, rejects = read(CASES / name)
    assert len(samples) == num_samples
    assert not rejects
    assert all(name.startswith("http://") for name, _ in said(samples))


def test_a_list_of_urls_alone(caplog: pytest.LogCaptureFixture) -> None:
    url_lists._tell_without_captions.cache_clear()
    with caplog.at_level(logging.WARNING):
        samples, _ = read(CASES / "urls.txt")
    assert all(sample.meta["caption_from"] == "url" for sample in samples)
    assert "the URL stands in their place" in caplog.text


def test_wit_takes_the_first_description_that_there_is(tmp_path: Path) -> None:
    names = ("reference", "attribution", "alt_text")
    columns = {
        "image_url": ["http://a/0", "http://a/1", "http://a/2"],
        **{
            f"caption_{name}_description": [text if k == n else None for k in range(3)]
            for n, (name, text) in enumerate(zip(names, "abc", strict=True))
        },
        "page_title": ["t"] * 3,
        "language": ["en"] * 3,
    }
    pq.write_table(pa.table(columns), tmp_path / "s.parquet")
    samples, rejects = read(tmp_path / "s.parquet")
    assert [sample.caption for sample in samples] == ["a", "b", "c"]
    assert not rejects
    assert samples[0].meta["page_title"] == "t"


@pytest.mark.parametrize("captions", ["each", "first"])
def test_coco_annotations(tmp_path: Path, captions: str) -> None:
    images = [{"id": k, "coco_url": f"http://a/{k}.jpg", "width": 3} for k in range(2)]
    annotations = [{"image_id": k, "caption": f"{k} {n}"} for k in range(2) for n in range(3)]
    content = {"images": images, "annotations": annotations}
    (tmp_path / "s.json").write_text(json.dumps(content))
    samples, rejects = read(tmp_path / "s.json", 10, captions=captions)
    assert not rejects
    expected = [(f"http://a/{k}.jpg", f"{k} {n}") for k in range(2) for n in range(3)]
    assert said(samples) == (expected if captions == "each" else expected[::3])
    assert samples[0].meta["width"] == 3


def test_any_names_by_a_mapping(tmp_path: Path) -> None:
    (tmp_path / "s.tsv").write_bytes(
        b"http://a/0.jpg\t7\tein Hund\nhttp://a/1.jpg\t8\teine Katze\n"
    )
    with pytest.raises(
        DataError, match="found the columns column1, column2, column3; expected one"
    ):
        read(tmp_path / "s.tsv")
    samples, _ = read(tmp_path / "s.tsv", columns={"url": "column1", "caption": "column3"})
    assert said(samples) == [("http://a/0.jpg", "ein Hund"), ("http://a/1.jpg", "eine Katze")]
    assert [sample.meta["column2"] for sample in samples] == ["7", "8"]


def test_what_is_bad_costs_one_record(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_bytes(
        b"url,caption\nhttp://a/0,a\nhttp://a/1,caf\xe9\nhttp://a/2,\n,c\nhttp://a/4,d,e\nhttp://a/5,f\n"
    )
    samples, rejects = read(tmp_path / "s.csv")
    assert [caption for _, caption in said(samples)] == ["a", "f"]
    assert [reject.reason for reject in rejects] == [
        "caption_not_utf8",
        "caption_missing",
        "image_missing",
        "record_malformed",
    ]
    (tmp_path / "s.jsonl").write_bytes(
        b'{"url":"http://a/0","text":"caf\xe9"}\n' + lines_of(RECORDS)
    )
    samples, rejects = read(tmp_path / "s.jsonl")
    assert (len(samples), len(rejects)) == (5, 1)
    latin = pa.array([b"a", b"caf\xe9"]).cast(pa.binary()).view(pa.string())
    table = pa.table(
        {"url": ["http://a/0", "http://a/1"], "TEXT": latin, "similarity": [0.5, float("nan")]}
    )
    pq.write_table(table, tmp_path / "s.parquet")
    samples, rejects = read(tmp_path / "s.parquet", 10)
    assert [reject.reason for reject in rejects] == ["caption_not_utf8"]
    assert said(samples) == [("http://a/0", "a")]


def test_what_is_not_taken_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found the columns url, width; .* for captions.*download"):
        read(CASES / "nocaption.parquet")
    (tmp_path / "s.tar").write_bytes(b"x")
    with pytest.raises(RecipeError, match=r"\.csv, .*download takes lists of URLs"):
        read(tmp_path / "s.tar")
    (tmp_path / "s.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    _, (reject,) = read(tmp_path / "s.parquet")
    assert reject.reason == "shard_unreadable"
    assert "Git LFS" in reject.detail
