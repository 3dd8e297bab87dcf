"""Every parallelism gives the same losses and changes exactly the selected parameters."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support import ranks
from torch import Tensor

from consomme.base.errors import RecipeError
from consomme.models.anatomy import anatomy
from consomme.models.debug import make_debug_vlm
from consomme.models.weights import build_from_config, open_vlm
from consomme.train.parallel.memory import OPTIMIZER, Bytes
from consomme.train.parallel.registry import PARALLELISMS
from consomme.train.parallel.strategy import peak_bytes
from consomme.train.parts import FULL, Part, Trainability
from consomme.train.planner import tensors_of
from consomme.train.trainable import set_trainable

PLAIN = [how for how in ranks.HOW if "off" not in how]
SHORT = [
    *(f"{how}-sparse-{state}" for how in PLAIN for state in ranks.STATES),
    *(f"{how}-sparse-full" for how in ranks.HOW if how not in PLAIN),
    "ddp-rotating-full",
    "fsdp2-rotating-full",
]
AGAIN = [
    "ddp-rotating-full",
    "fsdp2-rotating-full",
    "ddp-sparse-full",
    "fsdp2-sparse-lora",
    "zero1-sparse-full",
    "zero3-sparse-full",
]

POISONED = ["fsdp2-rotating-full", *(f"{how}-sparse-full" for how in PLAIN), "zero2off-sparse-full"]


@pytest.fixture(scope="module")
def debug_vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with enough layers for the selections to differ."""
    return make_debug_vlm(tmp_path_factory.mktemp("debug") / "vlm", num_layers=ranks.NUM_LAYERS)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def two(debug_vlm: Path, out: Path) -> dict[str, Any]:
    """Results of two ranks, some of them resumed."""
    again = [f"{case}@2" for case in AGAIN]
    return ranks.run_ranks(debug_vlm, out, 2, [*SHORT, *again, *(f"{case}!" for case in POISONED)])


@pytest.fixture(scope="module")
def one(debug_vlm: Path, out: Path, two: dict[str, Any]) -> dict[str, Any]:
    """What came of one rank, and of going on alone from what two ranks wrote."""
    cases = [f"{how}-sparse-full" for how in PLAIN]
    return ranks.run_ranks(
        debug_vlm,
        out,
        1,
        [*cases, "fsdp2-sparse-lora@2", "ddp-sparse-full@2", "zero2-sparse-full@2"],
    )


@pytest.mark.slow
def test_all_parallelisms_lose_alike(two: dict[str, Any], one: dict[str, Any]) -> None:
    for state in ranks.STATES:
        expected = two[f"ddp-sparse-{state}"]
        assert len(expected) == ranks.NUM_STEPS
        assert expected[-1] < expected[0]
        for case in SHORT:
            if case.endswith(f"sparse-{state}"):
                assert two[case] == pytest.approx(expected, rel=1e-5), case
    rotating = (two["ddp-rotating-full"], two["fsdp2-rotating-full"])
    assert rotating[0] == pytest.approx(rotating[1], rel=1e-5)
    assert rotating[0] != two["ddp-sparse-full"]
    for how in PLAIN:
        assert one[f"{how}-sparse-full"] == pytest.approx(two["ddp-sparse-full"], rel=1e-5), how


@pytest.mark.slow
@pytest.mark.parametrize("case", AGAIN)
def test_a_resumed_run_goes_on_bit_for_bit(two: dict[str, Any], out: Path, case: str) -> None:
    assert two[f"{case}@2"] == two[case][ranks.SAVED :]
    undisturbed = torch.load(out / f"{case}-2.pt", weights_only=True)
    for name, tensor in torch.load(out / f"{case}@2-2.pt", weights_only=True).items():
        assert torch.equal(tensor, undisturbed[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("case", POISONED)
def test_a_run_that_diverged_goes_on_from_its_checkpoint(
    two: dict[str, Any], out: Path, case: str
) -> None:
    assert two[f"{case}!"] == two[case]
    undisturbed = torch.load(out / f"{case}-2.pt", weights_only=True)
    for name, tensor in torch.load(out / f"{case}!-2.pt", weights_only=True).items():
        assert torch.equal(tensor, undisturbed[name]), name


@pytest.mark.slow
def test_going_on_with_another_number_of_ranks(two: dict[str, Any], one: dict[str, Any]) -> None:
    for case in ("fsdp2-sparse-lora", "ddp-sparse-full"):
        assert one[f"{case}@2"] == pytest.approx(two[case][ranks.SAVED :], rel=1e-5)
    refused = one["zero2-sparse-full@2"]
    assert "written by 2 ranks of DeepSpeed" in refused
    assert "train with {name: fsdp2}" in refused


def planned(folder: Path, case: str, world: int) -> tuple[dict[str, Bytes], int]:
    """What the planner expects of a case: memory of the first rank, and a checkpoint's size."""
    how, layers, state = case.split("-")
    part = FULL if state == "full" else Part(state="lora", rank=2, alpha=4)
    with torch.device("meta"):
        model = build_from_config(folder)
        choice = Trainability(language_model=part)
        tensors = tensors_of(model, set_trainable(model, choice, ranks.chosen(layers), lr=1e-3))
    parallelism = PARALLELISMS.build(ranks.HOW[how])
    kinds = parallelism.step_bytes(tensors, world=world, num_micro_batches=2, device="cpu")
    return kinds, parallelism.checkpoint_bytes(tensors)


@pytest.mark.slow
def test_the_optimizer_takes_what_was_planned(
    debug_vlm: Path, two: dict[str, Any], one: dict[str, Any], out: Path
) -> None:
    checked = 0
    for world in (1, 2):
        held = json.loads((out / f"bytes-{world}.json").read_text())
        for case, num_bytes in held.items():
            if any(mark in case for mark in ("@", "!", "rotating")):
                continue
            checked += 1
            kinds, _ = planned(debug_vlm, case, world)
            assert kinds[OPTIMIZER].total == num_bytes, f"{case} of {world} ranks"
    assert checked == len(SHORT) - 2 + len(PLAIN)


@pytest.mark.slow
def test_checkpoints_take_what_was_planned(debug_vlm: Path, two: dict[str, Any], out: Path) -> None:
    for case in (case for case in SHORT if "rotating" not in case):
        files = [path for path in (out / f"{case}-2").rglob("*") if path.is_file()]
        _, expected = planned(debug_vlm, case, 2)
        size = sum(path.stat().st_size for path in files)
        # Besides tensors, files hold names, shapes and steps: up to 4 kB per tensor and rank.
        assert expected <= size <= 1.02 * expected + 800_000, case


def check_bits(folder: Path, case: str, weights: dict[str, Tensor]) -> None:
    """Unselected tensors keep their bits, selected ones move."""
    model, _ = open_vlm(folder)
    parts = anatomy(model)
    _, layers, state = case.split("-")
    steps = range(ranks.NUM_STEPS if layers == "rotating" else 1)
    selected = {
        name
        for step in steps
        for index in ranks.chosen(layers, step)
        for name in parts.layers[index]
    }
    assert len(selected) < sum(map(len, parts.layers)) or layers == "all"
    moved = set() if layers == "top" else set(parts.projector)
    if layers == "all" and state == "full":
        moved |= {*parts.embeddings, *parts.head}
    still = moved | (selected if state == "full" else set())
    for name, before in model.named_parameters():
        after = weights.get(name, weights.get(name.replace(".weight", ".base_layer.weight")))
        assert after is not None, f"{case}: {name} is gone"
        assert torch.equal(after, before) != (name in still), f"{case}: {name}"
    adapters = {name for name in weights if "lora_B" in name}
    assert bool(adapters) == (state == "lora")
    assert all(weights[name].any() for name in adapters), "every adapter moved"
    module_paths = {name.partition(".lora_")[0] + ".weight" for name in adapters}
    assert module_paths <= selected


@pytest.mark.slow
@pytest.mark.parametrize("case", SHORT)
def test_unselected_tensors_keep_their_bits(
    debug_vlm: Path, two: dict[str, Any], out: Path, case: str
) -> None:
    check_bits(debug_vlm, case, torch.load(out / f"{case}-2.pt", weights_only=True))


@pytest.mark.long
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("world", [1, 2])
def test_every_strategy_under_every_parallelism(
    debug_vlm: Path, tmp_path: Path, world: int
) -> None:
    found = ranks.run_ranks(debug_vlm, tmp_path, world, ranks.CASES)
    for case in ranks.CASES:
        rest = case.partition("-")[2]
        assert found[case] == pytest.approx(found[f"ddp-{rest}"], rel=1e-5), case
        check_bits(debug_vlm, case, torch.load(tmp_path / f"{case}-{world}.pt", weights_only=True))


def test_sharding_needs_ranks() -> None:
    for node in ({"name": "fsdp2"}, {"name": "deepspeed"}):
        with pytest.raises(RecipeError, match="needs a process group"):
            PARALLELISMS.build(node)(torch.nn.Linear(1, 1), [], torch.device("cpu"))
    with pytest.raises(RecipeError, match="offload: found true at stage 1"):
        PARALLELISMS.build({"name": "deepspeed", "stage": 1, "offload": True})
    with pytest.raises(RecipeError, match="did you mean 'fsdp2'"):
        PARALLELISMS.build({"name": "fsdp"})


def test_peak_memory_never_falls_and_sees_what_was_held() -> None:
    before = peak_bytes(torch.device("cpu"))
    held = torch.ones(2**26)
    after = peak_bytes(torch.device("cpu"))
    num_bytes = held.numel() * held.element_size()
    del held
    # All of it is written, so all of it is resident, besides the rest of the process.
    assert num_bytes < after
    assert before <= after <= peak_bytes(torch.device("cpu"))
