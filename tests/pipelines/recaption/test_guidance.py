"""Captions that are guided by regions: which rows say so, and what is refused."""

from pathlib import Path

import pytest
from tests.pipelines.recaption.test_recaption import recaptioned, recipe, rows_of

from consomme.base.errors import RecipeError
from consomme.base.sample import ImageFile, Sample, caption_turns
from consomme.datasets import scenes
from consomme.storage.model_folder import model_folder
from consomme.storage.writers import tar_bytes
from consomme.vision.guidance import Guidance

pytestmark = pytest.mark.slow


def write_shards(folder: Path) -> str:
    """Scenes, of which one has boxes in its metadata, and one a wrong one."""
    boxes = {1: [[0, 0, 60, 60]], 2: [[5, 0, 1, 60]]}
    found = []
    for seed in range(4):
        image = scenes.encode(scenes.render(scenes.make_scene(600_000 + seed)))
        meta = {"scene_seed": 600_000 + seed, "style": "filled"}
        found.append(
            Sample(
                sample_id=f"s{seed}",
                images=(ImageFile(data=image, name=f"s{seed}.png"),),
                turns=caption_turns("a picture"),
                source="data",
                meta={**meta, "boxes": boxes[seed]} if seed in boxes else meta,
            )
        )
    folder.mkdir()
    (folder / "a.tar").write_bytes(tar_bytes(found))
    return str(folder)


def test_guided_captions(tmp_path: Path) -> None:
    shards, model = write_shards(tmp_path / "data"), model_folder("package://models/nano")
    plain = rows_of(recaptioned(recipe(tmp_path, shards, canary_fraction=0.0), model))
    assert "is_guided" not in plain["s0"]
    options = {"canary_fraction": 0.0, "max_reject_fraction": 0.5}
    guided = rows_of(
        recaptioned(recipe(tmp_path, shards, guidance=Guidance(alpha=8), **options), model)
    )
    assert {name: row["is_guided"] for name, row in guided.items()} == {
        "s0": False,
        "s1": True,
        "s3": False,
    }
    assert guided["s0"]["written"] == plain["s0"]["written"]
    assert guided["s1"]["written"] != plain["s1"]["written"]
    of_scenes = Guidance(boxes={"name": "scenes"})
    every = rows_of(recaptioned(recipe(tmp_path, shards, guidance=of_scenes, **options), model))
    assert all(row["is_guided"] for row in every.values())


def test_what_cannot_be_guided_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="logits"):
        recipe(tmp_path, "x", engine={"name": "vllm"}, guidance=Guidance())
    with pytest.raises(RecipeError, match="nothing to mask"):
        recipe(tmp_path, "x", shows_picture=False, guidance=Guidance())
