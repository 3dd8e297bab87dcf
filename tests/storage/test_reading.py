"""What a recipe says about reading is followed, and travels with units; unset, nothing changes."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.support.zoo_images import good_image

from consomme.base.errors import DataError, RecipeError
from consomme.base.recipe import fingerprint
from consomme.base.sample import Reject, Sample
from consomme.execution.rejects import check_rejects
from consomme.pipelines.score.recipe import ScoreRecipe
from consomme.storage.reading import Reading
from consomme.storage.shards import find_shards
from consomme.storage.unit import Unit
from consomme.storage.units import plan_units, read_unit

PNG = good_image("a")


def write(folder: Path, *records: Any, name: str = "s.jsonl") -> str:
    (folder / "i.png").write_bytes(PNG)
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(folder / name)


def read(url: str, max_rows: int = 1024, **options: Any) -> tuple[list[Sample], list[Reject]]:
    reading = Reading(**options).for_units()
    samples, rejects = [], []
    for unit in plan_units([url], "web", max_rows, reading=reading):
        assert Unit.from_dict(json.loads(json.dumps(unit.to_dict()))) == unit
        found, lost = read_unit(unit)
        assert sorted(row for row, _ in (*found, *lost)) == list(range(unit.count))
        assert unit.count <= max(max_rows, 5)
        samples += [one for _, one in found]
        rejects += [one for _, one in lost]
    return samples, rejects


def test_columns_say_what_is_what(tmp_path: Path) -> None:
    record = {"pic": "i.png", "caption": "web text", "info": {"en": "a cat"}, "name": 7, "id": "x"}
    url = write(tmp_path, record)
    (sample,), _ = read(url, columns={"image": "pic", "caption": "info.en", "id": "name"})
    assert (sample.sample_id, sample.caption) == ("7", "a cat")
    assert sample.meta == {"caption": "web text", "id": "x", "info": {"en": "a cat"}}
    assert sample.images[0].data == PNG


def test_several_columns_are_several_images(tmp_path: Path) -> None:
    url = write(tmp_path, {"before": "i.png", "after": "i.png", "q": "changed?", "a": "no"})
    columns = {"image": ("before", "after"), "question": "q", "answer": "a"}
    (sample,), _ = read(url, columns=columns)
    assert [turn.content for turn in sample.turns] == ["changed?", "no"]
    assert len(sample.images) == 2


def test_images_lie_below_the_root_and_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "list").mkdir()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(PNG)
    root = str(tmp_path / "pictures")
    paths = ["a.png", f"{root}/a.png", f"file://{root}/a.png", "../list/s.jsonl", "/etc/hosts"]
    records = [{"id": str(k), "image": path, "text": "x"} for k, path in enumerate(paths)]
    url = write(tmp_path / "list", *records)
    samples, rejects = read(url, image_root=root)
    assert [one.sample_id for one in samples] == ["0", "1", "2"]
    assert [(one.sample_id, one.reason) for one in rejects] == [
        ("3", "unsafe_path"),
        ("4", "unsafe_path"),
    ]
    assert "reading.image_root" in read(url)[1][1].detail, "what to do stands in the message"


@pytest.mark.parametrize("max_rows", [1, 2, 3, 1024])
def test_each_caption_is_a_sample_of_the_same_picture(tmp_path: Path, max_rows: int) -> None:
    url = write(
        tmp_path,
        {"id": "a", "image": "i.png", "caption": ["one", "two", ""]},
        {"id": "b", "image": "none.png", "caption": ["three", "four"]},
        {"id": "c", "image": "i.png", "caption": "five"},
        {"id": "d", "image": "i.png", "sentences": [{"raw": "six"}, {"raw": "seven"}]},
    )
    samples, rejects = read(url, max_rows, captions="each")
    assert [(one.sample_id, one.caption) for one in samples] == [
        ("a#0", "one"),
        ("a#1", "two"),
        ("c", "five"),
        ("d#0", "six"),
        ("d#1", "seven"),
    ]
    assert [one.reason for one in rejects] == ["caption_empty", "image_missing", "image_missing"]
    assert [one.caption for one in read(url, max_rows, captions="first")[0]] == [
        "one",
        "five",
        "six",
    ]
    assert {one.caption for one in read(url, max_rows, captions="random")[0]} <= {
        *("one", "two", "five", "six", "seven")
    }
    assert "reading.captions" in read(url, max_rows)[1][0].detail


def test_shapes_are_checked_by_the_header(tmp_path: Path) -> None:
    for name, size in (("small", (9, 50)), ("long", (400, 20)), ("good", (40, 30))):
        file = io.BytesIO()
        Image.new("RGB", size).save(file, "PNG")
        # The pixels are missing: only the header is read.
        (tmp_path / f"{name}.png").write_bytes(file.getvalue()[:60])
    names = ("small", "long", "good")
    url = write(tmp_path, *({"id": n, "image": f"{n}.png", "text": "x"} for n in names))
    samples, rejects = read(url, min_side_px=10, max_aspect=4.0)
    assert [one.sample_id for one in samples] == ["good"]
    reasons = [(one.sample_id, one.reason) for one in rejects]
    assert reasons == [("small", "image_too_small"), ("long", "image_too_elongated")]
    assert "9 × 50" in rejects[0].detail


def test_units_without_options_are_those_of_before(tmp_path: Path) -> None:
    url = write(tmp_path, {"image": "i.png", "text": "x"})
    (before,) = plan_units([url], "web")
    assert set(before.to_dict()) == {
        *("unit_id", "source", "shard", "start", "count", "num_bytes", "offset")
    }
    (other,) = plan_units([url], "web", reading=Reading(captions="first").for_units())
    assert other.unit_id != before.unit_id, "its rows may be others"
    root = Reading(image_root=str(tmp_path)).for_units()
    assert plan_units([url], "web", reading=root)[0].unit_id == before.unit_id
    assert find_shards([url])


def test_only_what_changes_samples_is_part_of_a_fingerprint() -> None:
    def recipe(**options: Any) -> ScoreRecipe:
        return ScoreRecipe(name="x", model="m", inputs=("a",), reading=Reading(**options))

    before = fingerprint(recipe(), {})
    assert fingerprint(recipe(allow=("image_missing",), image_root="/data"), {}) == before
    assert fingerprint(recipe(captions="each"), {}) != before
    assert fingerprint(recipe(columns={"image": "jpg"}), {}) != before


def test_all_that_is_wrong_is_said_with_what_was_meant() -> None:
    with pytest.raises(RecipeError, match=r"did you mean 'image_missing'"):
        Reading(allow=("image_mising",))
    with pytest.raises(RecipeError, match=r"columns\.captions: unknown.*did you mean 'caption'"):
        Reading(columns={"captions": "x"})
    with pytest.raises(RecipeError, match="caption and conversation"):
        Reading(columns={"caption": "x", "conversation": "y"})
    with pytest.raises(RecipeError, match="max_aspect"):
        Reading(max_aspect=0.5)


def test_what_is_allowed_does_not_count() -> None:
    counts = {"samples": 6, "rejected": 4, "rejected/image_missing": 3, "rejected/image_empty": 1}
    with pytest.raises(DataError, match="4 of 10"):
        check_rejects(counts, 0.2, "runs/x")
    check_rejects(counts, 0.2, "runs/x", Reading(allow=("image_missing",)))
    with pytest.raises(DataError, match="1 of 7"):
        check_rejects(counts, 0.1, "runs/x", Reading(allow=("image_missing",)))
    with pytest.raises(DataError, match="all 3 were rejected"):
        check_rejects(
            {"rejected": 3, "rejected/image_missing": 3}, 1, "x", Reading(allow=("image_missing",))
        )


def test_shards_that_cannot_be_opened_count_by_their_share() -> None:
    counts = {"samples": 9_999, "rejected": 1, "rejected/shard_unreadable": 1}
    check_rejects(counts, 0.01, "runs/x", num_shards=100)
    with pytest.raises(DataError, match="1 of 10 shards cannot be opened"):
        check_rejects(counts, 0.01, "runs/x", num_shards=10)
    allowed = Reading(allow=("shard_unreadable",))
    check_rejects(counts, 0.01, "runs/x", allowed, num_shards=10)
