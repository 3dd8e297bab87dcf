"""How a model is spread over ranks: replicated, sharded by torch, or sharded by DeepSpeed.

One decision is made here: the loop sees a few verbs (begin, backward, step, save, load), and all
that differs between the libraries stays behind them. Which parameters move is settled before a
model is wrapped, and by name, since wrapping may replace the parameters themselves. What never
moves is in no checkpoint: it is where the run started from.
"""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from consomme.base.errors import CheckpointError, RecipeError
from consomme.base.registry import Registry
from consomme.models.anatomy import anatomy
from consomme.train.divergence import check_norm
from consomme.train.parts import Group

BETAS = (0.9, 0.98)

CANNOT_ROTATE = (
    "layers: DeepSpeed settles at the start which parameters move, so they cannot rotate;"
    " expected parallelism={name: ddp} or {name: fsdp2}"
)


class Spread(Protocol):
    """A model and its optimizer on one rank, spread in some way."""

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

    def reselect(self, groups: Sequence[Group]) -> None:
        """Go on with other parameters, which are marked; what is left loses its optimizer state.

        Raises:
            RecipeError: This parallelism settles at the start what moves.
        """

    def moved(self) -> dict[str, Tensor]:
        """Weights that move, whole, by name, on the CPU; empty on every rank but the first.

        All ranks call it.
        """


class Parallelism(Protocol):
    """A way to spread a model."""

    def __call__(
        self,
        model: nn.Module,
        groups: Sequence[Group],
        device: torch.device,
        moving: Collection[str] | None = None,
    ) -> Spread:
        """Spread a model whose parameters are marked, and make its optimizer.

        Args:
            model: Bare.
            groups: What moves first.
            device: Where this rank computes.
            moving: Names of all that moves during the run; None for those of the groups.
        """


PARALLELISMS: Registry[Parallelism] = Registry("parallelism", "consomme/train/parallel.py")


def world_size() -> int:
    """Ranks of this run; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def make_optimizer(model: nn.Module, groups: Sequence[Group]) -> torch.optim.AdamW:
    """AdamW over groups of parameters, each with its own peak learning rate.

    Args:
        model: Without a wrapper that changes names; parameters that were frozen since the groups
            were made are left out.
        groups: By names of the bare model.
    """
    named = dict(model.named_parameters())
    made = []
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
    return torch.optim.AdamW(made, betas=BETAS)


@PARALLELISMS.register("ddp")
@dataclass(frozen=True, kw_only=True)
class Ddp:
    """Every rank holds the whole model; gradients are averaged (DistributedDataParallel)."""

    def __call__(
        self,
        model: nn.Module,
        groups: Sequence[Group],
        device: torch.device,
        moving: Collection[str] | None = None,
    ) -> Spread:
        """Replicate it; a single rank is left as it is."""
        return _Replicated(model.to(device), groups, device, _names(groups, moving))


class _Replicated:
    def __init__(
        self, bare: nn.Module, groups: Sequence[Group], device: torch.device, moving: frozenset[str]
    ) -> None:
        self.bare, self.device, self.moving = bare, device, moving
        self.model: Any = self._wrapped()
        self.optimizer: torch.optim.Optimizer = make_optimizer(bare, groups)

    def _wrapped(self) -> nn.Module:
        if world_size() == 1:
            return self.bare
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(self.bare, device_ids=ids)

    def reselect(self, groups: Sequence[Group]) -> None:
        # The old wrapper waits for gradients of what moved until now; it has to go first.
        self.model = None
        self.model = self._wrapped()
        self.optimizer = _carried(self.optimizer, make_optimizer(self.bare, groups))

    def begin(self, *, is_last: bool) -> None:
        if self.model is not self.bare:
            # What DistributedDataParallel.no_sync sets; it is looked at in the forward pass.
            self.model.require_backward_grad_sync = is_last

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, max_norm: float) -> float:
        return _torch_step(self.bare, self.optimizer, max_norm)

    def save(self, folder: Path) -> None:
        if not dist.is_initialized() or dist.get_rank() == 0:
            weights = _only(self.bare.state_dict(), self.moving)
            torch.save(
                {"model": weights, "optimizer": self.optimizer.state_dict()}, folder / "state.pt"
            )

    def load(self, folder: Path) -> None:
        saved = torch.load(_there(folder / "state.pt"), weights_only=True, map_location="cpu")
        _check_moved(folder, saved["model"], self.moving)
        self.bare.load_state_dict(saved["model"], strict=False)
        # Of all: what was left behind by rotating layers has gradients too.
        self.bare.zero_grad(set_to_none=True)
        self.optimizer.load_state_dict(saved["optimizer"])

    def moved(self) -> dict[str, Tensor]:
        if dist.is_initialized() and dist.get_rank() != 0:
            return {}
        weights = _only(self.bare.state_dict(), self.moving)
        return {name: value.cpu() for name, value in weights.items()}


@PARALLELISMS.register("fsdp2")
@dataclass(frozen=True, kw_only=True)
class Fsdp2:
    """Every rank holds a part of each tensor: torch's `fully_shard`.

    Checkpoints load at any number of ranks.
    """

    offload: bool = False
    """Keep parameters, gradients and optimizer on the CPU while they are not needed."""

    def __call__(
        self,
        model: nn.Module,
        groups: Sequence[Group],
        device: torch.device,
        moving: Collection[str] | None = None,
    ) -> Spread:
        """Shard layer by layer, then the rest."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

        if not dist.is_initialized():
            raise RecipeError("fsdp2 needs a process group; train through Ray Train")
        if not self.offload:
            model.to(device)
        mesh = init_device_mesh(device.type, (world_size(),))
        policy: Any = OffloadPolicy()
        if self.offload:
            policy = CPUOffloadPolicy(pin_memory=device.type == "cuda")
        for layer in model.get_submodule(anatomy(model).layers_path).children():
            fully_shard(layer, mesh=mesh, offload_policy=policy)
        fully_shard(model, mesh=mesh, offload_policy=policy)
        return _Sharded(model, groups, _names(groups, moving))


class _Sharded:
    def __init__(self, model: Any, groups: Sequence[Group], moving: frozenset[str]) -> None:
        self.model, self.moving = model, moving
        self.optimizer: torch.optim.Optimizer = make_optimizer(model, groups)

    def begin(self, *, is_last: bool) -> None:
        self.model.set_requires_gradient_sync(is_last)

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, max_norm: float) -> float:
        return _torch_step(self.model, self.optimizer, max_norm)

    def reselect(self, groups: Sequence[Group]) -> None:
        self.optimizer = _carried(self.optimizer, make_optimizer(self.model, groups))

    def _state(self) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import get_state_dict

        weights, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": _only(weights, self.moving), "optimizer": optimizer}

    def save(self, folder: Path) -> None:
        from torch.distributed.checkpoint.filesystem import FileSystemWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        save(self._state(), storage_writer=FileSystemWriter(folder / "shards"))

    def load(self, folder: Path) -> None:
        from torch.distributed.checkpoint.filesystem import FileSystemReader
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict
        from torch.distributed.checkpoint.state_dict_loader import load

        reader = FileSystemReader(_there(folder / "shards"))
        saved = reader.read_metadata().state_dict_metadata
        weights = [name.removeprefix("model.") for name in saved if name.startswith("model.")]
        _check_moved(folder, weights, self.moving)
        # Of all: what was left behind by rotating layers has gradients too.
        self.model.zero_grad(set_to_none=True)
        # torch makes room for what is saved only in an optimizer that knows nothing at all.
        self.optimizer.state.clear()
        state = self._state()
        load(state, storage_reader=reader)
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=StateDictOptions(strict=False),
        )

    def moved(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        is_first = dist.get_rank() == 0
        # One at a time: a rank never holds more than one whole tensor beside what it keeps.
        for name, value in _only(self.model.state_dict(), self.moving).items():
            whole = value.full_tensor().cpu() if hasattr(value, "full_tensor") else value.cpu()
            if is_first:
                found[name] = whole
        return found


@PARALLELISMS.register("deepspeed")
@dataclass(frozen=True, kw_only=True)
class DeepSpeed:
    """DeepSpeed's ZeRO: optimizer (1), gradients (2) and parameters (3) are spread."""

    stage: Literal[1, 2, 3] = 2
    """What is spread; each stage spreads what those before it do as well."""

    offload: bool = False
    """Keep the optimizer on the CPU; stages 2 and 3."""

    def __post_init__(self) -> None:
        """ZeRO-1 has no offload in DeepSpeed."""
        if self.offload and self.stage == 1:
            raise RecipeError("offload: found true at stage 1, expected stage 2 or 3")

    def __call__(
        self,
        model: nn.Module,
        groups: Sequence[Group],
        device: torch.device,
        moving: Collection[str] | None = None,
    ) -> Spread:
        """Hand model and optimizer to DeepSpeed."""
        if not dist.is_initialized():
            raise RecipeError(
                "deepspeed needs a process group; train through Ray Train or torchrun"
            )
        return _ZeRO(model.to(device), groups, self, _names(groups, moving))


class _ZeRO:
    def __init__(
        self, model: nn.Module, groups: Sequence[Group], how: DeepSpeed, moving: frozenset[str]
    ) -> None:
        import deepspeed

        if next(model.parameters()).device.type == "cpu":
            # DeepSpeed's own reduction through shared memory would be compiled first, for a minute.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.stage, self.moving = how.stage, moving
        self._is_between = False
        """Whether there are gradients that no step has used."""
        zero: dict[str, Any] = {"stage": how.stage}
        if how.offload:
            zero["offload_optimizer"] = {"device": "cpu"}
        self.model, self.optimizer, *_ = deepspeed.initialize(
            model=model,
            # Torch's own: DeepSpeed's would be compiled first, for a minute, on every machine.
            optimizer=make_optimizer(model, groups),
            config={
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": 1,
                "zero_optimization": zero,
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
                "steps_per_print": 1 << 30,
                "wall_clock_breakdown": False,
            },
            dist_init_required=False,
        )

    def begin(self, *, is_last: bool) -> None:
        self.model.set_gradient_accumulation_boundary(is_last)

    def reselect(self, groups: Sequence[Group]) -> None:
        raise RecipeError(CANNOT_ROTATE)

    def backward(self, loss: Tensor) -> None:
        self._is_between = True
        self.model.backward(loss)

    def step(self, max_norm: float) -> float:
        self.optimizer.clip_grad = max_norm
        self.model.step()
        self._is_between = False
        return check_norm(float(self.model.get_global_grad_norm()))

    def save(self, folder: Path) -> None:
        self.model.save_checkpoint(str(folder), tag="zero", exclude_frozen_parameters=True)
        if dist.get_rank() == 0:
            (folder / "zero" / "ranks").write_text(str(world_size()))

    def load(self, folder: Path) -> None:
        ranks = int(_there(folder / "zero" / "ranks").read_text())
        if ranks != world_size():
            raise CheckpointError(
                f"{folder}: the checkpoint was written by {ranks} ranks of DeepSpeed, which loads"
                f" it with as many only, found {world_size()}; start that many workers, or train"
                " with {name: fsdp2}, whose checkpoints load at any number"
            )
        if self._is_between:
            # The only way to be rid of gradients in every stage; what it moves is read anew below.
            self.model.step()
            self._is_between = False
        self.model.load_checkpoint(str(folder), tag="zero", load_module_strict=False)

    def moved(self) -> dict[str, Tensor]:
        import deepspeed

        found: dict[str, Tensor] = {}
        for name, parameter in self.model.module.named_parameters():
            if name not in self.moving:
                continue
            gathered: Any = contextlib.nullcontext()
            if self.stage == 3:
                gathered = deepspeed.zero.GatheredParameters([parameter])
            with gathered:
                if dist.get_rank() == 0:
                    found[name] = parameter.detach().cpu().clone()
        return found


def _carried(old: torch.optim.Optimizer, new: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Give a new optimizer the state of the parameters that the old one moved as well."""
    for group in new.param_groups:
        for parameter in group["params"]:
            if parameter in old.state:
                new.state[parameter] = old.state[parameter]
    return new


def _torch_step(model: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float) -> float:
    trained = [p for p in model.parameters() if p.requires_grad]
    norm: Any = nn.utils.clip_grad_norm_(trained, max_norm)
    if hasattr(norm, "full_tensor"):
        norm = norm.full_tensor()
    checked = check_norm(float(norm))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return checked


def _names(groups: Sequence[Group], moving: Collection[str] | None) -> frozenset[str]:
    return frozenset(moving or (name for group in groups for name in group.names))


def _only(state: Mapping[str, Any], moving: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if name in moving}


def _check_moved(folder: Path, saved: Collection[str], moving: Collection[str]) -> None:
    """Refuse a checkpoint of a run that moved something else."""
    strangers = sorted(set(saved) ^ set(moving))
    if strangers:
        raise CheckpointError(
            f"{folder}: the checkpoint holds {len(saved)} tensors and {len(moving)} move here, such"
            f" as {strangers[0]} in one only; it belongs to another choice of parts and layers"
        )


def _there(path: Path) -> Path:
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
