"""DeepSpeed's ZeRO: optimizer, gradients and parameters in parts.

It settles at the start which parameters move, and its checkpoints load at as many ranks only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from consomme.base.checked import Checked, rule
from consomme.base.errors import CheckpointError, RecipeError
from consomme.train.divergence import check_norm
from consomme.train.parallel.strategy import (
    PARALLELISMS,
    ShardedModel,
    make_optimizer,
    names_of,
    there,
    world_size,
)
from consomme.train.parts import ParamGroup

CANNOT_ROTATE = (
    "layers: DeepSpeed settles at the start which parameters move, so they cannot rotate;"
    " expected parallelism={name: ddp} or {name: fsdp2}"
)


@PARALLELISMS.register("deepspeed")
@dataclass(frozen=True, kw_only=True)
class DeepSpeed(Checked):
    """DeepSpeed's ZeRO: optimizer (1), gradients (2) and parameters (3) are sharded."""

    stage: Literal[1, 2, 3] = 2
    """What is sharded; each stage spreads what those before it do as well."""

    offload: bool = False
    """Keep the optimizer on the CPU; stages 2 and 3."""

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
        return _ZeRO(model.to(device), groups, self, names_of(groups, trainable_names))


class _ZeRO:
    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[ParamGroup],
        how: DeepSpeed,
        trainable_names: frozenset[str],
    ) -> None:
        import deepspeed

        if next(model.parameters()).device.type == "cpu":
            # DeepSpeed's own reduction through shared memory would be compiled first, for a minute.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.stage, self.trainable_names = how.stage, trainable_names
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

    def set_param_groups(self, groups: Sequence[ParamGroup]) -> None:
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
        ranks = int(there(folder / "zero" / "ranks").read_text())
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
