"""What a worker finds wrong reaches the user as the worker said it, through a real Ray."""

import pickle
from collections.abc import Sequence
from pathlib import Path

import pytest

from consomme.base.errors import CheckpointError, ClusterError, DataError
from consomme.base.sample import Sample, caption_turns
from consomme.pipelines.failures import own_errors
from consomme.pipelines.flow import Pool, run_units
from consomme.pipelines.planning import plan_shards
from consomme.pipelines.stage import BytesStage, Item, Outcome
from consomme.storage.ledger import RunFolder
from consomme.storage.shards import find_shards
from consomme.storage.writers import tar_bytes


class Failing(BytesStage):
    """Finds something wrong that its user can mend."""

    def __init__(self, kind: str) -> None:
        if kind == "checkpoint":
            raise CheckpointError("there is no chat template beside the model; put one there")
        self.kind = kind

    def work(self, samples: Sequence[Item]) -> Outcome:
        if self.kind == "data":
            raise DataError("the shard changed since it was scored; score it again")
        raise ClusterError("the disk is full; make room")


ERRORS = {
    "data": (DataError, "score it again"),
    "cluster": (ClusterError, "make room"),
    "checkpoint": (CheckpointError, "no chat template"),
}


@pytest.mark.ray
def test_errors_arrive_as_they_were_raised(tmp_path: Path, one_ray: object) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    sample = Sample(
        sample_id="a",
        image=b"-",
        image_name="a.png",
        turns=caption_turns("text"),
        source="data",
        meta={},
    )
    (shards / "a.tar").write_bytes(tar_bytes([sample]))
    for kind, number in (("data", 0), ("cluster", 0), ("data", 1), ("checkpoint", 0)):
        folder = RunFolder.at(str(tmp_path / f"{kind}-{number}"))
        folder.begin("name: failing\n")
        error, text = ERRORS[kind]
        with pytest.raises(error, match=text):
            run_units(
                plan_shards(folder, find_shards([str(shards)]), 8),
                folder,
                kind="rows",
                stage=Failing,
                stage_options={"kind": kind},
                what="failing",
                pool=Pool(max_actors=1, cpus=0.5, num_readers=number),
            )


def test_errors_survive_pickling() -> None:
    for error in (DataError("x: y"), ClusterError("z")):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)


def test_calls_to_a_head_that_is_gone_are_no_bug_of_ours() -> None:
    from ray import exceptions

    for gone in (
        exceptions.RpcError("failed to connect to all addresses"),
        exceptions.GetTimeoutError("Get timed out"),
        exceptions.LocalRayletDiedError("the raylet died"),
        ConnectionError("ray.init has to be called"),
    ):
        with pytest.raises(ClusterError, match="run the same command again"), own_errors():
            raise gone
    for bug in (exceptions.UserCodeException("in a function"), ValueError("a bug")):
        with pytest.raises(type(bug)), own_errors():
            raise bug
