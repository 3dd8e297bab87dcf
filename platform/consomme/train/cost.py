"""Floating-point operations of a training step, and the peaks of devices.

Operations are counted where autograd performs them: the forward pass runs through everything,
gradients of activations run back to the lowest trained layer only, and gradients of weights are
computed for trained weights only. So a layer selection is credited with exactly what it saves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from consomme.models.anatomy import anatomy

Precision = Literal["float32", "bfloat16"]

OPTIMIZER_FLOPS = {"cpu": 180.0, "cuda": 2500.0}
"""Time of AdamW's update of one parameter, as the operations that matrix products do in that time.

The update moves 28 bytes per parameter: it reads weight, gradient and two moments, and writes all
but the gradient. A core that multiplies at 100 Gflop/s moves about 15 GB/s. A GPU moves a byte in
the time of about 90 operations: the data sheet ratio of an A100 and an H100 at 40 % of their peak.
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
"""Dense peaks in 10^12 operations per second, by the beginning of a device's name.

Source: NVIDIA's data sheets; figures with sparsity are halved. float32 is without tensor cores,
which is torch's default.
"""


def peak_flops(device_name: str, precision: Precision) -> float | None:
    """Return the peak operations per second of a device; None if it is not in the table.

    Args:
        device_name: As returned by `torch.cuda.get_device_name`.
        precision: Precision of matrix products.
    """
    for name, peaks in PEAK_TFLOPS.items():
        # A10G is not A10, and L40S is not L40.
        if device_name == name or device_name.startswith((f"{name} ", f"{name}-")):
            return peaks[precision] * 1e12
    return None


@dataclass(frozen=True, kw_only=True)
class SampleShape:
    """Lengths of samples, which operations and activations depend on."""

    num_tokens: float
    """Positions of the language model, images included."""

    num_labelled: float
    """Labelled tokens."""

    num_image_tokens: float = 0.0
    """Positions of images in the language model."""

    num_pixel_values: float = 0.0
    """Elements of the vision encoder's input."""


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Operations of one rank's step, by purpose."""

    forward: float
    backward_activations: float
    """Gradients of activations, from the loss down to the lowest trained layer."""

    backward_weights: float
    """Gradients of trained weights."""

    recomputed: float
    """Forward passes repeated by activation checkpointing."""

    optimizer: float
    """Time of the update, as matrix operations that take the same time."""

    @property
    def needed(self) -> float:
        """Model FLOPs: the operations that model FLOPs utilization (MFU) counts."""
        return self.forward + self.backward_activations + self.backward_weights

    @property
    def total(self) -> float:
        """All operations of the step."""
        return self.needed + self.recomputed + self.optimizer

    def saving_against(self, other: StepCost) -> float:
        """Return the share of another step's time that this one saves; negative if it is slower."""
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

    A matrix of n elements costs 2 n operations per position in the forward pass, the same for the
    gradient of its input, and the same for its own gradient. Attention costs 4 · positions · width
    per position and layer, and twice that in the backward pass. Attention inside the vision encoder
    is left out.

    Args:
        model: Marked by `set_trainable`; only shapes are read.
        lowest_layer: As in `Trained`.
        shape: Mean over samples.
        num_samples: Of this rank in one step.
        checkpointing: Whether activations are recomputed layer by layer.
        device: `cpu` or `cuda`.

    Source: arXiv 2204.02311, appendix B, for the case that all weights are trained.
    """
    parts = anatomy(model)
    text = model.config.get_text_config()
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    first = 0 if lowest_layer is None else lowest_layer
    patches = num_patches(model, shape)
    trains_vision = any(p.requires_grad for p in parts.vision_encoder.values())
    forward = activations = weights = recomputed = 0.0
    blocks: list[tuple[Any, float, bool, int | None]] = [
        (parts.vision_encoder, patches, trains_vision, None),
        (parts.projector, shape.num_image_tokens, trains_vision, None),
        *(
            (layer, shape.num_tokens, index >= first, index)
            for index, layer in enumerate(parts.layers)
        ),
        (parts.embeddings, shape.num_tokens, True, None),
        (parts.head, shape.num_tokens, True, None),
    ]
    if parts.is_tied:
        # This table is also the matrix of the output; the others are only looked up.
        embeddings.discard(id(model.get_output_embeddings().weight))
    expert_share = _expert_share(text)
    for named, positions, is_passed, index in blocks:
        is_layer = index is not None
        sizes = [
            (2 * p.numel() * (expert_share if is_layer and p.ndim == 3 else 1.0), p.requires_grad)
            for p in named.values()
            if p.ndim >= 2 and id(p) not in embeddings
        ]
        matrices = sum(size for size, _ in sizes) * positions
        width = 0 if index is None else _attention_width(text, index)
        attention = 4 * shape.num_tokens * width * positions
        forward += matrices + attention
        activations += matrices + 2 * attention if is_passed else 0.0
        weights += sum(size for size, trained in sizes if trained) * positions
        recomputed += matrices + attention if is_layer and is_passed and checkpointing else 0.0
    num_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return StepCost(
        forward=forward * num_samples,
        backward_activations=activations * num_samples,
        backward_weights=weights * num_samples,
        recomputed=recomputed * num_samples,
        optimizer=num_trained * OPTIMIZER_FLOPS[device],
    )


def num_patches(model: Any, shape: SampleShape) -> float:
    """Return the vision encoder's positions per sample: input elements over those of a patch.

    Patches are cut by the encoder's first convolution; where it has none, by its first linear
    layer.
    """
    paths = dict.fromkeys(name.rpartition(".")[0] for name in anatomy(model).vision_encoder)
    modules = [model.get_submodule(path) for path in paths]
    kinds: tuple[Any, ...] = (nn.Conv2d | nn.Conv3d, nn.Linear)
    for kind in kinds:
        for module in modules:
            if isinstance(module, kind):
                return float(shape.num_pixel_values / module.weight[0].numel())
    return 0.0


def _attention_width(text: Any, layer: int) -> int:
    """Return the width of all heads of a layer; Gemma 4's layers differ."""
    config = text.per_layer_config[layer]
    heads: int = config.num_attention_heads
    width: int = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads * width


def _expert_share(text: Any) -> float:
    """Return the share of a layer's experts that a token is routed to; 1 without experts."""
    chosen = getattr(text, "num_experts_per_tok", None)
    every = getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None)
    return chosen / every if chosen and every else 1.0
