"""S3 is killed for some seconds in the middle of a run; `make chaos` does it for minutes."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tests.chaos import outages
from tests.support.s3_server import BUCKET, seaweedfs

from consomme.base.schema import to_plain
from consomme.storage.stores.open import open_store

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_score_outlasts_its_storage(score_recipe, scores, tmp_path: Path) -> None:
    """Five seconds cost five seconds: the same bytes as on a disk that was never away."""
    with seaweedfs() as server:
        recipe = yaml.safe_load(yaml.safe_dump(to_plain(replace(score_recipe, num_actors=1))))
        outages.disturb(server, "score", recipe, tmp_path, "away", 5)
        (prefix,) = {
            key.rpartition("/")[0]
            for key in outages.keys(server, "away/")
            if key.endswith("manifest.json")
        }
        found = outages.content(server, "away")
    store = open_store(scores.url)
    parts = ("commits/", "data/", "rejects/")
    kept = {path for path in found if path.startswith(parts)}
    assert kept == {file.path for file in store.list() if file.path.startswith(parts)}
    assert prefix.rpartition("/")[2] == scores.url.rpartition("/")[2]
    differing = [path for path in kept if found[path] != store.read(path)]
    assert not differing
    assert BUCKET not in scores.url
