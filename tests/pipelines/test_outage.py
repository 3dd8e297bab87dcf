"""S3 is killed for some seconds in the middle of a run; `make chaos` does it for minutes."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tests.chaos import outages
from tests.support.s3_server import MortalServer

from consomme.base.manifest import Manifest
from consomme.base.schema import to_plain
from consomme.pipelines.score.recipe import ScoreRecipe
from consomme.storage.stores.open import open_store

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.mark.long
def test_score_outlasts_its_storage(
    score_recipe: ScoreRecipe,
    scores: Manifest,
    s3_server: MortalServer,
    s3_root: str,
    one_ray: dict[str, str],
    tmp_path: Path,
) -> None:
    """Five seconds cost five seconds: the same bytes as on a disk that was never away."""
    root = s3_root.rpartition("/")[2]
    recipe = yaml.safe_load(yaml.safe_dump(to_plain(replace(score_recipe, num_actors=1))))
    outages.disturb(s3_server, "score", recipe, tmp_path, root, 5, one_ray)
    (manifest,) = [key for key in outages.keys(s3_server, root) if key.endswith("manifest.json")]
    found = outages.content(s3_server, root)
    store = open_store(scores.url)
    parts = ("commits/", "data/", "rejects/")
    kept = {path for path in found if path.startswith(parts)}
    assert kept == {file.path for file in store.list() if file.path.startswith(parts)}
    assert manifest.split("/")[-2] == scores.url.rpartition("/")[2]
    differing = [path for path in kept if found[path] != store.read(path)]
    assert not differing
