"""Checkpoints reach the run folder with the checksums of their files."""

from pathlib import Path

import pytest

from consomme.pipelines.train.checkpoint import CHECKPOINTS, upload, uploaded_sums
from consomme.storage.ledger.sums import collect, read_sum
from consomme.storage.stores.open import open_store


@pytest.fixture(params=["local", "seaweedfs"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a run folder."""
    if request.param == "local":
        return str(tmp_path / "train" / "t-00000001")
    return f"{request.getfixturevalue('s3_root')}/train/t-00000001"


def test_ranks_upload_their_files_and_checksums(run: str, tmp_path: Path) -> None:
    from ray.train import Checkpoint

    store = open_store(run)
    for rank in (0, 1):
        local = tmp_path / f"rank {rank}"
        (local / "shards").mkdir(parents=True)
        (local / "shards" / f"{rank}.distcp").write_bytes(bytes([rank]) * 1000)
        if not rank:
            (local / "meta.json").write_text("{}")
        there = upload(run, rank, Checkpoint.from_directory(str(local)), "checkpoint_1")
        with there.as_directory() as path:
            assert Path(path, "shards", f"{rank}.distcp").read_bytes() == bytes([rank]) * 1000
    place = f"{CHECKPOINTS}/checkpoint_1"
    sums = uploaded_sums(store)
    names = ("meta.json", "shards/0.distcp", "shards/1.distcp")
    assert sums == {f"{place}/{name}": read_sum(store, f"{place}/{name}") for name in names}
    # An interrupted upload left a file out: it is not vouched for.
    store.delete(f"{place}/shards/1.distcp")
    assert sorted(uploaded_sums(store)) == [f"{place}/meta.json", f"{place}/shards/0.distcp"]
    assert set(collect(store, uploaded_sums(store))) == {
        *uploaded_sums(store),
        f"{place}/sums-0.json",
        f"{place}/sums-1.json",
    }
