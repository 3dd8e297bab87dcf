"""A model that is sharded over ranks, whichever library does it: the contract, and what all share.

One decision is made here: the loop sees a few verbs (begin, backward, step, save, load), and all
that differs between the libraries stays behind them. Which parameters move is settled before a
model is wrapped, and by name, since wrapping may replace the parameters themselves. What never
moves is in no checkpoint: it is where the run started from.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from consomme.base.errors import CheckpointError
from consomme.base.registry import Registry
from consomme.train.parts import ParamGroup

BETAS = (0.9, 0.98)

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
"""What ranks talk through, by device; what is offloaded is spoken of from CPU to CPU."""


class ShardedModel(Protocol):
    """A model and its optimizer on one rank, sharded in some way."""

    model: Any
    """What is called; gives an object with `logits`."""

    optimizer: torch.optim.Optimizer
    """Its groups have a `peak_lr`."""

    def begin(self, *, is_last: bool) -> None:
        """Get ready for a micro-batch, before its forward pass.

        All ranks go through equally many in a step; gradients are averaged over ranks in the last.
        """

    def backward(self, loss: Tensor) -> None:
        """Add the micro-batch's gradients; the loss is this rank's share of the step's."""

    def step(self, max_norm: float) -> float:
        """Update, and forget the gradients; returns their norm before it was shortened.

        Raises:
            DivergedError: The norm is no number; what was done to the weights has to be undone.
        """

    def save(self, folder: Path) -> None:
        """Write this rank's part of what moves, and of the optimizer; every rank calls it."""

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, and forget gradients.

        Raises:
            CheckpointError: It was written by another number of ranks, and that matters here; or
                something else moved then.
        """

    def set_param_groups(self, groups: Sequence[ParamGroup]) -> None:
        """Go on with other parameters, which are marked; what is left loses its optimizer state.

        Raises:
            RecipeError: This parallelism settles at the start what moves.
        """

    def trainable_state_dict(self) -> dict[str, Tensor]:
        """Weights that move, whole, by name, on the CPU; empty on every rank but the first.

        All ranks call it.
        """


class Parallelism(Protocol):
    """A way to shard a model."""

    def __call__(
        self,
        model: nn.Module,
        groups: Sequence[ParamGroup],
        device: torch.device,
        trainable_names: Collection[str] | None = None,
    ) -> ShardedModel:
        """Shard a model whose parameters are marked, and make its optimizer.

        Args:
            model: Bare.
            groups: What moves first.
            device: Where this rank computes.
            trainable_names: Names of all that moves during the run; None for those of the groups.
        """


PARALLELISMS: Registry[Parallelism] = Registry("parallelism", "consomme/train/parallel/registry.py")


def world_size() -> int:
    """Ranks of this run; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def make_optimizer(model: nn.Module, groups: Sequence[ParamGroup]) -> torch.optim.AdamW:
    """AdamW over groups of parameters, each with its own peak learning rate.

    Args:
        model: Without a wrapper that changes names; parameters that were frozen since the groups
            were made are left out.
        groups: By names of the bare model.
    """
    named = dict(model.named_parameters())
    made: list[dict[str, Any]] = []
    for group in groups:
        some = [named[name] for name in group.names if named[name].requires_grad]
        if some:
            made.append(
                {
                    "params": some,
                    "lr": group.lr,
                    "peak_lr": group.lr,
                    "weight_decay": group.weight_decay,
                }
            )
    # By itself torch makes a handful of kernels of it, each of which reads and writes everything.
    is_fused = all(p.device.type == "cuda" for group in made for p in group["params"])
    return torch.optim.AdamW(made, betas=BETAS, fused=is_fused or None)


def names_of(
    groups: Sequence[ParamGroup], trainable_names: Collection[str] | None
) -> frozenset[str]:
    """Names of all that moves during a run."""
    return frozenset(trainable_names or (name for group in groups for name in group.names))


def only(state: Mapping[str, Any], trainable_names: Collection[str]) -> dict[str, Any]:
    """Leave what moves of a state."""
    return {name: value for name, value in state.items() if name in trainable_names}


def check_trainable_names(
    folder: Path, saved: Collection[str], trainable_names: Collection[str]
) -> None:
    """Refuse a checkpoint of a run that moved something else."""
    strangers = sorted(set(saved) ^ set(trainable_names))
    if strangers:
        raise CheckpointError(
            f"{folder}: the checkpoint holds {len(saved)} tensors and {len(trainable_names)} move"
            f" here, such as {strangers[0]} in one only; it belongs to another choice of parts"
            " and layers"
        )


def there(path: Path) -> Path:
    """Return the path if the checkpoint has it.

    Raises:
        CheckpointError: It was written with another parallelism.
    """
    if not path.exists():
        raise CheckpointError(
            f"{path.parent}: no {path.name} in this checkpoint; it was written with another"
            " parallelism, expected the one it is loaded with"
        )
    return path


def peak_bytes(device: torch.device) -> int:
    """Most memory that a rank has held so far: of its GPU, or of its process where there is none.

    Returns:
        Of the rank that held most. On a GPU what tensors took; else resident memory, libraries
        included.
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
    """Memory of an optimizer's state on this rank; single numbers are not counted."""
    states: Mapping[Any, Mapping[str, Any]] = optimizer.state
    total = 0
    for state in states.values():
        for value in state.values():
            if isinstance(value, Tensor) and value.numel() > 1:
                local = value.to_local() if hasattr(value, "to_local") else value
                total += local.numel() * local.element_size()
    return total
