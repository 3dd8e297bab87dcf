"""Train a tiny VLM on several ranks in many ways; run as a program, one process per rank.

    python ranks.py FOLDER OUT DEVICE RANK WORLD CASE…

Each case trains the same model on the same global batches. Rank 0 writes the results, one file per
case, for the test to check.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

NUM_LAYERS = 8
NUM_STEPS = 4
SAVED = 2
LAYERS = {
    "all": {"name": "all"},
    "sparse": {"name": "sparse_uniform"},
    "bottom": {"name": "consecutive", "where": "bottom"},
    "midbottom": {"name": "consecutive", "where": "mid_bottom"},
    "midtop": {"name": "consecutive", "where": "mid_top"},
    "top": {"name": "consecutive", "where": "top"},
    "hybrid": {"name": "hybrid"},
    "every": {"name": "every", "k": 5},
    "listed": {"name": "listed", "ids": [2, -1]},
    "scored": {"name": "by_score", "measure": "block_influence"},
    "rotating": {"name": "rotating", "count": 2, "every_steps": 1},
}
HOW = {
    "ddp": {"name": "ddp"},
    "fsdp2": {"name": "fsdp2"},
    "zero1": {"name": "deepspeed", "stage": 1},
    "zero2": {"name": "deepspeed", "stage": 2},
    "zero3": {"name": "deepspeed", "stage": 3},
    "fsdp2off": {"name": "fsdp2", "offload": True},
    "zero2off": {"name": "deepspeed", "stage": 2, "offload": True},
    "zero3off": {"name": "deepspeed", "stage": 3, "offload": True},
}
STATES = ("full", "lora")
SCORES = [0.1 * (number % 5) for number in range(NUM_LAYERS)]
CASES = [
    f"{how}-{layers}-{state}"
    for how in HOW
    for layers in LAYERS
    if layers != "rotating"
    for state in STATES
]


def chosen(layers: str, step: int = 0) -> tuple[int, ...]:
    from consomme.train.layers import LAYER_SELECTORS

    selector = LAYER_SELECTORS.build(LAYERS[layers])
    return selector.layers_at(step, selector(NUM_LAYERS, SCORES), NUM_LAYERS)


def run_ranks(
    folder: Path,
    out: Path,
    world: int,
    cases: Sequence[str],
    device: str = "cpu",
    program: str = "tests.support.ranks",
    seconds_per_case: int = 10,
) -> dict[str, Any]:
    """Train in `world` processes; returns the losses of each case, or its error."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                program,
                str(folder),
                str(out),
                device,
                str(rank),
                str(world),
                *cases,
            ],
            env=environment,
            cwd=ROOT,
            stderr=(out / f"stderr-{world}-{rank}").open("w"),
        )
        for rank in range(world)
    ]
    try:
        # A process may hang.
        deadline = time.monotonic() + 200 + seconds_per_case * len(cases)
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            if any(process.poll() for process in processes):
                break
            time.sleep(0.1)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    errors = [(out / f"stderr-{world}-{rank}").read_text()[-3000:] for rank in range(world)]
    assert [process.returncode for process in processes] == [0] * world, "\n".join(errors)
    found: dict[str, Any] = json.loads((out / f"losses-{world}.json").read_text())
    return found


def train(
    opened: tuple[Any, Any],
    case: str,
    device: str,
    rank: int,
    world: int,
    *,
    scratch: Path,
    resumes: bool = False,
    poisoned: bool = False,
) -> tuple[list[float], dict[str, Any], int]:
    """Return losses, on rank 0 all weights by name, and the bytes of the optimizer.

    With `poisoned`, the images of one step are NaN once, and training goes back to its checkpoint.
    """
    import torch

    from consomme.train.divergence import DivergedError
    from consomme.train.loop import ScheduleConfig, StepReport, fit_with_rotation
    from consomme.train.parallel.registry import PARALLELISMS
    from consomme.train.parallel.strategy import optimizer_bytes
    from consomme.train.parts import FROZEN, FULL, Part, Trainability
    from consomme.train.trainable import set_trainable
    from tests.support.conversations import batches_of

    how, layers, state = case.split("-")
    torch.manual_seed(0)
    original, processor = opened
    model = copy.deepcopy(original)
    part = FULL if state == "full" else Part(state="lora", rank=2, alpha=4)
    # Only with a frozen projector do gradients end at the lowest layer.
    projector = FROZEN if layers == "top" else FULL
    choice = Trainability(language_model=part, projector=projector)
    start = SAVED if resumes else 0

    def apply_trainability(selected: tuple[int, ...]) -> Any:
        return set_trainable(model, choice, selected, lr=1e-3, weight_decay=0.1).groups

    trainable_names = None
    if layers == "rotating":
        every = {index for step in range(NUM_STEPS) for index in chosen(layers, step)}
        trainable_names = {
            name for group in apply_trainability(tuple(every)) for name in group.names
        }
    groups = apply_trainability(chosen(layers, max(0, start - 1)))
    names = [name for name, _ in model.named_parameters()]
    sharded: Any = PARALLELISMS.build(HOW[how])(
        model, groups, torch.device(device), trainable_names
    )
    of_step = batches_of(model, processor, num_micro_batches=4)

    def batches(step: int) -> list[Any]:
        # Two micro-batches per rank and step at two ranks, four at one.
        parts = of_step(step)[rank::world]
        if poisoned and step == SAVED + 1 and not diverged:
            parts[0]["pixel_values"].fill_(torch.nan)
        return [{name: value.to(device) for name, value in part.items()} for part in parts]

    losses: list[float] = []
    diverged: list[str] = []

    def after_step(report: StepReport) -> None:
        losses.append(report.loss)
        if report.step == SAVED and not resumes:
            scratch.mkdir(parents=True, exist_ok=True)
            sharded.save(scratch)

    if resumes:
        sharded.load(scratch)

    def fit_from(start: int) -> None:
        fit_with_rotation(
            sharded,
            batches,
            ScheduleConfig(num_steps=NUM_STEPS),
            start=start,
            after_step=after_step,
            layers_at=lambda step: chosen(layers, step),
            apply_trainability=apply_trainability,
        )

    try:
        fit_from(start)
    except DivergedError as error:
        diverged.append(str(error))
        if layers == "rotating":
            sharded.set_param_groups(apply_trainability(chosen(layers, SAVED - 1)))
        sharded.load(scratch)
        del losses[SAVED:]
        fit_from(SAVED)
    assert bool(diverged) == poisoned
    # All weights: the test checks frozen ones as well.
    sharded.trainable_names = frozenset(names)
    return losses, sharded.trainable_state_dict(), optimizer_bytes(sharded.optimizer)


def main() -> None:
    import torch
    import torch.distributed as dist

    from consomme.base.errors import CheckpointError
    from consomme.models.weights import open_vlm
    from consomme.train.parallel.strategy import BACKENDS

    folder, out, device = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    rank, world = map(int, sys.argv[4:6])
    torch.set_num_threads(1)
    # As Ray Train does.
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group(
        BACKENDS[device], init_method=f"file://{out}/meet-{world}", rank=rank, world_size=world
    )
    opened = open_vlm(folder)
    found: dict[str, Any] = {}
    held: dict[str, int] = {}
    for case in sys.argv[6:]:
        # `case@2` resumes from the checkpoint that two ranks wrote, `case!` diverges on the way.
        name, _, ranks = case.rstrip("!").partition("@")
        scratch = out / f"{name}-{ranks or world}"
        try:
            losses, weights, held[case] = train(
                opened,
                name,
                device,
                rank,
                world,
                scratch=scratch,
                resumes=bool(ranks),
                poisoned=case.endswith("!"),
            )
        except CheckpointError as error:
            found[case] = str(error)
            continue
        found[case] = losses
        if rank == 0:
            torch.save(weights, out / f"{case}-{world}.pt")
        dist.barrier()
    if rank == 0:
        (out / f"losses-{world}.json").write_text(json.dumps(found))
        (out / f"bytes-{world}.json").write_text(json.dumps(held))
    dist.destroy_process_group()


if __name__ == "__main__":
    from consomme.base.process import end

    main()
    end(0)
