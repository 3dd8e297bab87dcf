"""Samples of several scenes are written as shards, and read back as they were made."""

import pytest

from consomme.datasets.sources import SAMPLE_SOURCES
from consomme.pipelines.prepare import run as prepare
from consomme.pipelines.prepare.recipe import PrepareRecipe
from consomme.storage.units import plan_units, read_unit


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
