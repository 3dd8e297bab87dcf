"""What answers benchmarks is killed in the middle of a run; `make chaos` does it more often."""

from pathlib import Path

import pytest
from tests.chaos import engines

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.long, pytest.mark.timeout(3600)]


def test_the_loss_of_engine_actor_or_driver_changes_no_byte(tmp_path: Path) -> None:
    kinds = ["engine", "actor", "driver"]
    kills, differing, num_runs = engines.measure("evaluate", kinds, 1, "long", tmp_path)
    assert kills == dict.fromkeys(kinds, 1)
    assert (differing, num_runs) == (0, 3)
