"""A rank with texts only trains along with others that have images, with the losses of one rank."""

from pathlib import Path
from typing import Any

import pytest
from tests.support.families import FAMILIES, write
from tests.support.mixed_ranks import SAVED
from tests.support.more_families import MORE_FAMILIES
from tests.support.ranks import run_ranks

PROGRAM = "tests.support.mixed_ranks"
HOW = ("ddp", "fsdp2", "zero1", "zero2", "zero3", "zero3all")


def folder_of(name: str, tmp_path: Path) -> Path:
    return write((FAMILIES | MORE_FAMILIES)[name], tmp_path / name)


def run(folder: Path, out: Path, world: int, cases: list[str]) -> dict[str, Any]:
    found = run_ranks(folder, out, world, cases, program=PROGRAM, seconds_per_case=40)
    assert set(found) == set(cases)
    return found


def losses(found: list[float]) -> Any:
    return pytest.approx(found, rel=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_rank_with_texts_only_trains_along(tmp_path: Path) -> None:
    folder = folder_of("qwen2_vl", tmp_path)
    two = run(folder, tmp_path, 2, ["ddp-padded-all", "ddp-padded-all@2", "fsdp2-packed-all"])
    one = run(folder, tmp_path, 1, ["ddp-padded-all"])
    assert two["ddp-padded-all"] == losses(one["ddp-padded-all"])
    assert two["fsdp2-packed-all"] == losses(one["ddp-padded-all"])
    assert two["ddp-padded-all@2"] == two["ddp-padded-all"][SAVED:]


@pytest.mark.long
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("family", ["qwen2_vl", "smolvlm", "lfm2_vl", "mllama", "gemma4"])
def test_every_parallelism_has_the_losses_of_one_rank(tmp_path: Path, family: str) -> None:
    """LFM2-VL projects one image after the other; mllama shows images to layers of their own."""
    folder = folder_of(family, tmp_path)
    rows = ("padded", "packed") if family in ("qwen2_vl", "smolvlm") else ("padded",)
    cases = [f"{how}-{some}-all" for how in HOW for some in rows]
    cases += ["ddp-padded-language", "zero3all-padded-language"]
    resumed = [f"{how}-{rows[-1]}-all@2" for how in HOW]
    two = run(folder, tmp_path, 2, [*cases, *resumed])
    alone = [*(f"ddp-{some}-all" for some in rows), "ddp-padded-language"]
    one = run(folder, tmp_path, 1, alone)
    for case in cases:
        assert two[case] == losses(one[f"ddp-{case.partition('-')[2]}"]), case
    for case in resumed:
        assert two[case] == two[case.removesuffix("@2")][SAVED:], case
