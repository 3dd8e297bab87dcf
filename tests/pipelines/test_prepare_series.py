"""Samples of several scenes are written as shards, and read back as they were made."""

from pathlib import Path

import pytest
from tests.support.hub_datasets import opened, pictures_of

from consomme.base.recipe import load_recipe
from consomme.datasets.sources import SAMPLE_SOURCES
from consomme.models.attention import max_positions
from consomme.models.chat_prefix import chat_encoder_for
from consomme.models.weights import open_model
from consomme.pipelines.prepare import run as prepare
from consomme.pipelines.prepare.recipe import PrepareRecipe
from consomme.pipelines.train.recipe import TrainRecipe
from consomme.pipelines.train.samples import Preparer, encode, plan_source
from consomme.storage.model_folder import model_folder
from consomme.storage.units import plan_units, read_unit

RECIPES = Path(__file__).parents[2] / "recipes" / "train"


def read_back(url):
    samples, rejects = [], []
    for unit in plan_units([f"{url}/data"], "data"):
        found, bad = read_unit(unit)
        samples += [sample for _, sample in found]
        rejects += [reject for _, reject in bad]
    return samples, rejects


@pytest.mark.parametrize("format_", ["webdataset", "parquet"])
@pytest.mark.parametrize("name", ["scene_which", "scene_changes", "scene_documents"])
def test_it_is_read_back_as_it_was_made(tmp_path, name, format_):
    node = {"name": name, "num": 30}
    done = prepare.run(
        PrepareRecipe(
            name="series", root=str(tmp_path), source=node, format=format_, rows_per_shard=12
        )
    )
    samples, rejects = read_back(done.url)
    data = opened(f"{done.url}/data", tmp_path / "cache")
    assert [len(pictures_of(row)) for row in data] == [len(one.images) for one in samples]
    assert rejects == []
    made = list(SAMPLE_SOURCES.build(node)())
    assert [one.sample_id for one in samples] == [one.sample_id for one in made]
    for one, other in zip(samples, made, strict=True):
        assert one.images == other.images
        assert one.turns == other.turns
        # Parquet has a column for the source, which is metadata to a reader of another name.
        found = {key: value for key, value in one.meta.items() if key != "source"}
        assert found == {**other.meta, "noise": "clean"}


def test_a_damaged_image_costs_one_sample_and_leaves_the_others(tmp_path):
    node = {"name": "scene_which", "num": 30}
    done = prepare.run(PrepareRecipe(name="bad", root=str(tmp_path), source=node, bad_images=2))
    samples, _ = read_back(done.url)
    assert {len(sample.images) for sample in samples} == {3}
    whole = list(SAMPLE_SOURCES.build(node)())
    cut = [n for n in range(30) if samples[n].images != whole[n].images]
    assert len(cut) == 2
    for n in cut:
        assert samples[n].images[1:] == whole[n].images[1:]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["which", "changes", "documents"])
def test_the_recipe_that_trains_on_it_takes_every_sample(tmp_path, name):
    model, processor = open_model(model_folder("package://models/nano"))
    chat = chat_encoder_for(model.config, processor, {})
    node = {"name": f"scene_{name}", "num": 12}
    done = prepare.run(PrepareRecipe(name=name, root=str(tmp_path), source=node))
    words = [f"data.0.inputs=[{done.url}/data]"]
    recipe = load_recipe(TrainRecipe, RECIPES / f"{name}.yaml", words)
    plan = plan_source(recipe.data[0], "data[0]")
    preparer = Preparer(recipe, chat, max_positions(model.config))
    contents = [preparer.read(recipe.data[0], work, 0, 0) for work in plan.works]
    assert [one for unit in contents for one in unit.rejects] == []
    samples = [one for unit in contents for one in unit.samples]
    assert len(samples) == 12
    num_images = 2 if name == "changes" else 3
    for one in samples:
        encoded = encode(chat, one)
        assert len(encoded.input_ids) == one.num_tokens
        assert encoded.input_ids.count(chat.image_token_id) == 25 * num_images
