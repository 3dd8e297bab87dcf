"""Samples without a value: no policy ranks them, one keeps them, and every page counts them."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tests.support.hand_made import HandRecipe, write_run
from tests.support.many_pictures import mixed

from consomme.base.errors import DataError
from consomme.curate.keep.policy import is_missing
from consomme.curate.keep.registry import KEEP_POLICIES
from consomme.pipelines.filter import report as report_filter
from consomme.pipelines.filter import run as filter_
from consomme.pipelines.filter.preview import preview
from consomme.pipelines.filter.recipe import FilterRecipe
from consomme.report import model as page
from consomme.storage.stores.open import open_store
from consomme.storage.units import plan_units, read_unit
from consomme.storage.view import View, read_view_unit
from consomme.storage.writers import WebDatasetWriter

TEXTS = {f"text-{k}" for k in range(4)}


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Scores in which samples without pictures have no gain, as `score` writes them."""
    folder = tmp_path_factory.mktemp("missing")
    with WebDatasetWriter(open_store(str(folder / "data")), "shard") as writer:
        for sample in mixed():
            writer.write(sample)
    parts = []
    for unit in plan_units([str(folder / "data")], "data", 5):
        rows = read_unit(unit)[0]
        gains = [None if not s.images else float(len(s.sample_id)) for _, s in rows]
        noise = ["spam" if s.sample_id.endswith("1") else "clean" for _, s in rows]
        table = {
            "row": pa.array([row for row, _ in rows], pa.int32()),
            "sample_id": [sample.sample_id for _, sample in rows],
            "perplexity": pa.array([1.0 + row for row, _ in rows], pa.float32()),
            "image_gain": pa.array(gains, pa.float32()),
            "num_tokens": pa.array([3] * len(rows), pa.int32()),
            "noise": noise,
        }
        parts.append((unit, pa.table(table)))
    return write_run("score", HandRecipe(name="s", root=str(folder)), parts)


def recipe_of(root: Path, scores: str, keep: dict[str, Any], **more: Any) -> FilterRecipe:
    return FilterRecipe(name="f", root=str(root), scores=scores, keep=keep, **more)


def kept(url: str) -> set[str]:
    return {
        sample.sample_id
        for unit, bitmap in View.load(url).entries
        for _, sample in read_view_unit(unit, bitmap)
    }


HIGHEST = {"name": "highest_fraction", "column": "image_gain", "fraction": 0.5}


@pytest.mark.parametrize(
    "keep",
    [
        HIGHEST,
        {"name": "lowest_fraction", "column": "image_gain", "fraction": 1.0},
        {"name": "drop_highest_fraction", "column": "image_gain", "fraction": 0.2},
        {"name": "lowest_count", "column": "image_gain", "samples": 99},
        {"name": "highest_count", "column": "image_gain", "samples": 99},
        {"name": "band", "column": "image_gain", "low": 0.0, "high": 1.0},
        {"name": "threshold", "column": "image_gain", "min": -1e9},
        {"name": "threshold", "column": "image_gain", "max": 1e9},
        {"name": "token_budget", "column": "image_gain", "tokens": 1000},
        {"name": "token_budget", "weight": "image_gain", "tokens": 100000},
        {"name": "mean_fraction", "terms": [{"column": "image_gain"}, {"column": "perplexity"}]},
        {"name": "class_balanced", "by": "noise", "column": "image_gain", "samples": 99},
        {"name": "in_turn", "policies": [{"name": "random_fraction", "fraction": 1.0}, HIGHEST]},
        {"name": "per_stratum", "by": "noise", "keep": HIGHEST},
        {"name": "all_of", "policies": [{"name": "random_fraction", "fraction": 1.0}, HIGHEST]},
    ],
    ids=lambda keep: keep["name"],
)
def test_no_policy_keeps_a_sample_for_a_number_that_it_lacks(
    scores: str, tmp_path: Path, keep: dict[str, Any]
) -> None:
    done = filter_.run(recipe_of(tmp_path, scores, keep))
    assert kept(done.url)
    assert not kept(done.url) & TEXTS
    assert done.decisions["missing"] == {"image_gain": [0, 4]}
    assert done.decisions["table"]["rows"] == [["image_gain", "4", "0"]]


@pytest.mark.parametrize("inner", [HIGHEST, {"name": "random_count", "samples": 3}])
def test_keep_missing_keeps_them_and_lets_a_policy_decide_about_the_rest(
    scores: str, tmp_path: Path, inner: dict[str, Any]
) -> None:
    keep = {"name": "keep_missing", "column": "image_gain", "keep": inner}
    with_texts = filter_.run(recipe_of(tmp_path / "a", scores, keep))
    assert kept(with_texts.url) >= TEXTS
    assert with_texts.decisions["missing"] == {"image_gain": [4, 4]}
    num_others = 3 if inner["name"] == "random_count" else 9
    assert len(kept(with_texts.url) - TEXTS) == num_others
    if inner is HIGHEST:
        alone = filter_.run(recipe_of(tmp_path / "b", scores, HIGHEST))
        assert kept(with_texts.url) == kept(alone.url) | TEXTS
        assert with_texts.decisions["cut"] == alone.decisions["cut"]


def test_the_preview_and_the_report_count_them(scores: str, tmp_path: Path) -> None:
    sentence = "4 samples have no `image_gain`; 0 of them are kept."
    recipe = recipe_of(tmp_path, scores, HIGHEST)
    text = Path(preview(recipe).page).read_text()
    assert "<dt>without image_gain</dt><dd>4</dd>" in text
    assert sentence.replace("`image_gain`", "<code>image_gain</code>") in text
    assert "picture 1 of 3" in text
    done = filter_.run(recipe)
    (section,) = report_filter.sections([done], {})
    assert sentence in section.lead_text
    (gallery,) = (block for block in section.blocks if isinstance(block, page.Gallery))
    assert len(gallery.items) == 18, "samples that have a gain"
    keeping = {"name": "keep_missing", "column": "image_gain", "keep": HIGHEST}
    text = Path(preview(recipe_of(tmp_path / "k", scores, keeping)).page).read_text()
    assert "4 of them are kept" in text


def test_the_truth_is_compared_with_the_scores_that_there_are(scores: str, tmp_path: Path) -> None:
    done = filter_.run(recipe_of(tmp_path, scores, HIGHEST, noise_label="noise"))
    for name in ("perplexity", "image_gain"):
        assert not math.isnan(done.metrics[f"filter/noise_auc_{name}_fraction"])
    assert done.decisions["kept_by_kind"]["clean"][1] == 17


def test_a_policy_that_keeps_nothing_says_that_values_are_missing(
    scores: str, tmp_path: Path
) -> None:
    keep = {"name": "highest_fraction", "column": "image_gain", "fraction": 0.0}
    with pytest.raises(DataError, match="4 samples have no `image_gain`"):
        filter_.run(recipe_of(tmp_path, scores, keep))


def test_what_is_missing_in_each_kind_of_column() -> None:
    nan = math.nan
    for values, expected in (
        (np.array([1.0, nan], np.float32), [False, True]),
        (np.array([1, 2], np.int64), [False, False]),
        (np.array(["a", ""], object), [False, True]),
        (np.array([[1.0, 2.0], [1.0, nan]], np.float32), [False, True]),
        (np.zeros(0, np.float32), []),
        (np.zeros((2, 0), np.float32), [False, False]),
    ):
        assert is_missing(values).tolist() == expected


def test_keep_missing_shows_the_cut_of_its_policy_among_those_with_a_value() -> None:
    policy = KEEP_POLICIES.build(
        {"name": "keep_missing", "column": "b", "keep": {**HIGHEST, "column": "a"}}
    )
    columns = {
        "a": np.array([1, 2, 3, 4], np.float32),
        "b": np.array([1, math.nan, 1, math.nan], np.float32),
    }
    hash_N = np.arange(4, dtype=np.uint64)
    decision = policy.decide(lambda: [(columns, hash_N)])
    assert decision.mask(columns, hash_N).tolist() == [False, True, True, True]
    (boundary,) = decision.boundaries()  # type: ignore[attr-defined]
    assert boundary.among(columns, hash_N).tolist() == [True, False, True, False]
