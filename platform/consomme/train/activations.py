"""Estimate the activations that a forward pass saves for the backward pass, without running it.

Autograd itself is asked: the language model runs on fake tensors, which have shapes and no data,
and the tensors that autograd saves are counted. So no formula has to know the layers of a model
family. Only the vision encoder and the projector, whose inputs differ by family, are estimated from
their linear layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from consomme.models.anatomy import anatomy, language_model
from consomme.train.cost import Precision, SampleShape, num_patches
from consomme.train.modes import set_modes

# Shapes: B samples, T token positions, D width.


@dataclass(frozen=True, kw_only=True)
class SavedActivations:
    """Bytes of one micro-batch."""

    layers: tuple[int, ...]
    """Saved by each layer of the language model."""

    others: int
    """Saved by the rest: masks, positions, final norm, projector, vision encoder."""

    hidden: int
    """Hidden states between two layers."""

    loss: int
    """Logits and their gradients at their peak."""

    @property
    def whole(self) -> int:
        """All activations, when the loss is computed."""
        return sum(self.layers) + self.others + self.loss

    @property
    def checkpointed(self) -> int:
        """The same with activation checkpointing: the input of each layer, and one layer's own."""
        own = max(self.layers, default=0)
        return len(self.layers) * self.hidden + self.others + max(self.loss, own)


def saved_activations(
    model: Any,
    lowest_layer: int | None,
    shape: SampleShape,
    *,
    num_samples: int,
    precision: Precision = "float32",
) -> SavedActivations:
    """Count what autograd saves of one micro-batch.

    Args:
        model: Marked by `set_trainable`; only shapes are read.
        lowest_layer: As in `Trained`.
        shape: Of the longest samples of a micro-batch.
        num_samples: In one micro-batch.
        precision: Precision of matrix products.
    """
    where = language_model(model)
    text = model.get_submodule(where.layers_path.rpartition(".")[0])
    layers = list(model.get_submodule(where.layers_path).children())
    config = model.config.get_text_config()
    tokens = round(shape.num_tokens)
    size = 2 if precision == "bfloat16" else 4
    saved: dict[int, int] = {}
    by_layer = [0] * len(layers)
    others = 0
    current: int | None = None

    def pack(tensor: Tensor) -> Tensor:
        nonlocal others
        storage = tensor.untyped_storage()
        if storage._cdata not in own and storage._cdata not in saved:
            saved[storage._cdata] = storage.nbytes()
            if current is None:
                others += storage.nbytes()
            else:
                by_layer[current] += storage.nbytes()
        return tensor

    def at(index: int | None) -> Callable[..., None]:
        def note(*_: Any) -> None:
            nonlocal current
            current = index

        return note

    handles: list[RemovableHandle] = []
    for index, layer in enumerate(layers):
        handles += [
            layer.register_forward_pre_hook(at(index)),
            layer.register_forward_hook(at(None)),
        ]
    mode = FakeTensorMode()
    weights = _fake_tensors(text, mode)
    own = {tensor.untyped_storage()._cdata for tensor in weights.values()}
    modes = {module: module.training for module in model.modules()}
    set_modes(model)
    with (
        mode,
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"),
    ):
        embeds_BTD = torch.empty(num_samples, tokens, config.hidden_size)
        embeds_BTD.requires_grad_(lowest_layer is None)
        # The graph has to live until all is counted: a freed storage's address may be used again.
        output = functional_call(
            text,
            weights,
            kwargs={
                "inputs_embeds": embeds_BTD,
                "attention_mask": torch.ones(num_samples, tokens, dtype=torch.long),
                "use_cache": False,
            },
        )
    del output
    for module, is_training in modes.items():
        module.training = is_training
    for handle in handles:
        handle.remove()
    return SavedActivations(
        layers=tuple(by_layer),
        others=others + round(_vision(model, shape) * num_samples * size),
        hidden=num_samples * tokens * config.hidden_size * 4,
        loss=_loss(num_samples, shape, config.vocab_size, size),
    )


def _fake_tensors(module: nn.Module, mode: FakeTensorMode) -> dict[str, Tensor]:
    """Return fake CPU tensors for a module's weights and buffers, by name."""
    fakes: dict[str, Tensor] = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        meta = tensor.detach().to("meta")
        fakes[name] = FakeTensor(mode, meta, torch.device("cpu"))
        fakes[name].requires_grad_(tensor.requires_grad)
    return fakes


def _loss(num_samples: int, shape: SampleShape, vocabulary: int, size: int) -> int:
    """Return the peak memory of `sum_nll`, which is reached in its backward pass.

    Then there is the gradient of the logits at all positions, twice while it is scattered from the
    labelled positions, and log-softmax and its gradient at the labelled positions.
    """
    all_logits = num_samples * shape.num_tokens * vocabulary
    labelled = num_samples * shape.num_labelled * vocabulary
    return round(2 * all_logits * size + labelled * (4 + 4))


def _vision(model: Any, shape: SampleShape) -> float:
    """Return the elements that vision encoder and projector save of one sample.

    A linear layer's input is saved if its weights are trained, and its output by what follows; a
    norm saves its input twice. Nothing is saved before the first trained weight.
    """
    parts = anatomy(model)
    patches = num_patches(model, shape)
    total = 0.0
    is_passed = False
    for named, positions in (
        (parts.vision_encoder, patches),
        (parts.projector, shape.num_image_tokens),
    ):
        is_trained = any(p.requires_grad for p in named.values())
        if not is_trained and not is_passed:
            continue
        is_passed = True
        module_paths = dict.fromkeys(name.rpartition(".")[0] for name in named)
        for module in (model.get_submodule(module_path) for module_path in module_paths):
            if isinstance(module, nn.Linear):
                num_inputs = module.in_features if module.weight.requires_grad else 0
                total += positions * (module.out_features + num_inputs)
            elif getattr(module, "weight", None) is not None and module.weight.ndim == 1:
                total += positions * 2 * module.weight.numel()
    return total
