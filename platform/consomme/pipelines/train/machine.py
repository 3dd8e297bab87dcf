"""Check whether a planned training fits into the memory of the machines.

Only exact figures refuse a run, and only if it cannot fit wherever its workers are placed;
estimates only warn.
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
    """The machines that workers run on, as far as known."""

    device: str
    """`cpu` or `cuda`."""

    gpu_name: str | None = None
    gpu_bytes: int | None = None
    """Memory of one GPU."""

    memory_bytes: int | None = None
    """Main memory of the largest machine that Ray may use."""

    num_machines: int = 1

    def workers_on_one(self, num_workers: int) -> int:
        """Return how many workers some machine has at least, however they are placed."""
        return -(-num_workers // self.num_machines)


def this_machine() -> Machine:
    """Describe the machine this process runs on, without Ray."""
    import torch

    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        return Machine(
            device="cuda",
            gpu_name=gpu.name,
            gpu_bytes=gpu.total_memory,
            memory_bytes=memory,
        )
    return Machine(device="cpu", memory_bytes=memory)


def machine_of_cluster(use_gpu: bool) -> Machine:
    """Describe the running Ray cluster; a Ray task on a GPU describes the GPU."""
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

    gpu = torch.cuda.get_device_properties(0)
    return gpu.name, gpu.total_memory


def check(resources: ResourcePlan, machine: Machine, recipe: TrainRecipe) -> None:
    """Refuse what cannot fit, and warn of what may not fit.

    Raises:
        RecipeError: Weights, gradients and optimizer alone exceed the memory.
    """
    problem = misfit(resources, machine, recipe)
    if problem:
        raise RecipeError(problem)
    warning = _misfit(resources, machine, only_exact=False)
    if warning:
        logger.warning(
            "train: %s, if the estimate of activations is right; a smaller micro_batch or"
            " activation_checkpointing=true needs less",
            warning,
        )


def misfit(resources: ResourcePlan, machine: Machine, recipe: TrainRecipe) -> str | None:
    """Say why a run cannot fit, and what could help; None if no reason is known."""
    problem = _misfit(resources, machine, only_exact=True)
    if not problem:
        return None
    exact = ", ".join(
        f"{kind} {size_text(resources.kinds[kind].total)}"
        for kind in ("weights", "gradients", "optimizer")
    )
    return (
        f"parallelism={recipe.parallelism}, num_workers={recipe.num_workers}: {problem}"
        f" ({exact}, activations not counted); shard it over more workers or machines with"
        " parallelism={name: fsdp2} or {name: deepspeed, stage: 3}"
        + (", set offload: true" if machine.device == "cuda" else "")
        + ", select fewer layers, train lora instead of full, or start from a smaller model"
    )


def _misfit(resources: ResourcePlan, machine: Machine, *, only_exact: bool) -> str | None:
    if machine.gpu_bytes is not None:
        need = resources.on_device(only_exact=only_exact)
        if need > machine.gpu_bytes:
            return (
                f"a worker needs {size_text(need)} on its GPU, and {machine.gpu_name} has"
                f" {size_text(machine.gpu_bytes)}"
            )
    if machine.memory_bytes is not None:
        num = machine.workers_on_one(resources.num_workers)
        need = resources.on_machine(num, only_exact=only_exact)
        if need > machine.memory_bytes:
            return (
                f"{num} of {resources.num_workers} workers on one machine need {size_text(need)} of"
                f" its memory, and the largest has {size_text(machine.memory_bytes)}"
            )
    return None


def utilization(
    recipe: TrainRecipe, gpu_name: str | None, flops_per_token: float, tokens_per_s: float
) -> dict[str, float]:
    """Return model FLOPs utilization as a metric; empty if the GPU's peak is unknown."""
    from consomme.train.cost import peak_flops

    peak = peak_flops(gpu_name or "", recipe.precision)
    if peak is None:
        return {}
    return {"train/mfu_fraction": tokens_per_s * flops_per_token / (peak * recipe.num_workers)}


def size_text(num_bytes: float) -> str:
    """Format a number of bytes; 1 GB is 10^9 bytes."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= size:
            return f"{num_bytes / size:,.1f} {unit}"
    return f"{num_bytes / 1e3:,.1f} kB" if num_bytes else "0"
