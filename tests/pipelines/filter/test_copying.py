"""Copied shards hold the samples that they were made of, whatever these are made of."""

from pathlib import Path

import pytest
from tests.support.many_pictures import mixed

from consomme.execution.stage import UnitSample
from consomme.pipelines.filter.copying import CopyStage
from consomme.pipelines.filter.recipe import FilterRecipe
from consomme.storage.units import plan_units, read_unit


@pytest.mark.parametrize("file_format", ["webdataset", "parquet"])
def test_samples_of_any_number_of_pictures_are_copied_as_they_are(
    tmp_path: Path, file_format
) -> None:
    samples = mixed()
    recipe = FilterRecipe(
        name="f", scores="s", keep={"name": "random_fraction"}, file_format=file_format
    )
    items = [UnitSample(row=row, sample=sample) for row, sample in enumerate(samples)]
    outcome = CopyStage(recipe).work(items)
    assert outcome.rejects == []
    ((_, suffix, data),) = outcome.files
    path = tmp_path / f"shard.{suffix}"
    path.write_bytes(data)
    (unit,) = plan_units([str(path)], "many")
    read, rejects = read_unit(unit)
    assert rejects == []
    for (_, found), sample in zip(read, samples, strict=True):
        assert found.sample_id == sample.sample_id
        assert [image.data for image in found.images] == [image.data for image in sample.images]
        assert found.turns == sample.turns
