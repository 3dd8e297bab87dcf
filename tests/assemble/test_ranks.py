"""An assembled model with gated blocks trains on several ranks with the losses of one."""

from pathlib import Path

import pytest
from tests.assemble.test_own_class import CROSS, open_gates
from tests.support.assembled import PERCEIVER, made_of, vision
from tests.support.mixed_ranks import SAVED
from tests.support.ranks import run_ranks

from consomme.models.weights import save_vlm

HOW = ("ddp", "fsdp2", "zero2", "zero3")


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_every_parallelism_has_the_losses_of_one_rank(tmp_path: Path) -> None:
    """One rank has texts only, which pass through no block."""
    made = open_gates(made_of(PERCEIVER, vision("clip"), fusion=CROSS))
    folder = save_vlm(tmp_path / "model", made.model, made.processor)
    cases = [f"{how}-padded-all" for how in HOW] + ["fsdp2-packed-all"]
    resumed = ["fsdp2-padded-all@2"]
    program = {"program": "tests.support.mixed_ranks", "seconds_per_case": 60}
    two = run_ranks(folder, tmp_path, 2, [*cases, *resumed], **program)
    one = run_ranks(folder, tmp_path, 1, ["ddp-padded-all"], **program)
    for case in cases:
        assert two[case] == pytest.approx(one["ddp-padded-all"], rel=1e-5), case
    assert two["fsdp2-padded-all@2"] == two["fsdp2-padded-all"][SAVED:]
