"""A cloud takes a node away after a warning: what was learned until then is kept."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.chaos import harness
from tests.chaos.cluster import SmallCluster, small_cluster

from consomme.storage.ledger.run_folder import RunFolder

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]

NUM_STEPS = 300


@pytest.fixture
def cluster() -> Iterator[SmallCluster]:
    with small_cluster(1) as made:
        yield made


def recipe(folder: Path, **more: object) -> str:
    harness.write_shards(str(folder / "shards"), 16)
    return harness.train_recipe(
        f"{folder}/shards", num_steps=NUM_STEPS, micro_batch=4, checkpoint_every=1000, **more
    )


def decisions(root: Path) -> dict[str, Any]:
    (path,) = root.glob("train/*/manifest.json")
    return dict(RunFolder.at(str(path.parent)).manifest().decisions)


def test_the_last_step_before_a_node_goes_is_kept(cluster: SmallCluster, tmp_path: Path) -> None:
    runs = harness.Runs("train", recipe(tmp_path), tmp_path)
    calm, shaken = runs.fresh(), runs.fresh()
    assert runs.start(calm).wait(600) == 0, calm
    process = runs.start(shaken, {"RAY_ADDRESS": cluster.address})
    assert harness.wait_until(lambda: len(harness.curve(shaken)) > 5, process, 300)
    cluster.preempt_worker(0, notice_s=20)
    assert process.wait(600) == 0, shaken
    # No checkpoint was due: the one there is was made because of the notice.
    resumed = decisions(shaken)["resumed_from_step"]
    assert 5 < resumed < NUM_STEPS
    keys = ("step", "loss", "grad_norm", "num_tokens", "lr")
    one, other = (
        [[point[key] for key in keys] for point in harness.curve(root)] for root in (calm, shaken)
    )
    assert one == other


def test_with_fewer_workers_it_goes_on(cluster: SmallCluster, tmp_path: Path) -> None:
    # So slow that what rounding changes stays small over all steps.
    calm = harness.Runs("train", recipe(tmp_path, lr=1e-6), tmp_path / "calm")
    alone = calm.fresh()
    assert calm.start(alone).wait(600) == 0, alone
    cluster.add_worker()
    more = {"num_workers": 2, "min_workers": 1, "parallelism": "{name: fsdp2}", "lr": 1e-6}
    runs = harness.Runs("train", recipe(tmp_path, **more), tmp_path)
    shaken = runs.fresh()
    process = runs.start(shaken, {"RAY_ADDRESS": cluster.address})
    assert harness.wait_until(lambda: len(harness.curve(shaken)) > 5, process, 300)
    cluster.preempt_worker(0, notice_s=20, is_replaced=False)
    assert process.wait(600) == 0, shaken
    found = decisions(shaken)
    assert found["world_size"] == 1
    assert 5 < found["resumed_from_step"] < NUM_STEPS
    # The same samples in the same steps, whoever had them.
    losses = [[point["loss"] for point in harness.curve(root)] for root in (alone, shaken)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
