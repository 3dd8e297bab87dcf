"""What torch itself offers to shard a model: copies of all of it, or shards of each tensor."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from consomme.base.errors import RecipeError
from consomme.models.anatomy import anatomy
from consomme.train.divergence import check_norm
from consomme.train.parallel.strategy import (
    PARALLELISMS,
    ShardedModel,
    check_trainable_names,
    make_optimizer,
    names_of,
    only,
    there,
    world_size,
)
from consomme.train.parts import ParamGroup


@PARALLELISMS.register("ddp")
@dataclass(frozen=True, kw_only=True)
class Ddp:
    """Every rank holds the whole model; gradients are averaged (DistributedDataParallel)."""

    def __call__(
        self,
        model: nn.Module,
        groups: Sequence[ParamGroup],
        device: torch.device,
        trainable_names: Collection[str] | None = None,
    ) -> ShardedModel:
        """Replicate it; a single rank is left as it is."""
        return _Replicated(model.to(device), groups, device, names_of(groups, trainable_names))


class _Replicated:
    def __init__(
        self,
        bare: nn.Module,
        groups: Sequence[ParamGroup],
        device: torch.device,
        trainable_names: frozenset[str],
    ) -> None:
        self.bare, self.device, self.trainable_names = bare, device, trainable_names
        self.model: Any = self._wrapped()
        self.optimizer: torch.optim.Optimizer = make_optimizer(bare, groups)

    def _wrapped(self) -> nn.Module:
        if world_size() == 1:
            return self.bare
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(self.bare, device_ids=ids)

    def set_param_groups(self, groups: Sequence[ParamGroup]) -> None:
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
            weights = only(self.bare.state_dict(), self.trainable_names)
            torch.save(
                {"model": weights, "optimizer": self.optimizer.state_dict()}, folder / "state.pt"
            )

    def load(self, folder: Path) -> None:
        saved = torch.load(there(folder / "state.pt"), weights_only=True, map_location="cpu")
        check_trainable_names(folder, saved["model"], self.trainable_names)
        self.bare.load_state_dict(saved["model"], strict=False)
        # Of all: what was left behind by rotating layers has gradients too.
        self.bare.zero_grad(set_to_none=True)
        self.optimizer.load_state_dict(saved["optimizer"])

    def trainable_state_dict(self) -> dict[str, Tensor]:
        if dist.is_initialized() and dist.get_rank() != 0:
            return {}
        weights = only(self.bare.state_dict(), self.trainable_names)
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
        groups: Sequence[ParamGroup],
        device: torch.device,
        trainable_names: Collection[str] | None = None,
    ) -> ShardedModel:
        """Shard layer by layer, then the rest."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

        if not dist.is_initialized():
            raise RecipeError("fsdp2 needs a process group; train through Ray Train")
        # Each call moves to the device what it is about to cut, so the whole model is never there.
        mesh = init_device_mesh(device.type, (world_size(),))
        policy: Any = OffloadPolicy()
        if self.offload:
            policy = CPUOffloadPolicy(pin_memory=device.type == "cuda")
        for layer in model.get_submodule(anatomy(model).layers_path).children():
            fully_shard(layer, mesh=mesh, offload_policy=policy)
        fully_shard(model, mesh=mesh, offload_policy=policy)
        return _Sharded(model, groups, names_of(groups, trainable_names))


class _Sharded:
    def __init__(
        self, model: Any, groups: Sequence[ParamGroup], trainable_names: frozenset[str]
    ) -> None:
        self.model, self.trainable_names = model, trainable_names
        self.optimizer: torch.optim.Optimizer = make_optimizer(model, groups)

    def begin(self, *, is_last: bool) -> None:
        self.model.set_requires_gradient_sync(is_last)

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, max_norm: float) -> float:
        return _torch_step(self.model, self.optimizer, max_norm)

    def set_param_groups(self, groups: Sequence[ParamGroup]) -> None:
        self.optimizer = _carried(self.optimizer, make_optimizer(self.model, groups))

    def _state(self) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import get_state_dict

        weights, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": only(weights, self.trainable_names), "optimizer": optimizer}

    def save(self, folder: Path) -> None:
        from torch.distributed.checkpoint.filesystem import FileSystemWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        save(self._state(), storage_writer=FileSystemWriter(folder / "shards"))

    def load(self, folder: Path) -> None:
        from torch.distributed.checkpoint.filesystem import FileSystemReader
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict
        from torch.distributed.checkpoint.state_dict_loader import load

        reader = FileSystemReader(there(folder / "shards"))
        saved = reader.read_metadata().state_dict_metadata
        weights = [name.removeprefix("model.") for name in saved if name.startswith("model.")]
        check_trainable_names(folder, weights, self.trainable_names)
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

    def trainable_state_dict(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        is_first = dist.get_rank() == 0
        # One at a time: a rank never holds more than one whole tensor beside what it keeps.
        for name, value in only(self.model.state_dict(), self.trainable_names).items():
            whole = value.full_tensor().cpu() if hasattr(value, "full_tensor") else value.cpu()
            if is_first:
                found[name] = whole
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
