"""Work out before training what it takes: memory by kind on each rank, checkpoints, and time saved.

One decision is made here: what follows from shapes alone (weights, gradients, optimizer) is exact
and may stop a run; what is estimated (activations) or lies with a library (buffers) only warns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any, NamedTuple

from consomme.models.anatomy import anatomy
from consomme.train.activations import SavedActivations
from consomme.train.cost import StepCost
from consomme.train.parallel.ddp_fsdp2 import Ddp, Fsdp2
from consomme.train.parallel.deepspeed import DeepSpeed
from consomme.train.parallel.strategy import Parallelism
from consomme.train.parts import Trained

WEIGHTS, GRADIENTS, OPTIMIZER = "weights", "gradients", "optimizer"
BUFFERS, ACTIVATIONS = "buffers", "activations"
EXACT = (WEIGHTS, GRADIENTS, OPTIMIZER)

FLOAT = 4
"""Bytes of a weight and of a gradient: both are float32 in every precision."""

MOMENTS = 8
"""Bytes of AdamW's two moments of one parameter."""

REDUCE_BUCKET = 500_000_000
"""Numbers in the buffer that DeepSpeed sums gradients in; its default, made in full on a GPU."""

MAX_LIVE = 1_000_000_000
"""Most parameters that ZeRO-3 keeps gathered; DeepSpeed's default."""


class Bytes(NamedTuple):
    """Memory of one rank. Without a GPU, device and host are the same memory."""

    device: int = 0
    host: int = 0

    @property
    def total(self) -> int:
        """Of both."""
        return self.device + self.host


@dataclass(frozen=True, kw_only=True)
class Tensors:
    """The tensors of a model, as spreading sees them."""

    sizes: tuple[int, ...]
    rows: tuple[int, ...]
    """Length of the first dimension, which FSDP2 cuts."""

    is_trained: tuple[bool, ...]
    layer: tuple[int | None, ...]
    """Layer of the language model; None outside."""

    group: tuple[int | None, ...]
    """Number of the optimizer's group; None for what is frozen."""

    @property
    def trained(self) -> int:
        """Numbers that receive updates."""
        return sum(size for size, moves in zip(self.sizes, self.is_trained, strict=True) if moves)

    @property
    def every(self) -> int:
        """All numbers, adapters included."""
        return sum(self.sizes)


def tensors_of(model: Any, trained: Trained) -> Tensors:
    """Look at a model that `set_trainable` marked; a shared matrix counts once."""
    groups = {name: n for n, group in enumerate(trained.groups) for name in group.names}
    layers = {name: n for n, layer in enumerate(anatomy(model).layers) for name in layer}
    named = dict(model.named_parameters())
    return Tensors(
        sizes=tuple(p.numel() for p in named.values()),
        rows=tuple(p.shape[0] if p.ndim else 1 for p in named.values()),
        is_trained=tuple(p.requires_grad for p in named.values()),
        layer=tuple(layers.get(name) for name in named),
        group=tuple(groups.get(name) if p.requires_grad else None for name, p in named.items()),
    )


@singledispatch
def spread_bytes(
    how: Parallelism, tensors: Tensors, world: int, num_parts: int, device: str
) -> dict[str, Bytes]:
    """Say what one rank holds during a step, activations aside; of unequal ranks, the first.

    Args:
        how: The parallelism.
        tensors: Of the whole model.
        world: Ranks.
        num_parts: Micro-batches in a step.
        device: `cpu` or `cuda`.
    """
    raise TypeError(f"no plan for {type(how).__name__}")


@spread_bytes.register
def _(how: Ddp, tensors: Tensors, world: int, num_parts: int, device: str) -> dict[str, Bytes]:
    trained = tensors.trained
    return {
        WEIGHTS: Bytes(FLOAT * tensors.every),
        GRADIENTS: Bytes(FLOAT * trained),
        OPTIMIZER: Bytes(MOMENTS * trained),
        # Gradients are copied into buckets that are summed over ranks.
        BUFFERS: Bytes(FLOAT * trained if world > 1 else 0),
    }


@spread_bytes.register
def _(how: Fsdp2, tensors: Tensors, world: int, num_parts: int, device: str) -> dict[str, Bytes]:
    shares = [
        -(-rows // world) * (size // rows)
        for size, rows in zip(tensors.sizes, tensors.rows, strict=True)
    ]
    mine = sum(n for n, moves in zip(shares, tensors.is_trained, strict=True) if moves)
    held: dict[int | None, list[int]] = {}
    for size, moves, layer in zip(tensors.sizes, tensors.is_trained, tensors.layer, strict=True):
        both = held.setdefault(layer, [0, 0])
        both[0] += size
        both[1] += size if moves else 0
    layers = [both for layer, both in held.items() if layer is not None]
    # One layer is worked on while the next is gathered; what is outside the layers is gathered
    # for the whole step.
    gathered = held.get(None, [0, 0])[0] + 2 * max((both[0] for both in layers), default=0)
    # Gradients are cut up as each layer is done, but only in a step's last micro-batch: those of
    # the others are added up whole.
    whole = tensors.trained
    if num_parts == 1:
        whole = held.get(None, [0, 0])[1] + 2 * max((both[1] for both in layers), default=0)
    kinds = {
        WEIGHTS: Bytes(FLOAT * sum(shares)),
        GRADIENTS: Bytes(FLOAT * mine),
        OPTIMIZER: Bytes(MOMENTS * mine),
    }
    if how.offload:
        kinds = {kind: Bytes(0, one.device) for kind, one in kinds.items()}
    return kinds | {BUFFERS: Bytes(FLOAT * (gathered + whole))}


@spread_bytes.register
def _(
    how: DeepSpeed, tensors: Tensors, world: int, num_parts: int, device: str
) -> dict[str, Bytes]:
    every, trained = tensors.every, tensors.trained
    mine = _zero3_share(tensors, world) if how.stage == 3 else _zero_share(tensors, world)
    # On a CPU, of a buffer only what is written to takes memory.
    bucket = REDUCE_BUCKET if device == "cuda" else min(REDUCE_BUCKET, trained)
    weights = sum(-(-size // world) for size in tensors.sizes) if how.stage == 3 else every
    buffers = bucket + (min(every, MAX_LIVE) if how.stage == 3 else 0)
    gradients = trained if how.stage == 1 else mine
    moved = {
        # The optimizer works on a copy of its share of the weights.
        WEIGHTS: FLOAT * mine,
        GRADIENTS: FLOAT * gradients,
        OPTIMIZER: MOMENTS * mine,
    }
    kinds = {kind: Bytes(0, n) if how.offload else Bytes(n) for kind, n in moved.items()}
    on_host = kinds[WEIGHTS].host
    kinds[WEIGHTS] = Bytes(FLOAT * weights + kinds[WEIGHTS].device, on_host)
    return kinds | {BUFFERS: Bytes(FLOAT * buffers)}


def _zero_share(tensors: Tensors, world: int) -> int:
    """Numbers of one rank's part: groups are laid end to end and padded to twice the ranks."""
    groups: dict[int, int] = {}
    for size, group in zip(tensors.sizes, tensors.group, strict=True):
        if group is not None:
            groups[group] = groups.get(group, 0) + size
    return sum(-(-size // (2 * world)) * 2 for size in groups.values())


def _zero3_share(tensors: Tensors, world: int) -> int:
    """The same of stage 3, which cuts each tensor by itself."""
    return sum(
        -(-size // world)
        for size, moves in zip(tensors.sizes, tensors.is_trained, strict=True)
        if moves
    )


@singledispatch
def checkpoint_bytes(how: Parallelism, tensors: Tensors) -> int:
    """Say what a checkpoint takes in storage, over all ranks: only what moves is in it."""
    return (FLOAT + MOMENTS) * tensors.trained


@checkpoint_bytes.register
def _(how: DeepSpeed, tensors: Tensors) -> int:
    # With the optimizer goes its own copy of the weights, which is all there is in stage 3.
    weights = FLOAT if how.stage == 3 else 2 * FLOAT
    return (weights + MOMENTS) * tensors.trained


@dataclass(frozen=True, kw_only=True)
class ResourcePlan:
    """What a training run takes."""

    num_workers: int
    num_parts: int
    """Micro-batches in a step."""

    device: str
    """`cpu` or `cuda`."""

    num_parameters: int
    """Of the model as it is saved."""

    num_trained: int
    kinds: Mapping[str, Bytes]
    """One rank's memory during a step, by kind."""

    loading: Bytes
    """One rank's when it begins: the whole model, before anything is sharded."""

    export: Bytes
    """What the first rank takes at the end beside weights and optimizer, to write the model."""

    kept: SavedActivations | None = None
    """What activations are made of; None if they could not be told."""

    checkpointing: bool = False
    checkpoint_bytes: int
    model_bytes: int
    cost: StepCost
    """Of one rank's step, on samples of mean length."""

    cost_of_all: StepCost
    """The same if all layers were trained."""

    flops_per_token: float
    """Operations that the mathematics asks for, forwards and backwards, per position."""

    notes: Sequence[str] = field(default_factory=tuple)
    """What was not known, and what was taken instead."""

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
        """One rank's memory at its worst: activations go as gradients come."""
        rest = _sum([self.kinds[kind] for kind in (WEIGHTS, OPTIMIZER, BUFFERS)])
        gradients, activations = self.kinds[GRADIENTS], self.kinds[ACTIVATIONS].device
        # At the end of the backward pass; a layer that is worked out again is then there as well.
        own = max(self.kept.layers) if self.kept and self.checkpointing else 0
        worst = max(activations, gradients.device + own)
        if self.num_parts > 1:
            # Gradients of a step's earlier micro-batches are there already.
            worst = activations + gradients.device
        return Bytes(rest.device + worst, rest.host + gradients.host)

    def on_device(self, *, only_exact: bool) -> int:
        """Bytes that a GPU has to have, for one worker."""
        return max(self.loading.device, (self.exact if only_exact else self.step).device)

    def on_machine(self, num_workers: int, *, only_exact: bool) -> int:
        """Bytes of main memory that a machine has to have for some of the workers.

        Args:
            num_workers: On this machine, the first rank's among them.
            only_exact: Without activations and buffers.
        """
        step = self.exact if only_exact else self.step
        rest = _sum([self.kinds[kind] for kind in (WEIGHTS, OPTIMIZER)])
        if self.device == "cpu":
            ending = num_workers * rest.total + self.export.total
            return max(num_workers * max(self.loading.total, step.total), ending)
        ending = num_workers * rest.host + self.export.host
        return max(num_workers * max(self.loading.host, step.host), ending)


def make_plan(
    how: Parallelism,
    tensors: Tensors,
    *,
    num_parameters: int,
    world: int,
    num_parts: int,
    device: str,
    kept: SavedActivations | None,
    checkpointing: bool,
    cost: StepCost,
    cost_of_all: StepCost,
    flops_per_token: float,
    notes: Sequence[str] = (),
) -> ResourcePlan:
    """Put a plan together.

    Args:
        how: The parallelism.
        tensors: Of the model with its adapters.
        num_parameters: Of the model without them.
        world: Ranks.
        num_parts: Micro-batches in a step.
        device: `cpu` or `cuda`.
        kept: What a micro-batch keeps; None if that is not known.
        checkpointing: Whether layers are worked out again for their gradients.
        cost: Of a step.
        cost_of_all: Of a step that trains all layers.
        flops_per_token: Of the model, per position.
        notes: What was not known.
    """
    kinds = spread_bytes(how, tensors, world, num_parts, device)
    whole = FLOAT * tensors.every
    activations = 0
    if kept is not None:
        activations = kept.checkpointed if checkpointing else kept.whole
    return ResourcePlan(
        num_workers=world,
        num_parts=num_parts,
        device=device,
        num_parameters=num_parameters,
        num_trained=tensors.trained,
        kinds=kinds | {ACTIVATIONS: Bytes(activations)},
        # A model is opened in main memory; FSDP2 cuts it up layer by layer as it is moved.
        loading=Bytes(0 if isinstance(how, Fsdp2) else whole, whole)
        if device == "cuda"
        else Bytes(whole),
        # What moved is brought together, and the model that training started from is opened again
        # to take it; without a GPU and with whole models it is there already.
        export=Bytes(
            0, whole + (0 if isinstance(how, Ddp) and device == "cpu" else FLOAT * tensors.trained)
        ),
        kept=kept,
        checkpointing=checkpointing,
        checkpoint_bytes=checkpoint_bytes(how, tensors),
        model_bytes=FLOAT * num_parameters,
        cost=cost,
        cost_of_all=cost_of_all,
        flops_per_token=flops_per_token,
        notes=tuple(notes),
    )


def _sum(some: Sequence[Bytes]) -> Bytes:
    return Bytes(sum(one.device for one in some), sum(one.host for one in some))
