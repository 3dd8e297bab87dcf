"""Plan before training what it takes: memory by kind on each rank, checkpoints, and time saved.

What follows from shapes alone (weights, gradients, optimizer) is exact and may refuse a run; what
is estimated (activations) or decided by a library (buffers) only warns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from consomme.models.anatomy import language_layers
from consomme.train.activations import SavedActivations
from consomme.train.cost import StepCost
from consomme.train.parallel.memory import (
    ACTIVATIONS,
    BUFFERS,
    EXACT,
    FLOAT_BYTES,
    GRADIENTS,
    OPTIMIZER,
    WEIGHTS,
    Bytes,
    ModelTensors,
)
from consomme.train.parallel.strategy import Parallelism
from consomme.train.parts import Trained


def tensors_of(model: Any, trained: Trained) -> ModelTensors:
    """Read the sizes of a model that `set_trainable` marked; a tied matrix counts once."""
    groups = {name: n for n, group in enumerate(trained.groups) for name in group.names}
    layers = {name: n for n, layer in enumerate(language_layers(model)) for name in layer}
    named = dict(model.named_parameters())
    return ModelTensors(
        sizes=tuple(p.numel() for p in named.values()),
        rows=tuple(p.shape[0] if p.ndim else 1 for p in named.values()),
        is_trained=tuple(p.requires_grad for p in named.values()),
        layer=tuple(layers.get(name) for name in named),
        group=tuple(groups.get(name) if p.requires_grad else None for name, p in named.items()),
    )


@dataclass(frozen=True, kw_only=True)
class ResourcePlan:
    """What a training run takes."""

    num_workers: int
    num_micro_batches: int
    """In a step."""

    device: str
    """`cpu` or `cuda`."""

    num_parameters: int
    """Of the model as it is saved."""

    num_trained: int
    kinds: Mapping[str, Bytes]
    """One rank's memory during a step, by kind."""

    loading: Bytes
    """One rank's memory while it opens the model, before the model is sharded."""

    export: Bytes
    """Memory of rank 0 at the end to export the model, beside weights and optimizer."""

    activations: SavedActivations | None = None
    """Breakdown of activation memory; None if it is unknown."""

    checkpointing: bool = False
    """Whether activations are recomputed layer by layer."""

    checkpoint_bytes: int
    model_bytes: int
    cost: StepCost
    """Of one rank's step, on samples of mean length."""

    cost_of_all: StepCost
    """The same if all layers were trained."""

    flops_per_token: float
    """Model FLOPs per position, forward and backward."""

    notes: Sequence[str] = field(default_factory=tuple)
    """What was unknown, and what was assumed instead."""

    @property
    def saving_fraction(self) -> float:
        """Predicted share of the step's time that is saved against training all layers."""
        return self.cost.saving_against(self.cost_of_all)

    @property
    def exact(self) -> Bytes:
        """Weights, gradients and optimizer of one rank."""
        return _sum([self.kinds[kind] for kind in EXACT])

    @property
    def step(self) -> Bytes:
        """Peak memory of one rank in a step: activations are freed as gradients are computed."""
        rest = _sum([self.kinds[kind] for kind in (WEIGHTS, OPTIMIZER, BUFFERS)])
        gradients, activations = self.kinds[GRADIENTS], self.kinds[ACTIVATIONS].device
        # At the end of the backward pass all gradients exist, and with activation checkpointing
        # one recomputed layer as well.
        layer = max(self.activations.layers) if self.activations and self.checkpointing else 0
        peak = max(activations, gradients.device + layer)
        if self.num_micro_batches > 1:
            # Gradients of the step's earlier micro-batches exist already.
            peak = activations + gradients.device
        return Bytes(rest.device + peak, rest.host + gradients.host)

    def on_device(self, *, only_exact: bool) -> int:
        """Return the bytes that one worker needs on its GPU."""
        return max(self.loading.device, (self.exact if only_exact else self.step).device)

    def on_machine(self, num_workers: int, *, only_exact: bool) -> int:
        """Return the bytes of main memory that a machine needs for some of the workers.

        Args:
            num_workers: Workers on this machine, rank 0 among them.
            only_exact: Leave out activations and buffers.
        """
        step = self.exact if only_exact else self.step
        rest = _sum([self.kinds[kind] for kind in (WEIGHTS, OPTIMIZER)])
        if self.device == "cpu":
            at_export = num_workers * rest.total + self.export.total
            return max(num_workers * max(self.loading.total, step.total), at_export)
        at_export = num_workers * rest.host + self.export.host
        return max(num_workers * max(self.loading.host, step.host), at_export)


def make_plan(
    parallelism: Parallelism,
    tensors: ModelTensors,
    *,
    num_parameters: int,
    world: int,
    num_micro_batches: int,
    device: str,
    activations: SavedActivations | None,
    checkpointing: bool,
    cost: StepCost,
    cost_of_all: StepCost,
    flops_per_token: float,
    notes: Sequence[str] = (),
) -> ResourcePlan:
    """Put a plan together.

    Args:
        parallelism: How the model is sharded.
        tensors: Of the model with its adapters.
        num_parameters: Of the model without adapters.
        world: Number of ranks.
        num_micro_batches: In a step.
        device: `cpu` or `cuda`.
        activations: Activations of one micro-batch; None if they are unknown.
        checkpointing: Whether activations are recomputed layer by layer.
        cost: Of a step.
        cost_of_all: Of a step that trains all layers.
        flops_per_token: Model FLOPs per position.
        notes: What was unknown.
    """
    kinds = parallelism.step_bytes(
        tensors, world=world, num_micro_batches=num_micro_batches, device=device
    )
    activation_bytes = 0
    if activations is not None:
        activation_bytes = activations.checkpointed if checkpointing else activations.whole
    return ResourcePlan(
        num_workers=world,
        num_micro_batches=num_micro_batches,
        device=device,
        num_parameters=num_parameters,
        num_trained=tensors.num_trained,
        kinds=kinds | {ACTIVATIONS: Bytes(activation_bytes)},
        loading=parallelism.loading_bytes(tensors, device=device),
        export=parallelism.export_bytes(tensors, device=device),
        activations=activations,
        checkpointing=checkpointing,
        checkpoint_bytes=parallelism.checkpoint_bytes(tensors),
        model_bytes=FLOAT_BYTES * num_parameters,
        cost=cost,
        cost_of_all=cost_of_all,
        flops_per_token=flops_per_token,
        notes=tuple(notes),
    )


def _sum(some: Sequence[Bytes]) -> Bytes:
    return Bytes(sum(one.device for one in some), sum(one.host for one in some))
