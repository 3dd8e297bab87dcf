"""The training loop: one rank's view of it, without Ray and without files.

One decision is made here: the loss of a step is the sum over all labelled tokens of all ranks
divided by their number, so the result does not depend on how the batch is cut into ranks and
micro-batches.
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
from consomme.train.parallel.strategy import ShardedModel, world_size
from consomme.train.parts import ParamGroup

Batch = dict[str, Tensor]
Schedule = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How fast the weights move."""

    num_steps: int
    schedule: Schedule = "cosine"
    """How the learning rate falls after its peak."""

    warmup_fraction: float = 0.1
    """Share of the steps in which the learning rate grows to its peak."""

    final_fraction: float = 0.1
    """Share of the peak that is left at the end; `constant` stays at the peak."""

    max_grad_norm: float = 1.0
    """Gradients whose norm is larger are shortened to it."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one finished step looked like."""

    step: int
    """Steps done, from 1."""

    loss: float
    """Mean nats per labelled token over all ranks."""

    num_tokens: int
    """Labelled tokens over all ranks."""

    num_positions: int
    """Tokens over all ranks, pictures and questions included, padding not."""

    seconds: float
    lr: float
    """The largest of the groups'."""

    grad_norm: float
    """Of the gradients of all trained parameters, before they were shortened."""


def lr_factor(step: int, schedule: ScheduleConfig) -> float:
    """Share of the peak learning rate at step `step`, from 0."""
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
        sharded: A model that takes a batch's tensors as keywords, with its optimizer.
        batches: Step number -> this rank's micro-batches of that step.
        schedule: Number of steps and learning rate.
        start: Steps already done.
        after_step: Called on every rank after every step.
        stop: Steps that are done when it returns; None for all.
        watch: Judges each loss; None lets every number pass.

    Raises:
        DataError: A step has no labelled token.
        DivergedError: A loss or a gradient is no number, or a loss stands out. Weights may have
            moved: go on from a checkpoint.
    """
    world = world_size()
    watch = watch or LossWatch()
    sharded.model.train()
    groups = sharded.optimizer.param_groups
    for step in range(start, schedule.num_steps if stop is None else stop):
        began = time.monotonic()
        factor = lr_factor(step, schedule)
        for group in groups:
            group["lr"] = factor * group["peak_lr"]
        parts = list(batches(step))
        sizes = torch.tensor([_sizes(part) for part in parts], dtype=torch.float64).sum(dim=0)
        total, positions = _sum_over_ranks(sizes, parts).tolist()
        if total == 0:
            raise DataError(f"step {step + 1}: no labelled token in the whole batch")
        losses = []
        for number, part in enumerate(parts):
            sharded.begin(is_last=number == len(parts) - 1)
            loss = sum_nll(sharded.model, part)
            # Gradients are averaged over ranks; times the ranks makes it a sum.
            sharded.backward(loss * world / total)
            losses.append(loss.detach())
        summed = torch.stack(losses).double().sum()
        mean = float(_sum_over_ranks(summed, parts)) / total
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
    """Train as `fit` does, other layers in other steps.

    Args:
        sharded: The model, with the layers of the last step done; at the beginning of step 0.
        batches: As in `fit`.
        schedule: As in `fit`.
        start: Steps already done.
        after_step: As in `fit`.
        layers_at: Step, from 0 -> layers that are trained in it.
        apply_trainability: Layers -> the groups of what moves then, with the parameters marked.
        watch: As in `fit`.
    """
    now = layers_at(max(0, start - 1))
    while start < schedule.num_steps:
        wanted = layers_at(start)
        if wanted != now:
            sharded.set_param_groups(apply_trainability(wanted))
            now = wanted
        stop = start + 1
        while stop < schedule.num_steps and layers_at(stop) == now:
            stop += 1
        fit(sharded, batches, schedule, start=start, after_step=after_step, stop=stop, watch=watch)
        start = stop


def sum_nll(model: Any, batch: Batch) -> Tensor:
    """Summed negative log-likelihood of the labelled tokens of one micro-batch, in nats."""
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    logits = model(**inputs).logits[:, :-1]
    targets = batch["labels"][:, 1:]
    labelled = targets != IGNORE_INDEX
    loss: Tensor = cross_entropy(logits[labelled].float(), targets[labelled], reduction="sum")
    return loss


def _sizes(batch: Batch) -> tuple[int, int]:
    """Labelled tokens of a micro-batch, and all tokens without padding."""
    labels = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
    every = batch.get("attention_mask")
    if every is None or every.dim() == 4:
        # A packed row has no padding.
        return labels, batch["labels"].numel()
    return labels, int(every.sum())


def _sum_over_ranks(value: Tensor, parts: Sequence[Batch]) -> Tensor:
    """Add numbers up over all ranks, on the device that the ranks talk by."""
    if dist.is_initialized():
        value = value.to(parts[0]["labels"].device).clone()
        dist.all_reduce(value)
    return value.cpu()
