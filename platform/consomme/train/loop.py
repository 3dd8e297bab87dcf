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
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy

from consomme.base.errors import DataError
from consomme.models.batches import IGNORE_INDEX
from consomme.train.parallel import Spread, world_size

Batch = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast the weights move."""

    num_steps: int
    warmup_fraction: float = 0.1
    """Share of the steps in which the learning rate grows to its peak; then it falls to a tenth of
    it along a cosine."""

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

    seconds: float
    lr: float
    """The largest of the groups'."""

    grad_norm: float
    """Of the gradients of all trained parameters, before they were shortened."""


def lr_factor(step: int, pace: Pace) -> float:
    """Share of the peak learning rate at step `step`, from 0."""
    warmup = max(1, round(pace.warmup_fraction * pace.num_steps))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, pace.num_steps - warmup)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))


def fit(
    spread: Spread,
    batches: Callable[[int], Iterable[Batch]],
    pace: Pace,
    *,
    start: int,
    after_step: Callable[[StepReport], None],
) -> None:
    """Train from step `start` to the end.

    Args:
        spread: A model that takes a batch's tensors as keywords, with its optimizer.
        batches: Step number -> this rank's micro-batches of that step.
        pace: Number of steps and learning rate.
        start: Steps already done.
        after_step: Called on every rank after every step.

    Raises:
        DataError: A step has no labelled token, or its loss is not finite.
    """
    world = world_size()
    spread.model.train()
    groups = spread.optimizer.param_groups
    for step in range(start, pace.num_steps):
        began = time.monotonic()
        factor = lr_factor(step, pace)
        for group in groups:
            group["lr"] = factor * group["peak_lr"]
        parts = list(batches(step))
        tokens = torch.tensor(float(sum(_num_labels(part) for part in parts)))
        total = _sum_over_ranks(tokens, parts)
        if total == 0:
            raise DataError(f"step {step + 1}: no labelled token in the whole batch")
        summed = torch.zeros(())
        for number, part in enumerate(parts):
            spread.begin(is_last=number == len(parts) - 1)
            loss = sum_nll(spread.model, part)
            # Gradients are averaged over ranks; times the ranks makes it a sum.
            spread.backward(loss * world / total)
            summed += loss.detach().cpu()
        mean = _sum_over_ranks(summed, parts) / total
        if not math.isfinite(mean):
            raise DataError(
                f"step {step + 1}: the loss is {mean}; lower lr, or look at the data of this step"
            )
        norm = spread.step(pace.max_grad_norm)
        after_step(
            StepReport(
                step=step + 1,
                loss=mean,
                num_tokens=int(total),
                seconds=time.monotonic() - began,
                lr=factor * max(group["peak_lr"] for group in groups),
                grad_norm=norm,
            )
        )


def sum_nll(model: Any, batch: Batch) -> Tensor:
    """Summed negative log-likelihood of the labelled tokens of one micro-batch, in nats."""
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    logits = model(**inputs).logits[:, :-1]
    targets = batch["labels"][:, 1:]
    labelled = targets != IGNORE_INDEX
    loss: Tensor = cross_entropy(logits[labelled].float(), targets[labelled], reduction="sum")
    return loss


def _num_labels(batch: Batch) -> int:
    return int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())


def _sum_over_ranks(value: Tensor, parts: Sequence[Batch]) -> float:
    """Add a number up over all ranks, on the device that the ranks talk by."""
    if dist.is_initialized():
        value = value.clone().to(parts[0]["labels"].device)
        dist.all_reduce(value)
    return float(value)
