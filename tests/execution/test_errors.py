"""What a worker finds wrong reaches the user as the worker said it, through a real Ray."""

import pickle
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

from consomme.base.errors import CheckpointError, ClusterError, DataError
from consomme.base.sample import ImageFile, Sample, caption_turns
from consomme.datasets.scenes import encode, make_scene, render
from consomme.execution.driver import run_job
from consomme.execution.errors import own_errors
from consomme.execution.job import ActorPool, Job
from consomme.execution.planning import plan_shards
from consomme.execution.session import ray_session, shared_ray
from consomme.execution.stage import BytesStage, DecodedSample, Outcome, UnitSample, UnitStage
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.shards import find_shards
from consomme.storage.writers import tar_bytes


class Hashing(UnitStage):
    """Needs pictures, and no model."""

    def work(self, samples: Sequence[DecodedSample]) -> Outcome:
        rows = pa.array([one.row for one in samples], pa.int32())
        names = pa.array([one.sample.sample_id for one in samples], pa.string())
        return Outcome(table=pa.table({"row": rows, "sample_id": names}))


class Failing(BytesStage):
    """Finds something wrong that its user can mend."""

    def __init__(self, kind: str) -> None:
        if kind == "checkpoint":
            raise CheckpointError("there is no chat template beside the model; put one there")
        self.kind = kind

    def work(self, samples: Sequence[UnitSample]) -> Outcome:
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
    (shards / "a.tar").write_bytes(tar_bytes([sample_of("a", b"-")]))
    for kind, number in (("data", 0), ("cluster", 0), ("data", 1), ("checkpoint", 0)):
        folder = RunFolder.at(str(tmp_path / f"{kind}-{number}"))
        folder.create("name: failing\n")
        error, text = ERRORS[kind]
        job = Job(
            name="failing",
            plan=plan_shards(folder, find_shards([str(shards)]), 8),
            folder=folder,
            kind="rows",
            stage=partial(Failing, kind),
            pool=ActorPool(max_actors=1, cpus=0.5, num_readers=number),
        )
        with pytest.raises(error, match=text):
            run_job(job)


@pytest.mark.ray
def test_too_many_rejects_end_the_run_with_the_reasons(tmp_path: Path, one_ray: object) -> None:
    """As soon as it is certain; what was done stays, and with a higher limit the rest is done."""
    shards = tmp_path / "shards"
    shards.mkdir()
    for number in range(4):
        image = encode(render(make_scene(number)))
        bad = number % 2
        (shards / f"{number}.tar").write_bytes(
            tar_bytes([sample_of(f"s{number}", image[: len(image) // (1 + bad)])])
        )
    folder = RunFolder.at(str(tmp_path / "run"))
    folder.create("name: hashing\n")
    plan = plan_shards(folder, find_shards([str(shards)]), 8)

    def go(limit: float) -> None:
        job = Job(
            name="hashing",
            plan=plan,
            folder=folder,
            kind="rows",
            stage=Hashing,
            pool=ActorPool(max_actors=1, cpus=0.5),
            max_reject_fraction=limit,
        )
        run_job(job)

    with pytest.raises(
        DataError,
        match=r"\d of 4 samples are rejected already \(image_truncated.* more than"
        r" max_reject_fraction=0.2",
    ):
        go(0.2)
    go(0.5)
    assert folder.total_counts() == {
        "samples": 2,
        "rejected": 2,
        "rejected/image_truncated": 2,
    }


def sample_of(name: str, image: bytes) -> Sample:
    return Sample(
        sample_id=name,
        images=(ImageFile(data=image, name=f"{name}.png"),),
        turns=caption_turns("text"),
        source="data",
        meta={},
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


@pytest.mark.ray
def test_a_shared_ray_inside_of_another_leaves_it_running(one_ray: object) -> None:
    """A loop shares one Ray among its stages, also where a program has started one before."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    with shared_ray(), ray_session():
        assert ray.get_runtime_context().get_node_id() == node
    assert ray.is_initialized()
    assert ray.get_runtime_context().get_node_id() == node
