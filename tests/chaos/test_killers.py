"""A picture that crashes the process costs one sample, on a real Ray with real crashes."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

import harness

from consomme.storage.ledger import RunFolder
from consomme.storage.sidecar import read_columns

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_killers_are_found_and_everybody_else_comes_through(tmp_path: Path) -> None:
    shards = str(tmp_path / "shards")
    harness.write_shards(shards, 4)
    killers = {"s00010", "s00028"}
    work = harness.job(
        tmp_path, str(tmp_path / "root"), shards, unit_rows=16, killers=sorted(killers)
    )
    work.finish(300)
    calm = harness.job(tmp_path / "calm", str(tmp_path / "calm/root"), shards, unit_rows=16)
    calm.finish()
    found = RunFolder.at(harness.run_url(work.root))
    reasons = {r.sample_id: r.reason for r in found.rejects() if r.reason == "killed_worker"}
    assert reasons == dict.fromkeys(killers, "killed_worker")
    rows = read_columns(found.url, ["pixels"], kind="pixels").to_pylist()
    undisturbed = read_columns(harness.run_url(calm.root), ["pixels"], kind="pixels").to_pylist()
    assert rows == [row for row in undisturbed if row["sample_id"] not in killers]
    assert list(found.store.list("inflight/")) == []
