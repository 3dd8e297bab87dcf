"""Whether a planned training fits where it is to run.

One decision is made here: only what is certain stops a run, and only if it cannot fit wherever
workers are placed; what is estimated warns.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from consomme.base.errors import RecipeError
from consomme.pipelines.train.recipe import TrainRecipe

if TYPE_CHECKING:
    from consomme.train.planner import ResourcePlan

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where workers run, as far as it is known."""

    device: str
    """`cpu` or `cuda`."""

    gpu_name: str | None = None
    gpu_bytes: int | None = None
    """Memory of one GPU."""

    memory_bytes: int | None = None
    """Main memory of the largest machine, as far as Ray may use it."""

    num_machines: int = 1

    def workers_on_one(self, num_workers: int) -> int:
        """Workers that one machine has at least, however they are placed."""
        return -(-num_workers // self.num_machines)


def this_machine() -> Machine:
    """Look at the machine this runs on, without Ray."""
    import torch

    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        return Machine(
            device="cuda",
            gpu_name=found.name,
            gpu_bytes=found.total_memory,
            memory_bytes=memory,
        )
    return Machine(device="cpu", memory_bytes=memory)


def machine_of_cluster(use_gpu: bool) -> Machine:
    """Look at the running Ray cluster; a GPU is looked at by a task on one."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    memory = [
        int(node.get("memory", 0) + node.get("object_store_memory", 0))
        for node in nodes
        if node.get("CPU", 0) > 0
    ]
    name = size = None
    if use_gpu:
        name, size = ray.get(ray.remote(num_gpus=1, num_cpus=0)(_gpu).remote())
    return Machine(
        device="cuda" if use_gpu else "cpu",
        gpu_name=name,
        gpu_bytes=size,
        memory_bytes=max(memory, default=0) or None,
        num_machines=max(1, len(memory)),
    )


def _gpu() -> tuple[str, int]:
    import torch

    found = torch.cuda.get_device_properties(0)
    return found.name, found.total_memory


def check(made: ResourcePlan, machine: Machine, recipe: TrainRecipe) -> None:
    """Stop what cannot fit, and warn of what may not.

    Raises:
        RecipeError: Weights, gradients and optimizer alone are more than there is.
    """
    problem = misfit(made, machine, recipe)
    if problem:
        raise RecipeError(problem)
    doubt = _misfit(made, machine, only_exact=False)
    if doubt:
        logger.warning(
            "train: %s, if the estimate of activations is right; a smaller micro_batch or"
            " activation_checkpointing=true takes less",
            doubt,
        )


def misfit(made: ResourcePlan, machine: Machine, recipe: TrainRecipe) -> str | None:
    """Say why a run cannot fit, and what would; None if nothing is known to be against it."""
    found = _misfit(made, machine, only_exact=True)
    if not found:
        return None
    exact = ", ".join(
        f"{kind} {size_text(made.kinds[kind].total)}"
        for kind in ("weights", "gradients", "optimizer")
    )
    return (
        f"parallelism={recipe.parallelism}, num_workers={recipe.num_workers}: {found}"
        f" ({exact}, activations not counted); spread it over more workers or machines with"
        " parallelism={name: fsdp2} or {name: deepspeed, stage: 3}"
        + (", take offload: true" if machine.device == "cuda" else "")
        + ", select fewer layers, train lora instead of full, or start from a smaller model"
    )


def _misfit(made: ResourcePlan, machine: Machine, *, only_exact: bool) -> str | None:
    if machine.gpu_bytes is not None:
        need = made.on_device(only_exact=only_exact)
        if need > machine.gpu_bytes:
            return (
                f"a worker needs {size_text(need)} on its GPU, and {machine.gpu_name} has"
                f" {size_text(machine.gpu_bytes)}"
            )
    if machine.memory_bytes is not None:
        num = machine.workers_on_one(made.num_workers)
        need = made.on_machine(num, only_exact=only_exact)
        if need > machine.memory_bytes:
            return (
                f"{num} of {made.num_workers} workers on one machine need {size_text(need)} of its"
                f" memory, and the largest has {size_text(machine.memory_bytes)}"
            )
    return None


def utilization(
    recipe: TrainRecipe, gpu_name: str | None, flops_per_token: float, tokens_per_s: float
) -> dict[str, float]:
    """Share of the GPUs' peak that went into what the model asks for; empty if it is not known."""
    from consomme.train.cost import peak_flops

    peak = peak_flops(gpu_name or "", recipe.precision)
    if peak is None:
        return {}
    return {"train/mfu_fraction": tokens_per_s * flops_per_token / (peak * recipe.num_workers)}


def size_text(num_bytes: float) -> str:
    """Write a number of bytes as people read it; 1 GB is 10^9 bytes."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= size:
            return f"{num_bytes / size:,.1f} {unit}"
    return f"{num_bytes / 1e3:,.1f} kB" if num_bytes else "0"
