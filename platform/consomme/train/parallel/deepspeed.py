"""DeepSpeed's ZeRO: sharded optimizer, gradients and parameters.

DeepSpeed fixes the trained parameters at the start, and its checkpoints load only with the same
number of ranks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from consomme.base.checked import Checked, rule
from consomme.base.errors import CheckpointError, RecipeError
from consomme.models.anatomy import Named, image_parameters, module_roots
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
    existing,
    make_optimizer,
    names_of,
    world_size,
)
from consomme.train.parts import ParamGroup

REDUCE_BUCKET = 500_000_000
"""Elements of the buffer in which DeepSpeed reduces gradients; its default, allocated in full on a
GPU."""

MAX_LIVE_PARAMETERS = 1_000_000_000
"""Most parameters that ZeRO-3 keeps gathered; DeepSpeed's default."""


@PARALLELISMS.register("deepspeed")
@dataclass(frozen=True, kw_only=True)
class DeepSpeed(Checked, Parallelism):
    """DeepSpeed's ZeRO: optimizer (1), gradients (2) and parameters (3) are sharded."""

    can_rotate: ClassVar[bool] = False

    stage: Literal[1, 2, 3] = 2
    """What is sharded: 1 the optimizer state, 2 also gradients, 3 also parameters."""

    offload: bool = False
    """Keep the optimizer state on the CPU; stages 2 and 3."""

    @rule
    def _offload_stages(self) -> Iterator[str]:
        if self.offload and self.stage == 1:
            yield "offload: found true at stage 1, expected stage 2 or 3"

    def __call__(
        self,
        model: nn.Module,
        groups: Sequence[ParamGroup],
        device: torch.device,
        trainable_names: Collection[str] | None = None,
    ) -> ShardedModel:
        """Hand model and optimizer to DeepSpeed."""
        if not dist.is_initialized():
            raise RecipeError(
                "deepspeed needs a process group; train through Ray Train or torchrun"
            )
        return _ZeroModel(model.to(device), groups, self, names_of(groups, trainable_names))

    def step_bytes(
        self, tensors: ModelTensors, *, world: int, num_micro_batches: int, device: str
    ) -> dict[str, Bytes]:
        """Count what each stage shards, and DeepSpeed's buffers."""
        num_elements, trained = tensors.num_elements, tensors.num_trained
        shard = self._shard_size(tensors, world)
        # On a CPU, only what is written to takes memory.
        bucket = REDUCE_BUCKET if device == "cuda" else min(REDUCE_BUCKET, trained)
        weights, buffers = num_elements, bucket
        if self.stage == 3:
            weights = sum(-(-size // world) for size in tensors.sizes)
            buffers += min(num_elements, MAX_LIVE_PARAMETERS)
        offloadable = {
            # The optimizer works on its own copy of its shard of the weights.
            WEIGHTS: FLOAT_BYTES * shard,
            GRADIENTS: FLOAT_BYTES * (trained if self.stage == 1 else shard),
            OPTIMIZER: MOMENT_BYTES * shard,
        }
        kinds = {kind: Bytes(0, n) if self.offload else Bytes(n) for kind, n in offloadable.items()}
        own = kinds[WEIGHTS]
        kinds[WEIGHTS] = Bytes(FLOAT_BYTES * weights + own.device, own.host)
        return kinds | {BUFFERS: Bytes(FLOAT_BYTES * buffers)}

    def _shard_size(self, tensors: ModelTensors, world: int) -> int:
        """Return the trained elements of one rank's shard."""
        if self.stage == 3:
            # Each tensor is sharded by itself.
            return sum(
                -(-size // world)
                for size, trained in zip(tensors.sizes, tensors.is_trained, strict=True)
                if trained
            )
        # Each group is flattened, and padded to a multiple of twice the ranks.
        groups: dict[int, int] = {}
        for size, group in zip(tensors.sizes, tensors.group, strict=True):
            if group is not None:
                groups[group] = groups.get(group, 0) + size
        return sum(-(-size // (2 * world)) * 2 for size in groups.values())

    def checkpoint_bytes(self, tensors: ModelTensors) -> int:
        """Count the optimizer's own copy of the weights as well; stage 3 has no other."""
        weights = FLOAT_BYTES if self.stage == 3 else 2 * FLOAT_BYTES
        return (weights + MOMENT_BYTES) * tensors.num_trained


class _ZeroModel:
    """A model that DeepSpeed wraps."""

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[ParamGroup],
        options: DeepSpeed,
        trainable_names: frozenset[str],
    ) -> None:
        import deepspeed

        if next(model.parameters()).device.type == "cpu":
            # DeepSpeed's reduction through shared memory would be compiled first, for a minute.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.stage, self.trainable_names = options.stage, trainable_names
        self._has_gradients = False
        """Whether there are gradients that no optimizer step has used."""
        of_images = image_parameters(model) if options.stage == 3 else {}
        zero: dict[str, Any] = {"stage": options.stage}
        if options.offload:
            zero["offload_optimizer"] = {"device": "cpu"}
        self.model, self.optimizer, *_ = deepspeed.initialize(
            model=model,
            # AdamW of torch: DeepSpeed's would be compiled first, for a minute, on every machine.
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
        if of_images:
            self._keep_gathered(of_images)

    def _keep_gathered(self, named: Named) -> None:
        """Keep the parameters that images pass through gathered, and let no call of them wait.

        DeepSpeed gathers a module's parameters when it is called, and records the calls to gather
        ahead. Some families call their projector for each image, and ranks have different numbers
        of images: they would record different calls, and wait for one another.
        """
        module = self.model.module
        found = dict(module.named_parameters())
        kept = [found[name] for name in named if not found[name].ds_persist]
        for parameter in kept:
            parameter.ds_persist = True
        self.optimizer.persistent_parameters.extend(kept)
        if kept:
            kept[0].all_gather(kept)
        quiet = {
            id(hooks)
            for path in module_roots(module, named)
            for part in module.get_submodule(path).modules()
            for hooks in (part._forward_hooks, part._forward_pre_hooks)
        }
        offload = self.optimizer.parameter_offload
        for handle in (*offload.forward_hooks, *offload.backward_hooks):
            if id(handle.hooks_dict_ref()) in quiet:
                handle.remove()

    def start_micro_batch(self, *, is_last: bool) -> None:
        self.model.set_gradient_accumulation_boundary(is_last)

    def set_param_groups(self, groups: Sequence[ParamGroup]) -> None:
        raise AssertionError("DeepSpeed cannot rotate")

    def backward(self, loss: Tensor) -> None:
        self._has_gradients = True
        self.model.backward(loss)

    def step(self, max_norm: float) -> float:
        self.optimizer.clip_grad = max_norm
        self.model.step()
        self._has_gradients = False
        return check_norm(float(self.model.get_global_grad_norm()))

    def save(self, folder: Path) -> None:
        self.model.save_checkpoint(str(folder), tag="zero", exclude_frozen_parameters=True)
        if dist.get_rank() == 0:
            (folder / "zero" / "ranks").write_text(str(world_size()))

    def load(self, folder: Path) -> None:
        ranks = int(existing(folder / "zero" / "ranks").read_text())
        if ranks != world_size():
            raise CheckpointError(
                f"{folder}: the checkpoint was written by {ranks} ranks of DeepSpeed, which loads"
                f" it with as many only, found {world_size()}; start that many workers, or train"
                " with {name: fsdp2}, whose checkpoints load at any number"
            )
        if self._has_gradients:
            # The only way to clear gradients in every stage; the weights it changes are read below.
            self.model.step()
            self._has_gradients = False
        self.model.load_checkpoint(str(folder), tag="zero", load_module_strict=False)

    def trainable_state_dict(self) -> dict[str, Tensor]:
        import deepspeed

        found: dict[str, Tensor] = {}
        for name, parameter in self.model.module.named_parameters():
            if name not in self.trainable_names:
                continue
            gathered: Any = contextlib.nullcontext()
            if self.stage == 3:
                gathered = deepspeed.zero.GatheredParameters([parameter])
            with gathered:
                if dist.get_rank() == 0:
                    found[name] = parameter.detach().cpu().clone()
        return found
