"""Every parallelism has the same losses on a GPU as on a CPU, and resumes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support import ranks

from consomme.models.debug import make_debug_vlm

PLAIN = [f"{how}-sparse-{state}" for how in ranks.HOW for state in ranks.STATES]
ROTATING = ["ddp-rotating-full", "fsdp2-rotating-full"]
AGAIN = [*ROTATING, *(f"{how}-sparse-full" for how in ranks.HOW)]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_debug_vlm(tmp_path_factory.mktemp("debug") / "vlm", num_layers=ranks.NUM_LAYERS)


@pytest.fixture(scope="module")
def on_gpu(folder: Path, out: Path) -> dict[str, Any]:
    cases = [*PLAIN, *ROTATING, *(f"{case}@1" for case in AGAIN)]
    return ranks.run_ranks(folder, out, 1, cases, "cuda")


def test_all_lose_what_a_cpu_does(on_gpu: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    like = {case: case for case in ROTATING} | {
        case: f"ddp-sparse-{state}"
        for case in PLAIN
        for state in ranks.STATES
        if case.endswith(state)
    }
    expected = ranks.run_ranks(folder, tmp_path, 1, sorted(set(like.values())))
    for case, other in like.items():
        # Products are summed in another order, and AdamW's first steps amplify small differences.
        assert on_gpu[case] == pytest.approx(expected[other], rel=1e-3), case


@pytest.mark.parametrize("case", AGAIN)
def test_a_resumed_run_goes_on(on_gpu: dict[str, Any], out: Path, case: str) -> None:
    # Not bit-identical: a GPU accumulates embedding gradients in a varying order.
    assert on_gpu[f"{case}@1"] == pytest.approx(on_gpu[case][ranks.SAVED :], rel=1e-4)
    undisturbed = torch.load(out / f"{case}-1.pt", weights_only=True)
    resumed = torch.load(out / f"{case}@1-1.pt", weights_only=True)
    assert undisturbed.keys() == resumed.keys()
    for name, tensor in resumed.items():
        assert torch.allclose(tensor, undisturbed[name], rtol=1e-3, atol=1e-4), name
