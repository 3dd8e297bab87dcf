"""Preparing and filtering without Ray: the same samples stay however the data is cut."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tests.support.hub_datasets import opened, pictures_of

from consomme.base.errors import DataError, RecipeError
from consomme.base.hashing import hash_ids
from consomme.base.manifest import Manifest
from consomme.base.sample import Sample
from consomme.execution.runs import Run
from consomme.execution.worker import with_id_hash
from consomme.ops.verify import verify
from consomme.pipelines.filter import run as filter_
from consomme.pipelines.filter.recipe import FilterRecipe
from consomme.pipelines.prepare import run as prepare
from consomme.pipelines.prepare.recipe import PrepareRecipe
from consomme.pipelines.score.recipe import ScoreRecipe
from consomme.storage.shards import shard_urls
from consomme.storage.sidecar import table_bytes
from consomme.storage.units import plan_units, read_unit
from consomme.storage.view import View, read_view_unit
from consomme.vision.decode import DecodeProblem, decode


def prepared(root: Path, **options: Any) -> Manifest:
    source = {"name": "scenes", "num": 90}
    recipe = {"noise_fraction": 0.4, "noise_seed": 2, "source": source, **options}
    return prepare.run(PrepareRecipe(name="pairs", root=str(root), **recipe))


def samples_of(manifest: Manifest, unit_rows: int = 1024) -> list[Sample]:
    units = plan_units(shard_urls([f"{manifest.url}/data"]), "data", unit_rows)
    return [sample for unit in units for _, sample in read_unit(unit)[0]]


def perplexity_of(sample: Sample) -> float:
    """A made-up score with many ties, from the sample alone."""
    return float(hashlib.sha256(sample.sample_id.encode()).digest()[0] % 7)


def scored(
    root: Path,
    data: Manifest,
    unit_rows: int,
    perplexity: Callable[[Sample], float] = perplexity_of,
) -> str:
    """A finished score run with sidecars made by hand."""
    inputs = [f"{data.url}/data"]
    recipe = ScoreRecipe(
        name=f"by-hand-{unit_rows}", root=str(root), inputs=tuple(inputs), model="none"
    )
    opened = Run.open("score", recipe, None, reads=inputs)
    opened.start()
    number = opened.folder.start_attempt()
    for unit in plan_units(shard_urls(inputs), "data", unit_rows):
        rows = read_unit(unit)[0]
        values = [perplexity(sample) for _, sample in rows]
        table = pa.table(
            {
                "row": pa.array([row for row, _ in rows], pa.int32()),
                "sample_id": [sample.sample_id for _, sample in rows],
                "perplexity": pa.array(values, pa.float32()),
                "image_gain": pa.array([-value for value in values], pa.float32()),
                "noise": [sample.meta["noise"] for _, sample in rows],
            }
        )
        file = opened.folder.write_output(
            unit, "scores", table_bytes(with_id_hash(table, unit.source)), "parquet"
        )
        opened.folder.commit(number, unit, [file], {"samples": len(rows)})
    opened.folder.close(number)
    return opened.finish().url


def kept_ids(view_url: str) -> set[str]:
    return {
        sample.sample_id
        for unit, bitmap in View.load(view_url).entries
        for _, sample in read_view_unit(unit, bitmap)
    }


def filtered(root: Path, scores: str, **options: Any) -> Manifest:
    recipe: dict[str, Any] = {"keep": {"name": "lowest_fraction", "fraction": 0.3}, **options}
    return filter_.run(FilterRecipe(name="low", root=str(root), scores=scores, **recipe))


@pytest.mark.parametrize("file_format", ["webdataset", "parquet"])
def test_shard_size_changes_the_files_and_not_the_samples(tmp_path: Path, file_format: str) -> None:
    few, many = (prepared(tmp_path, rows_per_shard=rows, format=file_format) for rows in (512, 20))
    assert few.fingerprint != many.fingerprint
    assert few.counts == many.counts
    assert few.decisions["sha256"] == many.decisions["sha256"]
    assert few.decisions["shards"] == 1 < many.decisions["shards"]
    assert samples_of(few, 1024) == samples_of(few, 7) == samples_of(many, 11)
    noise = sum(n for key, n in few.counts.items() if key.startswith("noise/"))
    assert few.counts["samples"] == noise == len(samples_of(few))


def test_running_again_writes_nothing(tmp_path: Path) -> None:
    first = prepared(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert prepared(tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == times


def test_bad_pictures_are_truncated_and_nothing_else(tmp_path: Path) -> None:
    good = {s.sample_id: s for s in samples_of(prepared(tmp_path))}
    bad = {s.sample_id: s for s in samples_of(prepared(tmp_path, bad_images=4))}
    assert set(good) == set(bad)
    changed = [bad[key] for key in good if bad[key] != good[key]]
    assert len(changed) == 4
    for sample in changed:
        problem = decode(sample.images[0].data)
        assert isinstance(problem, DecodeProblem)
        assert problem.reason == "image_truncated"
        assert sample.caption == good[sample.sample_id].caption


def test_a_typo_in_a_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'scenes'"):
        prepared(tmp_path, source={"name": "scene"})


@pytest.mark.parametrize(
    "keep",
    [
        {"name": "lowest_fraction", "column": "perplexity", "fraction": 0.3},
        {"name": "highest_fraction", "column": "image_gain", "fraction": 0.3},
        {"name": "random_fraction", "fraction": 0.3, "seed": 1},
    ],
    ids=lambda keep: str(keep["name"]),
)
def test_the_cut_is_the_same_however_the_data_is_cut(tmp_path: Path, keep: dict[str, Any]) -> None:
    kept = []
    for rows_per_shard, unit_rows in ((512, 1024), (20, 1024), (512, 13), (33, 8)):
        data = prepared(tmp_path, rows_per_shard=rows_per_shard)
        done = filtered(tmp_path, scored(tmp_path, data, unit_rows), keep=keep)
        kept.append(kept_ids(done.url))
        assert done.counts == {"samples": len(samples_of(data)), "kept": len(kept[-1])}
    assert kept[1:] == kept[:-1]

    samples = samples_of(data)
    assert len(kept[0]) == int(0.3 * len(samples))
    if keep["name"] != "random_fraction":
        hashes = hash_ids(f"data\t{sample.sample_id}" for sample in samples)
        order = sorted(
            zip(map(perplexity_of, samples), hashes.tolist(), samples, strict=True),
            key=lambda entry: entry[:2],
        )
        assert kept[0] == {sample.sample_id for *_, sample in order[: len(kept[0])]}


def test_the_cut_is_written_down_and_measured_against_the_truth(tmp_path: Path) -> None:
    def is_noise(sample: Sample) -> float:
        return 5.0 if sample.meta["noise"] != "clean" else 1.0

    data = prepared(tmp_path)
    scores = scored(tmp_path, data, 16, is_noise)
    done = filtered(tmp_path, scores, noise_label="noise")
    noisy = [sample.meta["noise"] != "clean" for sample in samples_of(data)]
    assert done.decisions["cut"] == 1.0
    assert done.decisions["tie_count"] == noisy.count(False)
    assert done.metrics["filter/noise_auc_perplexity_fraction"] == 1.0
    assert done.metrics["filter/noise_auc_image_gain_fraction"] == 1.0
    assert done.metrics["filter/noise_kept_fraction"] == 0.0
    dropped = len(noisy) - done.counts["kept"]
    assert done.metrics["filter/noise_dropped_fraction"] == pytest.approx(sum(noisy) / dropped)
    assert done.decisions["kept_by_kind"]["clean"] == [done.counts["kept"], noisy.count(False)]
    assert set(done.decisions["auc_by_kind"]["perplexity"].values()) == {1.0}
    assert [parent.url for parent in done.parents] == [scores]


def test_samples_without_a_score_are_never_kept_and_are_counted(tmp_path: Path) -> None:
    def half(sample: Sample) -> float:
        return float("nan") if hash_ids([sample.sample_id])[0] % np.uint64(2) else 1.0

    data = prepared(tmp_path)
    done = filtered(tmp_path, scored(tmp_path, data, 16, half), keep=_lowest(1.0))
    scores = [half(sample) for sample in samples_of(data)]
    missing = sum(value != value for value in scores)
    assert missing > 5
    assert done.decisions["num_missing"] == missing
    assert done.counts["kept"] == len(scores) - missing


def _lowest(fraction: float) -> dict[str, Any]:
    return {"name": "lowest_fraction", "fraction": fraction}


def test_keeping_nothing_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    scores = scored(tmp_path, prepared(tmp_path), 1024)
    with pytest.raises(DataError, match=r"keeps none of \d+ samples; raise the fraction"):
        filtered(tmp_path, scores, keep=_lowest(0.001))
    with pytest.raises(DataError, match="no column perplexities"):
        filtered(tmp_path, scores, keep={**_lowest(0.5), "column": "perplexities"})


def test_scores_that_are_not_finished_are_refused(tmp_path: Path) -> None:
    scores = Path(scored(tmp_path, prepared(tmp_path), 1024))
    (scores / "manifest.json").unlink()
    with pytest.raises(DataError, match="not finished; run it again to go on"):
        filtered(tmp_path, str(scores))
    with pytest.raises(DataError, match="no run is there"):
        filtered(tmp_path, str(tmp_path / "nowhere"))


def test_the_view_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    data = prepared(tmp_path)
    scores = scored(tmp_path, data, 16)
    first, second = (filtered(tmp_path / name, scores) for name in ("a", "b"))
    views = [(Path(done.url) / "view.parquet").read_bytes() for done in (first, second)]
    assert views[0] == views[1]


@pytest.mark.ray
@pytest.mark.parametrize("file_format", ["webdataset", "parquet"])
def test_kept_samples_are_copied_names_and_bytes_as_they_came(
    tmp_path: Path, file_format: str, lent_ray: None
) -> None:
    scores = scored(tmp_path, prepared(tmp_path, source={"name": "scenes", "num": 40}), 16)
    done = filtered(tmp_path, scores, materialize=True, file_format=file_format)
    kept = [
        sample
        for unit, bitmap in View.load(done.url).entries
        for _, sample in read_view_unit(unit, bitmap)
    ]
    copied = [
        sample
        for unit in plan_units([f"{done.url}/shards"], "data")
        for _, sample in read_unit(unit)[0]
    ]
    assert kept
    assert copied == kept
    assert verify(done.url).problems == ()
    data = opened(done.url, tmp_path / "cache")
    assert [len(pictures_of(row)) for row in data] == [len(one.images) for one in kept]
