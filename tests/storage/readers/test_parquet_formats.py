"""Parquet as people write it: every shape is read, and what cannot be a sample says why."""

import datetime
import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.support.zoo_images import good_image

from consomme.base.errors import DataError
from consomme.base.sample import ImageRef, Reject, Sample
from consomme.storage.readers import arrow_columns
from consomme.storage.readers.parquet import refers_to_files
from consomme.storage.reading import Reading
from consomme.storage.units import plan_units, read_unit

CASES = Path(__file__).parents[2] / "cases"
PICTURES = [good_image(f"{number}") for number in range(6)]


def read(path: Path | str, max_rows: int = 1024, **reading: Any) -> Any:
    samples: list[Sample] = []
    rejects: list[Reject] = []
    for unit in plan_units(
        [str(path)], "web", max_rows=max_rows, reading=Reading(**reading).for_units()
    ):
        good, bad = read_unit(unit)
        samples += [sample for _, sample in good]
        rejects += [reject for _, reject in bad]
    return samples, rejects


def table(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    path = path / "s.parquet"
    pq.write_table(pa.table(columns), path, **options)
    return path


def embedded(numbers: Sequence[int]) -> list[dict[str, Any]]:
    return [{"bytes": PICTURES[number], "path": f"{number}.png"} for number in numbers]


def texts_of(sample: Sample) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in sample.turns]


# --- img2dataset ------------------------------------------------------------------------------

IMG2DATASET = {
    "url": ["http://a/0.jpg", "http://a/1.jpg", "http://a/2.jpg", "http://a/3.jpg"],
    "caption": ["zero", "one", None, "three"],
    "key": ["000000000", "000000001", "000000002", "000000003"],
    "status": ["success", "failed_to_download", "success", "failed_to_resize"],
    "error_message": [None, "HTTP Error 404: Not Found", None, "Image decoding error"],
    "width": [12, None, 12, None],
    "exif": ["{}", None, "{}", None],
    "sha256": ["a" * 64, None, "b" * 64, None],
    "similarity": [float("nan"), 0.1, float("inf"), None],
    "jpg": [PICTURES[0], None, PICTURES[2], None],
}


def test_img2dataset(tmp_path: Path) -> None:
    samples, rejects = read(table(tmp_path, IMG2DATASET))
    (sample,) = samples
    assert (sample.sample_id, sample.images[0].data, sample.caption) == (
        "000000000",
        PICTURES[0],
        "zero",
    )
    assert sample.meta["url"] == "http://a/0.jpg"
    assert sample.meta["width"] == 12
    assert sample.meta["similarity"] is None
    assert [(r.sample_id, r.reason) for r in rejects] == [
        ("000000001", "image_missing"),
        ("000000002", "caption_missing"),
        ("000000003", "image_missing"),
    ]
    assert rejects[0].detail == "img2dataset: failed_to_download: HTTP Error 404: Not Found"
    assert "failed_to_resize: Image decoding error" in rejects[2].detail


def test_a_status_of_others_is_metadata(tmp_path: Path) -> None:
    columns = {"image": PICTURES[:2], "caption": ["a", "b"], "status": ["draft", "success"]}
    samples, rejects = read(table(tmp_path, columns))
    assert [sample.meta["status"] for sample in samples] == ["draft", "success"]
    assert not rejects


# --- The Cauldron, FineVision, Docmatix --------------------------------------------------------


def test_questions_with_answers_are_turns_of_one_sample(tmp_path: Path) -> None:
    columns = {
        "images": [embedded([0]), embedded([1, 2]), []],
        "texts": [
            [
                {"user": "What?", "assistant": "A dog.", "source": "vqa"},
                {"user": "Where?", "assistant": "In a park.", "source": "vqa"},
            ],
            [{"user": "<image> and <image>?", "assistant": "Two.", "source": "x"}],
            [{"user": "Hi", "assistant": "Hello.", "source": "text"}],
        ],
        "relevance_ratings": [[4, 5], [3], [1]],
        "formatting_min": [4, 3, 1],
    }
    samples, rejects = read(table(tmp_path, columns))
    assert not rejects
    assert texts_of(samples[0]) == [
        ("user", "What?"),
        ("assistant", "A dog."),
        ("user", "Where?"),
        ("assistant", "In a park."),
    ]
    assert [len(sample.images) for sample in samples] == [1, 2, 0]
    assert samples[1].turns[0].image_indices in ((), (0, 1))
    assert samples[0].meta["relevance_ratings"] == [4, 5]
    assert samples[1].meta["formatting_min"] == 3


def test_the_cauldron() -> None:
    samples, rejects = read(CASES / "10-cauldron/train-00000-of-00001.parquet")
    assert len(samples) == 4
    assert not rejects
    assert texts_of(samples[0])[2:] == [("user", "Why?"), ("assistant", "Because.")]
    assert len(read(CASES / "10-cauldron/one-image-list.parquet")[0]) == 4


# --- documents --------------------------------------------------------------------------------


def test_documents_with_embedded_images(tmp_path: Path) -> None:
    columns = {
        "images": [[PICTURES[0], None, PICTURES[1], None], [None, PICTURES[2]], [None]],
        "texts": [[None, "Between.", None, "After."], ["Before.", None], ["No picture."]],
        "general_metadata": ['{"url": "x"}', None, None],
    }
    samples, rejects = read(table(tmp_path, columns))
    assert [sample.turns[0].content for sample in samples] == [
        (ImageRef(0), "Between.", ImageRef(1), "After."),
        ("Before.", ImageRef(0)),
    ]
    assert all(sample.is_document for sample in samples)
    assert [image.data for image in samples[0].images] == PICTURES[:2]
    assert samples[0].meta == {"general_metadata": '{"url": "x"}'}
    assert [reject.reason for reject in rejects] == ["image_missing"]


def test_documents_with_urls_say_how_to_get_the_images(tmp_path: Path) -> None:
    columns = {
        "images": [["https://a/0.jpg", None], ["https://a/1.jpg"], [None, None]],
        "texts": [[None, "Text."], [None, "More."], ["A", "B"]],
    }
    samples, rejects = read(table(tmp_path, columns))
    assert not samples
    assert [r.reason for r in rejects] == [
        "image_missing",
        "conversation_malformed",
        "image_missing",
    ]
    assert "consomme download" in rejects[0].detail
    assert "https" not in rejects[0].detail
    assert "2 texts and 1 images" in rejects[1].detail


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_mmc4(tmp_path: Path, suffix: str) -> None:
    records = [
        {
            "text_list": ["First.", "Second.", "Third."],
            "image_info": [
                {"image_name": "1.png", "raw_url": "http://x", "matched_text_index": 2},
                {"image_name": "0.png", "raw_url": "http://x", "matched_text_index": 0},
            ],
            "url": "http://page",
        },
        {"text_list": ["A"], "image_info": [{"image_name": "0.png", "matched_text_index": 7}]},
        {"text_list": ["A"], "image_info": [{"raw_url": "http://x", "matched_text_index": 0}]},
    ]
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(PICTURES[number])
    path = tmp_path / f"s.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    samples, rejects = read(path)
    (sample,) = samples
    assert sample.turns[0].content == (
        ImageRef(0),
        "First.\n\nSecond.",
        ImageRef(1),
        "Third.",
    )
    assert [image.data for image in sample.images] == PICTURES[:2]
    assert [reject.reason for reject in rejects] == ["conversation_malformed", "image_missing"]


# --- images by path ---------------------------------------------------------------------------


def test_images_that_are_not_embedded(tmp_path: Path) -> None:
    samples, rejects = read(CASES / "11-hf-paths-only/train.parquet")
    assert [sample.images[0].name for sample in samples] == ["images/2.png", "images/3.png"]
    assert [reject.reason for reject in rejects] == ["unsafe_path"] * 2
    assert "not embedded" in rejects[0].detail
    assert "reading.image_root: /data/pictures" in rejects[0].detail
    columns = {"image": [{"bytes": None, "path": str(tmp_path / "deep/a.png")}], "text": ["a"]}
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/a.png").write_bytes(PICTURES[0])
    (tmp_path / "data").mkdir()
    path = table(tmp_path / "data", columns)
    assert read(path)[1][0].reason == "unsafe_path"
    (sample,), _ = read(path, image_root=str(tmp_path / "deep"))
    assert sample.images[0].data == PICTURES[0]
    assert read(path, image_root=str(tmp_path / "data"))[1][0].reason == "unsafe_path"


# --- lists of captions ------------------------------------------------------------------------


@pytest.mark.parametrize("max_rows", [1, 3, 1024])
def test_five_captions(max_rows: int) -> None:
    path = CASES / "12-five-captions/flickr.parquet"
    samples, rejects = read(path, max_rows)
    assert not samples
    assert all("each, first or random" in reject.detail for reject in rejects)
    each, _ = read(path, max_rows, captions="each")
    assert len(each) == 20
    assert len({sample.sample_id for sample in each}) == 20
    assert len({sample.images[0].data for sample in each}) == 4
    first, _ = read(path, max_rows, captions="first")
    assert [sample.caption for sample in first] == [sample.caption for sample in each[::5]]
    chosen, _ = read(path, max_rows, captions="random")
    assert {sample.caption for sample in chosen} <= {sample.caption for sample in each}


# --- names of columns -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["blip-captions", "capitals", "vqa", "wds-as-parquet"])
def test_common_names(name: str) -> None:
    samples, rejects = read(CASES / f"14-column-names/{name}.parquet")
    assert len(samples) == 3
    assert not rejects
    assert all(sample.images for sample in samples)


def test_any_names_by_a_mapping(tmp_path: Path) -> None:
    columns = {
        "pic": embedded([0, 1]),
        "what": ["a cat", "a dog"],
        "caption": ["x", "y"],
        "info": [{"no": "a"}, {"no": "b"}],
    }
    path = table(tmp_path, columns)
    named = {"image": "pic", "caption": "what", "id": "info.no"}
    samples, rejects = read(path, columns=named)
    assert not rejects
    assert [(sample.sample_id, sample.caption) for sample in samples] == [
        ("a", "a cat"),
        ("b", "a dog"),
    ]
    assert [sample.meta["caption"] for sample in samples] == ["x", "y"]


def test_what_is_not_understood_is_answered_with_a_mapping(tmp_path: Path) -> None:
    path = table(tmp_path, {"photo": PICTURES[:1], "title_de": ["a"]})
    with pytest.raises(DataError, match=r"photo, title_de; .*\{image: photo, caption: title_de\}"):
        read(path)
    samples, _ = read(path, columns={"image": "photo", "caption": "title_de"})
    assert [sample.caption for sample in samples] == ["a"]
    with pytest.raises(DataError, match=r"names titel; found the columns photo, title_de"):
        read(path, columns={"image": "photo", "caption": "titel"})
    with pytest.raises(DataError, match="photo is int64, expected binary, string or a struct"):
        read(
            table(tmp_path, {"photo": [1], "title": ["a"]}),
            columns={"image": "photo", "caption": "title"},
        )


# --- columns that cannot be read --------------------------------------------------------------


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Any:
    arrow_columns.tell_left_out.cache_clear()
    arrow_columns._tell_null.cache_clear()
    caplog.set_level(logging.WARNING, "consomme")
    return lambda: [record.getMessage() for record in caplog.records]


def tagged(path: Path, kind: str) -> Path:
    """A column of an extension type that nobody here knows, as `datasets` and Ray write them."""
    mark = {b"ARROW:extension:name": kind.encode(), b"ARROW:extension:metadata": b"[2]"}
    schema = pa.schema(
        [
            pa.field("image", pa.binary()),
            pa.field("embedding", pa.list_(pa.float32()), metadata=mark),
            pa.field("caption", pa.string()),
            pa.field("embedding.x", pa.int64()),
        ]
    )
    rows = [[PICTURES[0], PICTURES[1]], [[1.0], [2.0]], ["a", "b"], [1, 2]]
    arrays = [pa.array(one, kind) for one, kind in zip(rows, schema.types, strict=True)]
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), path / "s.parquet")
    return path / "s.parquet"


@pytest.mark.parametrize(
    "kind", ["datasets.features.features.Array9DExtensionType", "ray.data.arrow_tensor"]
)
def test_a_column_of_an_extension_type_is_left_out(
    tmp_path: Path, kind: str, warnings: Any
) -> None:
    path = tagged(tmp_path, kind)
    for _ in range(2):
        samples, rejects = read(path, 1)
        assert [(sample.caption, dict(sample.meta)) for sample in samples] == [
            ("a", {"embedding.x": 1}),
            ("b", {"embedding.x": 2}),
        ]
        assert not rejects
    (said,) = warnings()
    assert f"the column embedding is left out: it is of the extension type {kind}" in said
    assert "said once" in said


def test_columns_of_the_same_name_are_left_out(tmp_path: Path, warnings: Any) -> None:
    arrays = [pa.array(PICTURES[:1]), pa.array(["a"]), pa.array([1]), pa.array([2])]
    names = ["image", "caption", "n", "n"]
    pq.write_table(pa.Table.from_arrays(arrays, names), tmp_path / "s.parquet")
    (sample,), _ = read(tmp_path / "s.parquet")
    assert sample.meta == {}
    assert "one of 2 of the same name" in warnings()[0]
    pq.write_table(
        pa.Table.from_arrays([*arrays[:2], pa.array(["b"])], ["image", "caption", "caption"]),
        tmp_path / "s.parquet",
    )
    with pytest.raises(
        DataError, match=r"found the columns image; expected.*caption is one of 2 of the same name"
    ):
        read(tmp_path / "s.parquet")


def test_values_beside_the_picture_cost_no_sample(tmp_path: Path, warnings: Any) -> None:
    far = pa.array([0, 2**62, 0], pa.int64()).cast(pa.timestamp("us"))
    latin = pa.array([b"a", b"\xe4", b"c"]).cast(pa.binary()).view(pa.string())
    columns = {
        "image": PICTURES[:3],
        "caption": ["a", "b", "c"],
        "when": far,
        "note": latin,
        "score": [float("nan"), float("-inf"), 0.5],
        "deep": [[{"v": float("nan")}], None, []],
        "raw": [b"\0", b"\1", None],
        "day": [datetime.date(2020, 1, 2)] * 3,
    }
    samples, rejects = read(table(tmp_path, columns))
    assert not rejects
    assert [sample.caption for sample in samples] == ["a", "b", "c"]
    assert samples[0].meta["note"] == "a"
    assert "note" not in samples[1].meta
    assert "when" not in samples[1].meta
    assert [sample.meta["score"] for sample in samples] == [None, None, 0.5]
    assert samples[0].meta["deep"] == [{"v": None}]
    assert samples[0].meta["day"] == "2020-01-02"
    said = warnings()
    assert sum("values of the column" in one for one in said) == 2


def test_a_text_that_is_not_utf8_costs_its_row(tmp_path: Path) -> None:
    latin = pa.array([b"a", b"\xe4", b"c"]).cast(pa.binary()).view(pa.string())
    samples, rejects = read(table(tmp_path, {"image": PICTURES[:3], "en_text": latin}))
    assert [sample.caption for sample in samples] == ["a", "c"]
    assert [reject.reason for reject in rejects] == ["caption_not_utf8"]


@pytest.mark.parametrize(
    ("name", "num_samples", "reasons"),
    [
        ("arrowuuid", 3, []),
        ("captionbytes", 3, []),
        ("convstring", 3, []),
        ("dict", 3, []),
        ("emptyconv", 3, []),
        ("floatids", 3, []),
        ("ids", 3, []),
        ("large", 3, []),
        ("lastuser", 0, ["conversation_malformed"] * 3),
        ("map", 3, []),
        ("nanlist", 3, []),
        ("nanscore", 3, []),
        ("nullimage", 3, []),
        ("paths", 0, ["image_missing"] * 3),
        ("rg1", 3, []),
        ("time_ns", 3, []),
        ("twotexts", 2, ["caption_missing"]),
        ("tz", 3, []),
    ],
)
def test_types(name: str, num_samples: int, reasons: list[str]) -> None:
    samples, rejects = read(CASES / f"22-parquet-types/{name}.parquet", 2)
    assert len(samples) == num_samples
    assert [reject.reason for reject in rejects] == reasons


# --- which files may lie beside a shard -------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"image": PICTURES[:1], "caption": ["a"]}, False),
        ({"image": embedded([0]), "caption": ["a"]}, False),
        ({"Image": PICTURES[:1], "Text": ["a"]}, False),
        ({"image": [{"bytes": None, "path": "a.png"}], "caption": ["a"]}, True),
        ({"image_path": ["a.png"], "caption": ["a"]}, True),
        ({"img": ["a.png"], "caption": ["a"]}, True),
        ({"url": ["http://a"], "caption": ["a"]}, False),
        ({"images": [["a.png"]], "texts": [[None, "a"]]}, True),
    ],
)
def test_shards_that_may_name_files(columns: dict[str, Any], expected: bool) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    assert refers_to_files(sink) is expected


# --- ids that come again ----------------------------------------------------------------------


@pytest.mark.parametrize("row_group_rows", [2, 100])
@pytest.mark.parametrize("column", ["id", "key", "number"])
def test_repeated_ids_are_kept_whole(tmp_path: Path, column: str, row_group_rows: int) -> None:
    ids = [7, 7, 8, 9, 7, 8, 10, None]
    columns = {"image": PICTURES[:1] * 8, "caption": [f"c{n}" for n in range(8)], column: ids}
    path = table(tmp_path, columns, row_group_size=row_group_rows)
    mapping = {"columns": {"id": "number"}} if column == "number" else {}
    found = []
    for max_rows in (1, 3, 8):
        samples, rejects = read(path, max_rows, **mapping)
        assert not rejects
        assert [sample.caption for sample in samples] == columns["caption"]
        found.append([sample.sample_id for sample in samples])
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) == 8
    assert [found[0][k] for k in (0, 2, 3, 6)] == ["7", "8", "9", "10"]
