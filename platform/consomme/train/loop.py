"""The training loop of one rank, without Ray and without files.

The loss of a step is the sum over all labelled tokens of all ranks divided by their number, so the
result does not depend on how the batch is split into ranks and micro-batches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy

from consomme.base.errors import DataError
from consomme.models.batches import IGNORE_INDEX
from consomme.train.divergence import LossWatch
from consomme.train.modes import set_modes
from consomme.train.parallel.strategy import ShardedModel, world_size
from consomme.train.parts import ParamGroup

Batch = dict[str, Any]
"""Keywords of a model's `forward`, tensors or dicts of tensors, and `labels`."""

Schedule = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Number of steps, learning rate schedule and gradient clipping."""

    num_steps: int
    schedule: Schedule = "cosine"
    """How the learning rate decays after its peak."""

    warmup_fraction: float = 0.1
    """Share of the steps over which the learning rate rises linearly to its peak."""

    final_fraction: float = 0.1
    """Final learning rate as a share of the peak; ignored by `constant`."""

    max_grad_norm: float = 1.0
    """Gradients with a larger norm are scaled down to this norm."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """Metrics of one finished step."""

    step: int
    """Number of the step, counted from 1."""

    loss: float
    """Mean nats per labelled token over all ranks."""

    num_tokens: int
    """Labelled tokens over all ranks."""

    num_positions: int
    """Tokens over all ranks, images and prompts included, padding excluded."""

    seconds: float
    lr: float
    """Largest learning rate of all parameter groups."""

    grad_norm: float
    """Norm of all gradients before clipping."""


def lr_factor(step: int, schedule: ScheduleConfig) -> float:
    """Return the learning rate of a step, counted from 0, as a share of its peak."""
    warmup = max(1, round(schedule.warmup_fraction * schedule.num_steps))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, schedule.num_steps - warmup)
    left = {
        "cosine": 0.5 * (1 + math.cos(math.pi * done)),
        "linear": 1 - done,
        "constant": 1.0,
    }[schedule.schedule]
    return schedule.final_fraction + (1 - schedule.final_fraction) * left


def fit(
    sharded: ShardedModel,
    batches: Callable[[int], Iterable[Batch]],
    schedule: ScheduleConfig,
    *,
    start: int,
    after_step: Callable[[StepReport], None],
    stop: int | None = None,
    watch: LossWatch | None = None,
) -> None:
    """Train from step `start` to the end.

    Args:
        sharded: A model that takes the tensors of a batch as keywords, with its optimizer.
        batches: Maps a step, counted from 0, to this rank's micro-batches of it.
        schedule: Number of steps and learning rate.
        start: Number of steps already done.
        after_step: Called on every rank after every step.
        stop: Number of steps done when `fit` returns; None for all.
        watch: Checks each loss; None accepts every finite loss.

    Raises:
        DataError: A step has no labelled token.
        DivergedError: A loss or a gradient norm is not finite, or a loss exceeds the limit. Weights
            may have changed: load a checkpoint.
    """
    world = world_size()
    watch = watch or LossWatch()
    set_modes(sharded.model)
    groups = sharded.optimizer.param_groups
    for step in range(start, schedule.num_steps if stop is None else stop):
        began = time.monotonic()
        factor = lr_factor(step, schedule)
        for group in groups:
            group["lr"] = factor * group["peak_lr"]
        micro_batches = list(batches(step))
        sizes = torch.tensor([_sizes(batch) for batch in micro_batches], dtype=torch.float64).sum(
            dim=0
        )
        total, positions = _sum_over_ranks(sizes, micro_batches).tolist()
        if total == 0:
            raise DataError(f"step {step + 1}: no labelled token in the whole batch")
        losses = []
        for number, batch in enumerate(micro_batches):
            sharded.start_micro_batch(is_last=number == len(micro_batches) - 1)
            loss = sum_nll(sharded.model, batch)
            # Gradients are averaged over ranks; multiplied by the world size they are summed.
            sharded.backward(loss * world / total)
            losses.append(loss.detach())
        summed = torch.stack(losses).double().sum()
        mean = float(_sum_over_ranks(summed, micro_batches)) / total
        watch.check(step + 1, mean)
        norm = sharded.step(schedule.max_grad_norm)
        after_step(
            StepReport(
                step=step + 1,
                loss=mean,
                num_tokens=int(total),
                num_positions=int(positions),
                seconds=time.monotonic() - began,
                lr=factor * max(group["peak_lr"] for group in groups),
                grad_norm=norm,
            )
        )


def fit_with_rotation(
    sharded: ShardedModel,
    batches: Callable[[int], Iterable[Batch]],
    schedule: ScheduleConfig,
    *,
    start: int,
    after_step: Callable[[StepReport], None],
    layers_at: Callable[[int], tuple[int, ...]],
    apply_trainability: Callable[[tuple[int, ...]], Sequence[ParamGroup]],
    watch: LossWatch | None = None,
) -> None:
    """Train as `fit` does, but with other trained layers in other steps.

    Args:
        sharded: The model, with the layers of the last finished step trained; at the beginning,
            with those of step 0.
        batches: As in `fit`.
        schedule: As in `fit`.
        start: As in `fit`.
        after_step: As in `fit`.
        layers_at: Maps a step, counted from 0, to the layers that are trained in it.
        apply_trainability: Marks what is trained with some layers, and returns its parameter
            groups.
        watch: As in `fit`.
    """
    current = layers_at(max(0, start - 1))
    while start < schedule.num_steps:
        wanted = layers_at(start)
        if wanted != current:
            sharded.set_param_groups(apply_trainability(wanted))
            current = wanted
        stop = start + 1
        while stop < schedule.num_steps and layers_at(stop) == current:
            stop += 1
        fit(sharded, batches, schedule, start=start, after_step=after_step, stop=stop, watch=watch)
        start = stop


def sum_nll(model: Any, batch: Batch) -> Tensor:
    """Sum the negative log-likelihood of the labelled tokens of one micro-batch, in nats."""
    loss: Tensor = cross_entropy(*labelled_logits(model, batch), reduction="sum")
    return loss


def labelled_logits(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the logits of labelled tokens (S, V), float32, and their ids (S,), row by row."""
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    logits = model(**inputs).logits[:, :-1]
    targets = batch["labels"][:, 1:]
    labelled = targets != IGNORE_INDEX
    return logits[labelled].float(), targets[labelled]


def _sizes(batch: Batch) -> tuple[int, int]:
    """Count the labelled tokens of a micro-batch, and all its tokens without padding."""
    labels = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
    attention_mask = batch.get("attention_mask")
    if not isinstance(attention_mask, Tensor) or attention_mask.dim() == 4:
        # A packed row has no padding.
        return labels, batch["labels"].numel()
    return labels, int(attention_mask.sum())


def _sum_over_ranks(value: Tensor, batches: Sequence[Batch]) -> Tensor:
    """Sum numbers over all ranks, on the device that the batches are on."""
    if dist.is_initialized():
        value = value.to(batches[0]["labels"].device).clone()
        dist.all_reduce(value)
    return value.cpu()
