"""A picture that crashes the process costs one sample, on a real Ray with real crashes."""

import hashlib
from pathlib import Path

import pytest
from tests.chaos import harness

from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.sidecar import read_columns
from consomme.storage.units import plan_units, read_unit
from consomme.vision.decode import DecodeProblem, decode

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.mark.long
def test_killers_are_found_and_everybody_else_comes_through(
    tmp_path: Path, one_ray: dict[str, str]
) -> None:
    shards = str(tmp_path / "shards")
    harness.write_shards(shards, 4)
    killers = {"s00010", "s00014"}
    work = harness.job(
        tmp_path, str(tmp_path / "root"), shards, one_ray, unit_rows=16, killers=sorted(killers)
    )
    work.finish(300)
    found = RunFolder.at(harness.run_url(work.root))
    reasons = {r.sample_id: r.reason for r in found.rejects() if r.reason == "killed_worker"}
    assert reasons == dict.fromkeys(killers, "killed_worker")
    rows = read_columns(found.url, ["pixels"], kind="pixels").to_pylist()
    assert {row["sample_id"]: row["pixels"] for row in rows} == {
        name: pixels for name, pixels in pixels_of(shards).items() if name not in killers
    }
    assert list(found.store.list("inflight/")) == []


def pixels_of(shards: str) -> dict[str, str]:
    """What the run finds of every sample that is good, worked out here."""
    found = {}
    for unit in plan_units([f"{shards}/tar", f"{shards}/parquet"], "data"):
        for _, sample in read_unit(unit)[0]:
            image = decode(sample.images[0].data)
            if not isinstance(image, DecodeProblem):
                found[sample.sample_id] = hashlib.sha256(image.tobytes()).hexdigest()
    return found
