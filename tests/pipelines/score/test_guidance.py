"""Guided columns of score, beside the plain ones, which stay as they are."""

from typing import Any

import pytest

from consomme.base.errors import RecipeError
from consomme.datasets.sources import SceneSource
from consomme.execution.stage import DecodedSample
from consomme.pipelines.score.recipe import ScoreRecipe
from consomme.pipelines.score.stage import PerplexityStage
from consomme.vision.decode import decode
from consomme.vision.guidance import Guidance

pytestmark = pytest.mark.slow
NANO = "package://models/nano"


def recipe(**changes: Any) -> ScoreRecipe:
    return ScoreRecipe(name="s", model=NANO, inputs=("x",), dtype="float32", **changes)


def units() -> list[DecodedSample]:
    found = []
    for row, sample in enumerate(SceneSource(num=6)()):
        image = decode(sample.images[0].data)
        found.append(DecodedSample(row=row, sample=sample, images=(image,)))
    return found


def test_columns_beside_the_plain_ones() -> None:
    samples = units()
    plain = PerplexityStage(recipe(), NANO).work(samples)
    guided = PerplexityStage(recipe(guidance=Guidance(boxes={"name": "scenes"})), NANO).work(
        samples
    )
    assert guided.table.select(plain.table.column_names).equals(plain.table)
    rows = guided.table.to_pylist()
    assert all(row["is_guided"] for row in rows)
    for row in rows:
        assert row["guided_gain"] == pytest.approx(
            (row["nll"] - row["guided_nll"]) / row["num_tokens"], abs=1e-5
        )
    assert guided.sums["guided/samples"] == len(samples)
    assert any(abs(row["guided_gain"]) > 1e-3 for row in rows)
    # Samples without a region have their plain nll.
    none = PerplexityStage(recipe(guidance=Guidance()), NANO).work(samples)
    assert [row["guided_nll"] for row in none.table.to_pylist()] == [row["nll"] for row in rows]
    assert none.sums["guided/samples"] == 0
    assert not any(row["is_guided"] for row in none.table.to_pylist())


def test_a_box_that_cannot_be_read_costs_its_sample() -> None:
    samples = units()
    samples[2].sample.meta["boxes"] = [[9, 0, 3, 5]]
    samples[3].sample.meta["boxes"] = [[3, 0, 30, 35]]
    outcome = PerplexityStage(recipe(guidance=Guidance()), NANO).work(samples)
    assert [reject.reason for _, reject in outcome.rejects] == ["region_unreadable"]
    flags = {row["row"]: row["is_guided"] for row in outcome.table.to_pylist()}
    assert flags == {0: False, 1: False, 3: True, 4: False, 5: False}


def test_the_engine_has_to_give_logits() -> None:
    with pytest.raises(RecipeError, match="logits"):
        ScoreRecipe(name="s", model=NANO, inputs=("x",), engine="vllm", guidance=Guidance())
