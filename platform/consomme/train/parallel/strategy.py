"""The contract of a parallelism and of a model that is sharded by it, and what all of them share.

The training loop calls a few methods (start_micro_batch, backward, step, save, load); everything
that differs between libraries stays behind them. Which parameters are trained is decided before the
model is wrapped, and by name, because wrapping may replace the parameters themselves. Frozen
weights are in no checkpoint: they are those of the model that training started from.
"""

from __future__ import annotations

import resource
import sys
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from consomme.base.errors import CheckpointError
from consomme.base.registry import Registry
from consomme.train.parallel.memory import FLOAT_BYTES, MOMENT_BYTES, Bytes, ModelTensors
from consomme.train.parts import ParamGroup

BETAS = (0.9, 0.98)

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
"""Process group backends by device; what is offloaded to the CPU is reduced by gloo."""


class ShardedModel(Protocol):
    """A model and its optimizer on one rank, sharded by some parallelism."""

    model: Any
    """The module to call; its output has `logits`."""

    optimizer: torch.optim.Optimizer
    """Its parameter groups have a `peak_lr`."""

    def start_micro_batch(self, *, is_last: bool) -> None:
        """Prepare for a micro-batch, before its forward pass.

        All ranks have the same number of micro-batches in a step; gradients are reduced over ranks
        in the last one.
        """

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of a micro-batch; `loss` is this rank's share of the step's."""

    def step(self, max_norm: float) -> float:
        """Clip gradients, update weights, clear gradients; returns the norm before clipping.

        Raises:
            DivergedError: The norm is not finite; weights have to be loaded from a checkpoint.
        """

    def save(self, folder: Path) -> None:
        """Write this rank's part of trained weights and optimizer state; every rank calls it."""

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, and clear the gradients.

        Raises:
            CheckpointError: The checkpoint was written by another number of ranks, which this
                parallelism cannot load, or other parameters were trained.
        """

    def set_param_groups(self, groups: Sequence[ParamGroup]) -> None:
        """Train other parameters, which are marked already; the others lose their optimizer state.

        Called only if the parallelism `can_rotate`.
        """

    def trainable_state_dict(self) -> dict[str, Tensor]:
        """Return trained weights as whole CPU tensors by name; empty on every rank but the first.

        All ranks call it.
        """


class Parallelism(ABC):
    """A way to shard a model, and what it takes. Adding one is adding a registered subclass."""

    can_rotate: ClassVar[bool] = True
    """Whether the set of trained parameters may change during training."""

    @abstractmethod
    def __call__(
        self,
        model: nn.Module,
        groups: Sequence[ParamGroup],
        device: torch.device,
        trainable_names: Collection[str] | None = None,
    ) -> ShardedModel:
        """Shard a model whose parameters are marked, and make its optimizer.

        Args:
            model: Not wrapped.
            groups: Parameter groups to train first.
            device: Device of this rank.
            trainable_names: All parameters that are trained at some step of the run; None for
                those of the groups.
        """

    @abstractmethod
    def step_bytes(
        self, tensors: ModelTensors, *, world: int, num_micro_batches: int, device: str
    ) -> dict[str, Bytes]:
        """Return what one rank holds during a step, by kind and without activations.

        Args:
            tensors: Of the whole model.
            world: Number of ranks; if they hold different amounts, the first one's is returned.
            num_micro_batches: In a step.
            device: `cpu` or `cuda`.
        """

    def checkpoint_bytes(self, tensors: ModelTensors) -> int:
        """Return the size of a checkpoint over all ranks; it holds only what is trained."""
        return (FLOAT_BYTES + MOMENT_BYTES) * tensors.num_trained

    def loading_bytes(self, tensors: ModelTensors, *, device: str) -> Bytes:
        """Return what one rank holds while it opens the model, before it is sharded."""
        whole = FLOAT_BYTES * tensors.num_elements
        # A model is opened in main memory and then moved to the device.
        return Bytes(whole, whole) if device == "cuda" else Bytes(whole)

    def export_bytes(self, tensors: ModelTensors, *, device: str) -> Bytes:
        """Return what rank 0 holds at the end to export the model, beside weights and optimizer.

        Trained weights are gathered, and the model that training started from is opened again.
        """
        return Bytes(0, FLOAT_BYTES * (tensors.num_elements + tensors.num_trained))


PARALLELISMS: Registry[Parallelism] = Registry("parallelism", "consomme/train/parallel/registry.py")


def world_size() -> int:
    """Return the number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def make_optimizer(model: nn.Module, groups: Sequence[ParamGroup]) -> torch.optim.AdamW:
    """Make AdamW over parameter groups, each with its own peak learning rate.

    Args:
        model: Without a wrapper that changes names. Parameters that were frozen after the groups
            were made are left out.
        groups: By names of the model's parameters.
    """
    named = dict(model.named_parameters())
    param_groups: list[dict[str, Any]] = []
    for group in groups:
        some = [named[name] for name in group.names if named[name].requires_grad]
        if some:
            param_groups.append(
                {
                    "params": some,
                    "lr": group.lr,
                    "peak_lr": group.lr,
                    "weight_decay": group.weight_decay,
                }
            )
    # torch's default runs several kernels, each of which reads and writes all state; fused is one.
    is_fused = all(p.device.type == "cuda" for group in param_groups for p in group["params"])
    return torch.optim.AdamW(param_groups, betas=BETAS, fused=is_fused or None)


def names_of(
    groups: Sequence[ParamGroup], trainable_names: Collection[str] | None
) -> frozenset[str]:
    """Return the names of all parameters that are trained at some step of a run."""
    return frozenset(trainable_names or (name for group in groups for name in group.names))


def only(state: Mapping[str, Any], trainable_names: Collection[str]) -> dict[str, Any]:
    """Return the entries of a state dict that are trained."""
    return {name: value for name, value in state.items() if name in trainable_names}


def check_trainable_names(
    folder: Path, saved: Collection[str], trainable_names: Collection[str]
) -> None:
    """Refuse a checkpoint of a run that trained other parameters."""
    differing = sorted(set(saved) ^ set(trainable_names))
    if differing:
        raise CheckpointError(
            f"{folder}: the checkpoint holds {len(saved)} tensors and {len(trainable_names)} are"
            f" trained here, such as {differing[0]} in one only; it belongs to another choice of"
            " parts and layers"
        )


def existing(path: Path) -> Path:
    """Return a path inside a checkpoint.

    Raises:
        CheckpointError: The path does not exist: another parallelism wrote the checkpoint.
    """
    if not path.exists():
        raise CheckpointError(
            f"{path.parent}: no {path.name} in this checkpoint; it was written with another"
            " parallelism, expected the one it is loaded with"
        )
    return path


def peak_bytes(device: torch.device) -> int:
    """Return the peak memory so far of the rank that held most.

    On a GPU this is what tensors took; elsewhere it is resident memory, libraries included.
    """
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
        # Kilobytes on Linux, bytes on a Mac.
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if dist.is_initialized():
        most = torch.tensor(peak, dtype=torch.int64, device=device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        peak = int(most)
    return peak


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the memory of an optimizer's state on this rank; scalars are not counted."""
    states: Mapping[Any, Mapping[str, Any]] = optimizer.state
    total = 0
    for state in states.values():
        for value in state.values():
            if isinstance(value, Tensor) and value.numel() > 1:
                local = value.to_local() if hasattr(value, "to_local") else value
                total += local.numel() * local.element_size()
    return total
