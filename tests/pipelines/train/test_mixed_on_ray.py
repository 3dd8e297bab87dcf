"""Two workers train on texts, images and conversations of several images, as one does."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.pipelines.train.test_many_images import mixed, shards

from consomme.base.manifest import Manifest
from consomme.pipelines.train import run as train
from consomme.pipelines.train.recipe import Evaluation, TrainRecipe
from consomme.train.parts import FULL

pytestmark = pytest.mark.ray


def losses(made: Manifest) -> list[float]:
    return [point["loss"] for point in json.loads((Path(made.url) / "curve.json").read_text())]


@pytest.mark.long
@pytest.mark.parametrize("pack_tokens", [None, 300], ids=["padded", "packed"])
def test_two_workers_train_as_one(root: str, tmp_path: Path, pack_tokens: int | None) -> None:
    texts, images = shards(tmp_path / "shards", [mixed(24)[::4], mixed(24)[1:]])
    recipe = TrainRecipe(
        name="mixed",
        root=root,
        model="package://models/nano",
        data=(replace(texts, weight=1.0), replace(images, weight=1.0)),
        shares="answer_tokens",
        too_long="shorten",
        max_tokens=100,
        max_pixels=2000,
        vision_encoder=FULL,
        num_steps=4,
        global_batch=8,
        micro_batch=2,
        checkpoint_every=2,
        max_reject_fraction=0.9,
    )
    # Two workers and an evaluation would be more CPUs than a small machine has.
    evaluation = Evaluation(data=(images,), max_samples=8)
    one = train.run(replace(recipe, evaluation=evaluation))
    parallelism = {"name": "ddp" if pack_tokens else "fsdp2"}
    two = train.run(
        replace(recipe, name="two", num_workers=2, parallelism=parallelism, pack_tokens=pack_tokens)
    )
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert one.counts["shortened"] > 0
    assert two.counts == one.counts
    tokens = [one.counts[f"answer_tokens/data[{k}]"] for k in range(2)]
    assert tokens[0] == pytest.approx(tokens[1], rel=0.5)
