"""Recipes on the shipped VLM and their runs, each made once and compared with in several files.

Pipelines are imported when a test first asks for a run: they bring Ray and torch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from consomme.base.manifest import Manifest
    from consomme.pipelines.recaption.recipe import RecaptionRecipe
    from consomme.pipelines.score.recipe import ScoreRecipe
    from consomme.pipelines.train.recipe import TrainRecipe

NANO = "package://models/nano"


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory, lent_ray: None) -> str:
    return str(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def pairs(root: str) -> Manifest:
    from consomme.pipelines.prepare import run as prepare
    from consomme.pipelines.prepare.recipe import PrepareRecipe

    return prepare.run(
        PrepareRecipe(
            name="pairs",
            root=root,
            source={"name": "scenes", "num": 120, "style": "outline"},
            noise_fraction=0.5,
            bad_images=2,
            rows_per_shard=50,
        )
    )


@pytest.fixture(scope="session")
def score_recipe(root: str, pairs: Manifest) -> ScoreRecipe:
    from consomme.pipelines.score.recipe import ScoreRecipe

    return ScoreRecipe(
        name="s",
        root=root,
        inputs=(f"{pairs.url}/data",),
        model=NANO,
        labels=("noise",),
        unit_rows=25,
        max_reject_fraction=0.05,
    )


@pytest.fixture(scope="session")
def scores(score_recipe: ScoreRecipe) -> Manifest:
    from consomme.pipelines.score import run as score

    return score.run(score_recipe)


@pytest.fixture(scope="session")
def view(root: str, scores: Manifest) -> Manifest:
    from consomme.pipelines.filter import run as filter_
    from consomme.pipelines.filter.recipe import FilterRecipe

    return filter_.run(
        FilterRecipe(
            name="half",
            root=root,
            scores=scores.url,
            keep={"name": "highest_fraction", "column": "image_gain", "fraction": 0.5},
            noise_label="noise",
        )
    )


@pytest.fixture(scope="session")
def recaption_recipe(root: str, view: Manifest) -> RecaptionRecipe:
    from consomme.pipelines.recaption.recipe import RecaptionRecipe

    return RecaptionRecipe(
        name="r",
        root=root,
        view=view.url,
        model=NANO,
        max_tokens=64,
        max_reject_fraction=0.1,
        truth={"name": "scenes"},
    )


@pytest.fixture(scope="session")
def recaptions(recaption_recipe: RecaptionRecipe) -> Manifest:
    from consomme.pipelines.recaption import run as recaption

    return recaption.run(recaption_recipe)


@pytest.fixture(scope="session")
def train_recipe(root: str, view: Manifest) -> TrainRecipe:
    from consomme.pipelines.train.recipe import TrainRecipe, TrainSource

    return TrainRecipe(
        name="full",
        root=root,
        model=NANO,
        data=(TrainSource(view=view.url),),
        num_steps=6,
        global_batch=24,
        checkpoint_every=3,
        num_workers=2,
    )


@pytest.fixture(scope="session")
def full_recipe(train_recipe: TrainRecipe, pairs: Manifest) -> TrainRecipe:
    from consomme.pipelines.train.recipe import TrainSource

    """Two workers find that it diverges: a step has few samples, so losses go up and down."""
    return replace(
        train_recipe,
        data=(TrainSource(inputs=(f"{pairs.url}/data",)),),
        max_reject_fraction=0.1,
        num_steps=14,
        global_batch=8,
        checkpoint_every=4,
        max_loss_ratio=1.02,
        max_rollbacks=9,
    )


@pytest.fixture(scope="session")
def full(full_recipe: TrainRecipe) -> Manifest:
    from consomme.pipelines.train import run as train

    return train.run(full_recipe)


@pytest.fixture(scope="session")
def sparse_recipe(train_recipe: TrainRecipe) -> TrainRecipe:
    layers = {"name": "sparse_uniform", "fraction": 0.25}
    # Sharded, so that what is resumed through Ray comes from shards.
    sharded = {"name": "fsdp2"}
    return replace(train_recipe, name="sparse", layers=layers, parallelism=sharded, num_workers=1)


@pytest.fixture(scope="session")
def sparse(sparse_recipe: TrainRecipe) -> Manifest:
    from consomme.pipelines.train import run as train

    return train.run(sparse_recipe)
