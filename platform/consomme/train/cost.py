"""What a step costs in floating-point operations, and how much of a device's peak that is.

One decision is made here: work is counted where autograd does it. Forward runs through everything;
gradients of activations run back to the lowest trained layer only; gradients of weights are made
for trained weights only. So a selection of layers is credited with what it saves, and no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from consomme.models.anatomy import anatomy

Precision = Literal["float32", "bfloat16"]

OPTIMIZER_FLOPS = {"cpu": 180.0, "cuda": 2500.0}
"""What AdamW's update of one parameter takes, in operations that matrix products do in that time.

It moves 28 bytes a parameter (reads weight, gradient and two moments, writes all but the gradient).
A core that multiplies at 100 Gflop/s moves some 15 GB/s; a GPU moves a byte in the time of some 90
operations, which is what an A100 and an H100 have in their data sheets, at 40 % of their peak.
"""

PEAK_TFLOPS: dict[str, dict[Precision, float]] = {
    "NVIDIA B200": {"bfloat16": 2250.0, "float32": 75.0},
    "NVIDIA H200": {"bfloat16": 989.5, "float32": 67.0},
    "NVIDIA H100 PCIe": {"bfloat16": 756.0, "float32": 51.0},
    "NVIDIA H100 NVL": {"bfloat16": 835.0, "float32": 60.0},
    "NVIDIA H100 80GB HBM3": {"bfloat16": 989.5, "float32": 67.0},
    "NVIDIA A100": {"bfloat16": 312.0, "float32": 19.5},
    "NVIDIA A40": {"bfloat16": 149.7, "float32": 37.4},
    "NVIDIA A10": {"bfloat16": 125.0, "float32": 31.2},
    "NVIDIA L40S": {"bfloat16": 362.0, "float32": 91.6},
    "NVIDIA L40": {"bfloat16": 181.0, "float32": 90.5},
    "NVIDIA L4": {"bfloat16": 121.0, "float32": 30.3},
}
"""Dense peaks in 10^12 operations per second, by how a device's name begins.

Source: NVIDIA's data sheets; what they give with sparsity is halved. float32 is that without tensor
cores, which is what torch does unless it is told to round.
"""


def peak_flops(device_name: str, precision: Precision) -> float | None:
    """Operations per second that a device could do at most; None if it is not in the table.

    Args:
        device_name: As `torch.cuda.get_device_name` says it.
        precision: Of matrix products.
    """
    for name, peaks in PEAK_TFLOPS.items():
        # A10G is no A10, and L40S no L40.
        if device_name == name or device_name.startswith((f"{name} ", f"{name}-")):
            return peaks[precision] * 1e12
    return None


@dataclass(frozen=True, kw_only=True)
class SampleShape:
    """How long samples are: what work and activations depend on."""

    num_tokens: float
    """Positions of the language model, pictures included."""

    num_labelled: float
    """Tokens that a loss is taken on."""

    num_image_tokens: float = 0.0
    """Positions that pictures take."""

    num_pixel_values: float = 0.0
    """Numbers in what the vision encoder is given."""


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Operations of one rank's step, by what they are for."""

    forward: float
    backward_activations: float
    """Gradients handed down, from the loss to the lowest trained layer."""

    backward_weights: float
    """Gradients of what is trained."""

    recomputed: float
    """Forward passes done twice because of activation checkpointing."""

    optimizer: float
    """Time of the update, as matrix operations that would take as long."""

    @property
    def needed(self) -> float:
        """Operations that the mathematics asks for: what model FLOPs utilization counts."""
        return self.forward + self.backward_activations + self.backward_weights

    @property
    def total(self) -> float:
        """All of the step."""
        return self.needed + self.recomputed + self.optimizer

    def saving_against(self, other: StepCost) -> float:
        """Share of another step's time that this one does without; negative if it takes longer."""
        return 1 - self.total / other.total


def step_cost(
    model: Any,
    lowest_layer: int | None,
    shape: SampleShape,
    *,
    num_samples: float,
    checkpointing: bool = False,
    device: str = "cpu",
) -> StepCost:
    """Count the operations of one rank's step.

    A matrix of n numbers costs 2 n operations per position forwards, as many for the gradient of
    its input, and as many again for its own; attention costs 4 · positions · width per position and
    layer, backwards twice that. Attention inside the vision encoder is left out.

    Args:
        model: Marked by `set_trainable`; only shapes are looked at.
        lowest_layer: As `Trained` has it.
        shape: Mean over samples.
        num_samples: Of this rank in one step.
        checkpointing: Whether layers are worked out again for their gradients.
        device: `cpu` or `cuda`.

    Source: arXiv 2204.02311, appendix B, where all weights are trained.
    """
    parts = anatomy(model)
    text = model.config.get_text_config()
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    first = 0 if lowest_layer is None else lowest_layer
    patches = num_patches(model, shape)
    eyes_move = any(p.requires_grad for p in parts.vision_encoder.values())
    forward = activations = weights = recomputed = 0.0
    blocks: list[tuple[Any, float, bool, bool]] = [
        (parts.vision_encoder, patches, eyes_move, False),
        (parts.projector, shape.num_image_tokens, eyes_move, False),
        *(
            (layer, shape.num_tokens, index >= first, True)
            for index, layer in enumerate(parts.layers)
        ),
        (parts.head, shape.num_tokens, True, False),
    ]
    if parts.is_tied:
        blocks.append((parts.embeddings, shape.num_tokens, True, False))
        tables -= {id(p) for p in parts.embeddings.values()}
    share = _share_of_experts(text)
    for named, positions, is_passed, is_layer in blocks:
        sizes = [
            (2 * p.numel() * (share if is_layer and p.ndim == 3 else 1.0), p.requires_grad)
            for p in named.values()
            if p.ndim >= 2 and id(p) not in tables
        ]
        one = sum(size for size, _ in sizes) * positions
        mixing = 4 * shape.num_tokens * _attention_width(text) * positions if is_layer else 0.0
        forward += one + mixing
        activations += one + 2 * mixing if is_passed else 0.0
        weights += sum(size for size, moves in sizes if moves) * positions
        recomputed += one + mixing if is_layer and is_passed and checkpointing else 0.0
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return StepCost(
        forward=forward * num_samples,
        backward_activations=activations * num_samples,
        backward_weights=weights * num_samples,
        recomputed=recomputed * num_samples,
        optimizer=trained * OPTIMIZER_FLOPS[device],
    )


def num_patches(model: Any, shape: SampleShape) -> float:
    """Positions of the vision encoder per sample: its numbers over those of one patch."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            return shape.num_pixel_values / module.weight[0].numel()
    return 0.0


def _attention_width(text: Any) -> int:
    heads: int = text.num_attention_heads
    width: int = getattr(text, "head_dim", None) or text.hidden_size // heads
    return heads * width


def _share_of_experts(text: Any) -> float:
    """Share of a layer's experts that a token goes through; 1 without experts."""
    chosen = getattr(text, "num_experts_per_tok", None)
    every = getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None)
    return chosen / every if chosen and every else 1.0
