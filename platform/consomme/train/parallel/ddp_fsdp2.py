"""The parallelisms of torch itself: DDP replicates the model, FSDP2 shards each tensor."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from consomme.base.errors import RecipeError
from consomme.models.anatomy import language_model
from consomme.train.divergence import check_norm
from consomme.train.parallel.memory import (
    BUFFERS,
    FLOAT_BYTES,
    GRADIENTS,
    MOMENT_BYTES,
    OPTIMIZER,
    WEIGHTS,
    Bytes,
    ModelTensors,
)
from consomme.train.parallel.strategy import (
    PARALLELISMS,
    Parallelism,
    ShardedModel,
    check_trainable_names,
    existing,
    make_optimizer,
    names_of,
    only,
    world_size,
)
from consomme.train.parts import ParamGroup


@PARALLELISMS.register("ddp")
@dataclass(frozen=True, kw_only=True)
class Ddp(Parallelism):
    """Every rank holds the whole model; gradients are averaged (DistributedDataParallel)."""

    def __call__(
        self,
        model: nn.Module,
        groups: Sequence[ParamGroup],
        device: torch.device,
        trainable_names: Collection[str] | None = None,
    ) -> ShardedModel:
        """Replicate the model; a single rank needs no wrapper."""
        return _ReplicatedModel(model.to(device), groups, device, names_of(groups, trainable_names))

    def step_bytes(
        self, tensors: ModelTensors, *, world: int, num_micro_batches: int, device: str
    ) -> dict[str, Bytes]:
        """Count the whole model, and the buckets in which gradients are reduced."""
        trained = tensors.num_trained
        return {
            WEIGHTS: Bytes(FLOAT_BYTES * tensors.num_elements),
            GRADIENTS: Bytes(FLOAT_BYTES * trained),
            OPTIMIZER: Bytes(MOMENT_BYTES * trained),
            BUFFERS: Bytes(FLOAT_BYTES * trained if world > 1 else 0),
        }

    def export_bytes(self, tensors: ModelTensors, *, device: str) -> Bytes:
        """On a CPU nothing is gathered: the whole trained weights are there already."""
        if device == "cpu":
            return Bytes(0, FLOAT_BYTES * tensors.num_elements)
        return super().export_bytes(tensors, device=device)


class _ReplicatedModel:
    """A copy of the model on each rank, wrapped by DistributedDataParallel if there are several."""

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[ParamGroup],
        device: torch.device,
        trainable_names: frozenset[str],
    ) -> None:
        self.unwrapped, self.device, self.trainable_names = model, device, trainable_names
        self.model: Any = self._wrapped()
        self.optimizer: torch.optim.Optimizer = make_optimizer(model, groups)

    def _wrapped(self) -> nn.Module:
        if world_size() == 1:
            return self.unwrapped
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(self.unwrapped, device_ids=ids)

    def set_param_groups(self, groups: Sequence[ParamGroup]) -> None:
        # The old wrapper still expects gradients of the old parameters; it has to go first.
        self.model = None
        self.model = self._wrapped()
        self.optimizer = _with_state(self.optimizer, make_optimizer(self.unwrapped, groups))

    def start_micro_batch(self, *, is_last: bool) -> None:
        if self.model is not self.unwrapped:
            # What DistributedDataParallel.no_sync sets; the forward pass reads it.
            self.model.require_backward_grad_sync = is_last

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, max_norm: float) -> float:
        return _torch_step(self.unwrapped, self.optimizer, max_norm)

    def save(self, folder: Path) -> None:
        if not dist.is_initialized() or dist.get_rank() == 0:
            weights = only(self.unwrapped.state_dict(), self.trainable_names)
            torch.save(
                {"model": weights, "optimizer": self.optimizer.state_dict()}, folder / "state.pt"
            )

    def load(self, folder: Path) -> None:
        saved = torch.load(existing(folder / "state.pt"), weights_only=True, map_location="cpu")
        check_trainable_names(folder, saved["model"], self.trainable_names)
        self.unwrapped.load_state_dict(saved["model"], strict=False)
        # Of all parameters: layers that were rotated out have gradients too.
        self.unwrapped.zero_grad(set_to_none=True)
        self.optimizer.load_state_dict(saved["optimizer"])

    def trainable_state_dict(self) -> dict[str, Tensor]:
        if dist.is_initialized() and dist.get_rank() != 0:
            return {}
        weights = only(self.unwrapped.state_dict(), self.trainable_names)
        return {name: value.cpu() for name, value in weights.items()}


@PARALLELISMS.register("fsdp2")
@dataclass(frozen=True, kw_only=True)
class Fsdp2(Parallelism):
    """Every rank holds a shard of each tensor (`fully_shard`).

    Checkpoints load at any number of ranks.
    """

    offload: bool = False
    """Keep parameters, gradients and optimizer state on the CPU while they are not in use."""

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
        # Each call moves only what it shards to the device, which never holds the whole model.
        mesh = init_device_mesh(device.type, (world_size(),))
        policy: Any = OffloadPolicy()
        if self.offload:
            policy = CPUOffloadPolicy(pin_memory=device.type == "cuda")
        for layer in model.get_submodule(language_model(model).layers_path).children():
            fully_shard(layer, mesh=mesh, offload_policy=policy)
        fully_shard(model, mesh=mesh, offload_policy=policy)
        return _FullyShardedModel(model, groups, names_of(groups, trainable_names))

    def step_bytes(
        self, tensors: ModelTensors, *, world: int, num_micro_batches: int, device: str
    ) -> dict[str, Bytes]:
        """Count one rank's shards, and the layers that are gathered at the same time."""
        shards = [
            -(-rows // world) * (size // rows)
            for size, rows in zip(tensors.sizes, tensors.rows, strict=True)
        ]
        num_mine = sum(
            size for size, trained in zip(shards, tensors.is_trained, strict=True) if trained
        )
        by_layer: dict[int | None, list[int]] = {}
        for size, trained, layer in zip(
            tensors.sizes, tensors.is_trained, tensors.layer, strict=True
        ):
            sums = by_layer.setdefault(layer, [0, 0])
            sums[0] += size
            sums[1] += size if trained else 0
        layers = [sums for layer, sums in by_layer.items() if layer is not None]
        outside = by_layer.get(None, [0, 0])
        # One layer is computed while the next is gathered; what is outside the layers stays
        # gathered for the whole step.
        gathered = outside[0] + 2 * max((sums[0] for sums in layers), default=0)
        # Gradients are reduced layer by layer, but only in the last micro-batch of a step: those
        # of earlier ones are accumulated unsharded.
        gradients = tensors.num_trained
        if num_micro_batches == 1:
            gradients = outside[1] + 2 * max((sums[1] for sums in layers), default=0)
        kinds = {
            WEIGHTS: Bytes(FLOAT_BYTES * sum(shards)),
            GRADIENTS: Bytes(FLOAT_BYTES * num_mine),
            OPTIMIZER: Bytes(MOMENT_BYTES * num_mine),
        }
        if self.offload:
            kinds = {kind: Bytes(0, one.device) for kind, one in kinds.items()}
        return kinds | {BUFFERS: Bytes(FLOAT_BYTES * (gathered + gradients))}

    def loading_bytes(self, tensors: ModelTensors, *, device: str) -> Bytes:
        """The device never holds the whole model: it is sharded layer by layer as it is moved."""
        if device == "cuda":
            return Bytes(0, FLOAT_BYTES * tensors.num_elements)
        return super().loading_bytes(tensors, device=device)


class _FullyShardedModel:
    """A model that `fully_shard` sharded."""

    def __init__(
        self, model: Any, groups: Sequence[ParamGroup], trainable_names: frozenset[str]
    ) -> None:
        self.model, self.trainable_names = model, trainable_names
        self.optimizer: torch.optim.Optimizer = make_optimizer(model, groups)

    def start_micro_batch(self, *, is_last: bool) -> None:
        self.model.set_requires_gradient_sync(is_last)

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, max_norm: float) -> float:
        return _torch_step(self.model, self.optimizer, max_norm)

    def set_param_groups(self, groups: Sequence[ParamGroup]) -> None:
        self.optimizer = _with_state(self.optimizer, make_optimizer(self.model, groups))

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

        reader = FileSystemReader(existing(folder / "shards"))
        saved = reader.read_metadata().state_dict_metadata
        weights = [name.removeprefix("model.") for name in saved if name.startswith("model.")]
        check_trainable_names(folder, weights, self.trainable_names)
        # Of all parameters: layers that were rotated out have gradients too.
        self.model.zero_grad(set_to_none=True)
        # torch allocates the saved state only in an optimizer that has no state at all.
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
        # One at a time: a rank other than the first never holds more than one whole tensor.
        for name, value in only(self.model.state_dict(), self.trainable_names).items():
            whole = value.full_tensor().cpu() if hasattr(value, "full_tensor") else value.cpu()
            if is_first:
                found[name] = whole
        return found


def _with_state(old: torch.optim.Optimizer, new: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Copy the state of parameters that both optimizers have from the old to the new one."""
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
