"""Dedup as a user meets it: planted copies go, the best of each stays, and others can read on."""

import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from tests.support.dedup_runs import deduped, groups, hashed, kept, scored, written
from tests.support.samples import with_image

from consomme.base.errors import ClusterError, DataError, RecipeError
from consomme.base.sample import ImageFile, Sample, caption_turns
from consomme.cli import run_command
from consomme.datasets import scenes
from consomme.ops.verify import verify
from consomme.pipelines.dedup import preview as preview_module
from consomme.pipelines.dedup import report as report_dedup
from consomme.pipelines.dedup import run as dedup
from consomme.pipelines.dedup.preview import preview
from consomme.pipelines.dedup.recipe import DedupRecipe
from consomme.pipelines.dedup.stage import THUMBNAIL

NUM = 30


def encoded(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def planted() -> list[Sample]:
    """Thirty scenes, and copies of some, scattered among them."""

    def sample(name: str, image: bytes) -> Sample:
        return Sample(
            sample_id=name,
            images=(ImageFile(data=image, name=f"{name}.png"),),
            turns=caption_turns(f"caption of {name}"),
            source="planted",
        )

    pictures = [scenes.render(scenes.make_scene(seed)).convert("RGB") for seed in range(NUM)]
    samples = [sample(f"scene-{k:02d}", encoded(p)) for k, p in enumerate(pictures)]
    for k in (0, 1, 2):
        samples.append(sample(f"same-{k:02d}", encoded(pictures[k])))
    for k in (3, 4, 5):
        large = pictures[k].resize((120, 120), Image.Resampling.BICUBIC)
        samples.append(sample(f"large-{k:02d}", encoded(large, "WEBP", quality=90)))
    for k in (6, 7):
        small = pictures[k].resize((48, 48), Image.Resampling.BICUBIC)
        samples.append(sample(f"small-{k:02d}", encoded(small)))
    for k in (8, 9):
        samples.append(sample(f"mirror-{k:02d}", encoded(ImageOps.mirror(pictures[k]))))
    for k in (0, 1):
        white = Image.new("RGB", (40 + k, 40), "white")
        samples.append(sample(f"white-{k:02d}", encoded(white)))
    order = np.random.default_rng(0).permutation(len(samples))
    return [samples[k] for k in order]


EXPECTED_DROPPED = {"scene-03", "scene-04", "scene-05", "small-06", "small-07"}
"""Beside one of each pair with the same bytes: whatever is smaller."""


def test_planted_copies_go_and_the_largest_of_each_stays(tmp_path: Path) -> None:
    samples = planted()
    manifest = deduped(tmp_path, hashed(tmp_path, written(tmp_path / "data", samples), 10))
    url = manifest.url
    dropped = {sample.sample_id for sample in samples} - kept(url)
    pairs = [{f"scene-{k:02d}", f"same-{k:02d}"} for k in (0, 1, 2)]
    assert [len(dropped & pair) for pair in pairs] == [1, 1, 1]
    assert dropped - set.union(*pairs) == EXPECTED_DROPPED
    rows = groups(url)
    assert len(rows) == 16
    assert {row["sample_id"] for row in rows if not row["kept"]} == dropped
    for number in range(8):
        first, second = (row for row in rows if row["group"] == number)
        assert first["kept"]
        assert first["reason"] is None
        assert first["sample_id"][-2:] == second["sample_id"][-2:]
        assert second["reason"] == ("exact" if second["sample_id"][-2:] < "03" else "near")
    assert manifest.counts == {"samples": len(samples), "kept": 34, "exact": 3, "near": 5}
    assert manifest.decisions["groups_by_size"] == {"2": 8}
    assert sum(manifest.decisions["near_by_distance"].values()) == 5
    assert manifest.decisions["num_flat"] == 2


def test_the_result_depends_on_neither_units_nor_shards_nor_order(tmp_path: Path) -> None:
    samples = planted()
    data = written(tmp_path / "a", samples)
    hashes = [hashed(tmp_path, data, rows) for rows in (7, 16, 1024)]
    hashes.append(hashed(tmp_path, written(tmp_path / "b", samples[::-1], 5), 3))
    urls = [deduped(tmp_path / str(k), url).url for k, url in enumerate(hashes)]
    assert [kept(url) == kept(urls[0]) for url in urls] == [True] * 4
    tables = [
        [{k: v for k, v in row.items() if k not in ("unit_id", "row")} for row in groups(url)]
        for url in urls
    ]
    assert tables[1:] == tables[:-1]


def test_the_best_scored_copy_stays_however_small_it_is(tmp_path: Path) -> None:
    samples = planted()
    data = written(tmp_path / "data", samples)
    score = {sample.sample_id: 5.0 for sample in samples}
    score |= {"scene-03": 1.0, "large-04": 1.0, "small-06": 1.0, "same-00": 1.0, "scene-01": 9.0}
    del score["large-05"]
    # The score run cut its shards into other units.
    scores, hashes = scored(tmp_path, data, 4, score), hashed(tmp_path, data, 10)
    lowest = deduped(tmp_path, hashes, scores=scores, best_by="perplexity", best_is="lowest")
    stay = kept(lowest.url)
    assert {"scene-03", "large-04", "small-06", "same-00", "same-01", "scene-05"} <= stay
    assert not {"large-03", "scene-04", "scene-06", "scene-00", "scene-01", "large-05"} & stay
    assert lowest.decisions["num_unscored"] == 1
    assert {parent.url for parent in lowest.parents} == {hashes, scores}
    highest = deduped(tmp_path, hashes, scores=scores, best_by="perplexity", best_is="highest")
    assert {"large-03", "scene-04", "scene-06", "scene-00", "scene-01"} <= kept(highest.url)


def test_deciding_anew_on_the_same_hashes(tmp_path: Path) -> None:
    samples = planted()
    hashes = hashed(tmp_path, written(tmp_path / "data", samples), 10)
    exact = deduped(tmp_path, hashes, max_distance=None)
    assert (exact.counts["exact"], exact.counts["near"]) == (3, 0)
    flips = deduped(tmp_path, hashes, flips=True)
    assert (flips.counts["exact"], flips.counts["near"]) == (3, 7)
    mirrors = [{f"scene-{k:02d}", f"mirror-{k:02d}"} for k in (8, 9)]
    assert [len(kept(flips.url) & pair) for pair in mirrors] == [1, 1]
    again = deduped(tmp_path, hashes, flips=True)
    assert again.is_found
    assert replace(again, is_found=False) == flips


def test_scores_of_other_data_are_refused(tmp_path: Path) -> None:
    data = written(tmp_path / "data", planted())
    hashes = hashed(tmp_path, data, 10)
    score = {s.sample_id: 1.0 for s in planted()}
    other = scored(tmp_path, written(tmp_path / "else", planted()[::-1]), 8, score)
    nothing = scored(tmp_path, data, 7, {})
    right = scored(tmp_path, data, 9, score)
    for url, column, message in (
        (other, "perplexity", r"4\d of the 42 samples have another id there"),
        (nothing, "perplexity", "none of the 42 samples has a perplexity there"),
        (right, "noise", "column noise holds string, expected numbers"),
        (right, "perplexities", "no column perplexities"),
    ):
        with pytest.raises(DataError, match=message):
            deduped(tmp_path, hashes, scores=url, best_by=column)
    with pytest.raises(DataError, match="found no hashes of pictures; expected a dedup run"):
        deduped(tmp_path, right)


def test_hashes_of_earlier_versions_have_no_thumbnails_and_are_used_all_the_same(
    tmp_path: Path,
) -> None:
    data = written(tmp_path / "data", planted())
    now = deduped(tmp_path / "now", hashed(tmp_path / "now", data, 10), flips=True)
    old = hashed(tmp_path / "old", data, 10, without=[THUMBNAIL])
    then = deduped(tmp_path / "old", old, flips=True)
    assert then.counts == now.counts
    assert groups(then.url) == groups(now.url)
    assert verify(then.url).problems == ()
    for shard in Path(data).iterdir():
        shard.unlink()
    exact = deduped(tmp_path / "gone", old, max_distance=None)
    assert exact.counts["exact"] == 3
    with pytest.raises(DataError):
        deduped(tmp_path / "gone", old)


def test_groups_say_how_much_a_copy_differs(tmp_path: Path) -> None:
    manifest = deduped(tmp_path, hashed(tmp_path, written(tmp_path / "data", planted()), 10))
    rows = [row for row in groups(manifest.url) if not row["kept"]]
    assert [row["difference"] for row in rows if row["reason"] == "exact"] == [0, 0, 0]
    near = [row["difference"] for row in rows if row["reason"] == "near"]
    assert len(near) == 5
    assert all(0 < difference <= 1 for difference in near)
    assert manifest.decisions["max_difference"] == pytest.approx(max(near), abs=1e-3)


def test_too_little_room_for_thumbnails_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = hashed(tmp_path, written(tmp_path / "data", planted()), 10)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**9))
    with pytest.raises(ClusterError, match=r"found 1\.0 GB free, expected 1\.1 GB .* set TMPDIR"):
        deduped(tmp_path, hashes)


@pytest.mark.parametrize("kind", ["hashes", "inputs", "sources"])
def test_a_preview_shows_the_pairs_and_writes_no_run(tmp_path: Path, kind: str) -> None:
    data = written(tmp_path / "data", planted())
    hashes = hashed(tmp_path / "hashed", data, 10)
    root = tmp_path / "runs"
    given: Any = {"hashes": hashes, "inputs": (data,), "sources": {"data": [data]}}[kind]
    recipe = DedupRecipe(name="look", root=str(root), **{kind: given})
    shown = preview(recipe)
    done = deduped(tmp_path, hashes)
    counts = {name: int(number) for name, number in shown.table["rows"]}
    assert counts == {k: done.counts[k] for k in ("samples", "kept", "exact", "near")}
    assert [path.name for path in root.rglob("*") if path.is_file()] == ["look.html"]
    text = Path(shown.page).read_text()
    assert text.count("data:image/jpeg") == 5
    for row in groups(done.url):
        if row["reason"] == "near":
            assert f"goes: {row['sample_id']}" in text
            assert f"{row['distance']} bits apart, difference {row['difference']:.2f}" in text
    assert shown.what == "all 42 samples"


def test_a_preview_of_shards_stops_after_enough_pictures_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preview_module, "MAX_PICTURES", 20)
    data = written(tmp_path / "data", planted())
    root = tmp_path / "runs"
    shown = preview(DedupRecipe(name="look", root=str(root), inputs=(data,), unit_rows=8))
    assert shown.what == "the first 24 samples; a run finds copies among all"


def test_the_command_line_previews_a_view_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hashes = hashed(tmp_path, written(tmp_path / "data", planted()), 10)
    exact = deduped(tmp_path, hashes, max_distance=None)
    recipe = tmp_path / "look.yaml"
    recipe.write_text(f"name: look\nview: {exact.url}\nroot: {tmp_path}/runs\n")
    assert run_command(["dedup", str(recipe), "--preview"]) == 0
    out = capsys.readouterr().out
    assert "only a preview, no run was made" in out
    assert f"{tmp_path}/runs/previews/look.html" in out
    assert not (tmp_path / "runs" / "dedup").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected one of inputs"),
        ({"inputs": ("a.tar",), "view": "v"}, "found 2"),
        ({"view": "v", "scores": "s"}, "scores and best_by go together"),
        ({"view": "v", "best_by": "perplexity"}, "scores and best_by go together"),
        ({"view": "v", "max_distance": 13}, "max_distance: found 13, expected 0 to 12, or null"),
        ({"view": "v", "max_distance": None, "flips": True}, "found true with max_distance: null"),
        ({"view": "v", "max_colour": 256}, "expected 0 to 255"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(options: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        DedupRecipe(name="x", **options)


def test_the_report_shows_the_loosest_groups(tmp_path: Path) -> None:
    done = deduped(tmp_path, hashed(tmp_path, written(tmp_path / "data", planted()), 10))
    (section,) = report_dedup.sections([done], {})
    assert "34 of 42 pictures stay; 3 have the same bytes" in section.lead_text
    gallery = section.blocks[-1]
    badges = [item.badge for item in gallery.items]  # type: ignore[union-attr]
    assert badges[::2] == ["kept"] * 8
    assert sorted(badges[1::2]) == ["exact"] * 3 + ["near"] * 5
    assert badges[-1] == "exact"


@pytest.mark.ray
def test_a_run_on_ray_makes_a_view_that_others_can_read(tmp_path: Path, lent_ray: None) -> None:
    samples = planted()
    bad = replace(with_image(samples[0], samples[0].images[0].data[:60]), sample_id="broken")
    data = written(tmp_path / "data", [*samples, bad])
    recipe = DedupRecipe(
        name="ray", root=str(tmp_path), inputs=(data,), unit_rows=6, max_reject_fraction=0.1
    )
    done = dedup.run(recipe)
    # A second look at what stays finds nothing more.
    second = dedup.run(DedupRecipe(name="twice", root=str(tmp_path), view=done.url))
    assert done.counts["rejected/image_truncated"] == 1
    assert (done.counts["samples"], done.counts["exact"], done.counts["near"]) == (42, 3, 5)
    by_hand = hashed(tmp_path, written(tmp_path / "good", samples), 10)
    assert kept(done.url) == kept(deduped(tmp_path, by_hand).url)
    assert kept(deduped(tmp_path, done.url).url) == kept(done.url)
    assert second.counts == {"samples": 34, "kept": 34, "exact": 0, "near": 0}
    assert kept(second.url) == kept(done.url)
    for url in (done.url, second.url):
        assert verify(url).problems == ()
    assert replace(dedup.run(recipe), is_found=False) == done
