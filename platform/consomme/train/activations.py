"""How much memory a forward pass leaves behind for the backward pass, without doing it.

One decision is made here: autograd itself is asked. The language model runs on tensors that have
shapes and no contents, with what is trained marked, and what it keeps for the backward pass is
counted; no formula has to know a family's layers. Only the vision encoder and the projector, whose
inputs are a family's own, are estimated from their linear maps.
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

from consomme.models.anatomy import anatomy
from consomme.train.cost import Precision, SampleShape, num_patches

# Shapes: B samples, T token positions, D width.


@dataclass(frozen=True, kw_only=True)
class SavedActivations:
    """Bytes of one micro-batch."""

    layers: tuple[int, ...]
    """What each layer of the language model keeps."""

    others: int
    """What the rest keeps: masks, positions, final norm, projector, vision encoder."""

    hidden: int
    """What goes from one layer to the next."""

    loss: int
    """Logits and their gradients, at the time when most of them are there."""

    @property
    def whole(self) -> int:
        """All at once, when the loss is reached."""
        return sum(self.layers) + self.others + self.loss

    @property
    def checkpointed(self) -> int:
        """The same if layers are worked out again: what goes into each, and one layer's own."""
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
    """Count what one micro-batch keeps.

    Args:
        model: Marked by `set_trainable`; only shapes are looked at.
        lowest_layer: As `Trained` has it.
        shape: Of the longest samples that come together.
        num_samples: In one micro-batch.
        precision: Of matrix products.
    """
    parts = anatomy(model)
    text = model.get_submodule(parts.layers_path.rpartition(".")[0])
    config = model.config.get_text_config()
    tokens = round(shape.num_tokens)
    size = 2 if precision == "bfloat16" else 4
    found: dict[int, int] = {}
    by_layer = [0] * len(parts.layers)
    others = 0
    current: int | None = None

    def pack(tensor: Tensor) -> Tensor:
        nonlocal others
        storage = tensor.untyped_storage()
        if storage._cdata not in own and storage._cdata not in found:
            found[storage._cdata] = storage.nbytes()
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
    for index, layer in enumerate(model.get_submodule(parts.layers_path).children()):
        handles += [
            layer.register_forward_pre_hook(at(index)),
            layer.register_forward_hook(at(None)),
        ]
    mode = FakeTensorMode()
    weights = _shapes(text, mode)
    own = {tensor.untyped_storage()._cdata for tensor in weights.values()}
    was_training = model.training
    model.train()
    with (
        mode,
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"),
    ):
        words_BTD = torch.empty(num_samples, tokens, config.hidden_size)
        words_BTD.requires_grad_(lowest_layer is None)
        # The graph has to live until all is counted: a storage that goes makes room for another.
        output = functional_call(
            text,
            weights,
            kwargs={
                "inputs_embeds": words_BTD,
                "attention_mask": torch.ones(num_samples, tokens, dtype=torch.long),
                "use_cache": False,
            },
        )
    del output
    model.train(was_training)
    for handle in handles:
        handle.remove()
    return SavedActivations(
        layers=tuple(by_layer),
        others=others + round(_vision(model, shape) * num_samples * size),
        hidden=num_samples * tokens * config.hidden_size * 4,
        loss=_loss(num_samples, shape, config.vocab_size, size),
    )


def _shapes(module: nn.Module, mode: FakeTensorMode) -> dict[str, Tensor]:
    """Name a module's weights and buffers, each as a CPU's tensor without contents."""
    made: dict[str, Tensor] = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        bare = tensor.detach().to("meta")
        made[name] = FakeTensor(mode, bare, torch.device("cpu"))
        made[name].requires_grad_(tensor.requires_grad)
    return made


def _loss(num_samples: int, shape: SampleShape, vocabulary: int, size: int) -> int:
    """Memory of `sum_nll` at its worst, which is in its backward pass.

    There are then the gradient of the logits, at all positions and once more while they are
    spread from the labelled ones, and log-softmax and its gradient at the labelled ones.
    """
    everywhere = num_samples * shape.num_tokens * vocabulary
    labelled = num_samples * shape.num_labelled * vocabulary
    return round(2 * everywhere * size + labelled * (4 + 4))


def _vision(model: Any, shape: SampleShape) -> float:
    """Numbers that the vision encoder and the projector keep of one sample.

    Of a linear map the input is kept if its weights are trained, and the output by what comes
    after; a norm keeps its input twice. Nothing is kept before the first trained weight.
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
                moves = module.weight.requires_grad
                total += positions * (module.out_features + (module.in_features if moves else 0))
            elif getattr(module, "weight", None) is not None and module.weight.ndim == 1:
                total += positions * 2 * module.weight.numel()
    return total
