"""The training loop: one rank's view of it, without Ray and without files.

One decision is made here: the loss of a step is the sum over all labelled tokens of all ranks
divided by their number, so the result does not depend on how the batch is cut into ranks and
micro-batches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from consomme.base.errors import DataError
from consomme.models.chat import IGNORE_INDEX

Batch = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast the weights move."""

    num_steps: int
    lr: float
    """Peak learning rate; linear warm-up, then cosine to a tenth."""

    warmup_fraction: float = 0.1
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0


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


def make_optimizer(model: nn.Module, pace: Pace) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; no decay on vectors."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": pace.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=pace.lr, betas=(0.9, 0.98))


def learning_rate(step: int, pace: Pace) -> float:
    """Learning rate of step `step`, from 0."""
    warmup = max(1, round(pace.warmup_fraction * pace.num_steps))
    if step < warmup:
        return pace.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, pace.num_steps - warmup)
    return pace.lr * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Callable[[int], Iterable[Batch]],
    pace: Pace,
    *,
    start: int,
    after_step: Callable[[StepReport], None],
) -> None:
    """Train from step `start` to the end.

    Args:
        model: Takes a batch's tensors as keywords and returns an object with `logits`; may be
            wrapped in DistributedDataParallel.
        optimizer: Over the trainable parameters.
        batches: Step number -> this rank's micro-batches of that step.
        pace: Number of steps and learning rate.
        start: Steps already done.
        after_step: Called on every rank after every step.

    Raises:
        DataError: A step has no labelled token, or its loss is not finite.
    """
    world = dist.get_world_size() if dist.is_initialized() else 1
    trained = [p for p in model.parameters() if p.requires_grad]
    model.train()
    for step in range(start, pace.num_steps):
        began = time.monotonic()
        lr = learning_rate(step, pace)
        for group in optimizer.param_groups:
            group["lr"] = lr
        parts = list(batches(step))
        tokens = torch.tensor(float(sum(_num_labels(part) for part in parts)))
        total = _sum_over_ranks(tokens)
        if total == 0:
            raise DataError(f"step {step + 1}: no labelled token in the whole batch")
        summed = torch.zeros(())
        for number, part in enumerate(parts):
            with _no_sync(model, last=number == len(parts) - 1):
                loss = sum_nll(model, part)
                # DistributedDataParallel averages gradients; times the ranks makes it a sum.
                (loss * world / total).backward()  # type: ignore[no-untyped-call]
            summed += loss.detach()
        mean = float(_sum_over_ranks(summed)) / total
        if not math.isfinite(mean):
            raise DataError(
                f"step {step + 1}: the loss is {mean}; lower lr, or look at the data of this step"
            )
        nn.utils.clip_grad_norm_(trained, pace.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        after_step(
            StepReport(
                step=step + 1,
                loss=mean,
                num_tokens=int(total),
                seconds=time.monotonic() - began,
                lr=lr,
            )
        )


def sum_nll(model: Any, batch: Batch) -> Tensor:
    """Summed negative log-likelihood of the labelled tokens of one micro-batch, in nats."""
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    logits = model(**inputs).logits[:, :-1]
    targets = batch["labels"][:, 1:]
    labelled = targets != IGNORE_INDEX
    loss: Tensor = nn.functional.cross_entropy(
        logits[labelled].float(), targets[labelled], reduction="sum"
    )
    return loss


def _num_labels(batch: Batch) -> int:
    return int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())


def _sum_over_ranks(value: Tensor) -> float:
    value = value.clone()
    if dist.is_initialized():
        dist.all_reduce(value)
    return float(value)


def _no_sync(model: Any, *, last: bool) -> Any:
    import contextlib

    if last or not hasattr(model, "no_sync"):
        return contextlib.nullcontext()
    return model.no_sync()
