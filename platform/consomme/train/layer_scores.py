"""Score how much each layer of a language model matters, by five measures.

Every measure gives one number per layer, computed in float32 or better in one pass over weights or
samples. Which layers are trained follows in the selector.

Sources: arXiv 2412.12785 (parameter change, multimodal Block Influence, image attention); ShortGPT,
arXiv 2403.03853 (Block Influence). The paper's released code divides the change by the tuned
weights; its text says by the base's, as here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from consomme.models.anatomy import language_model

# Shapes: L layers, B samples, T positions, W width, H heads.

_TINY = 1e-8

Named = Mapping[str, Tensor]


def parameter_change(base: Sequence[Named], tuned: Sequence[Named]) -> list[float]:
    """Sum over a layer's matrices of the norm of the change, relative to the base's norm.

    Args:
        base: Tensors of each layer, by name.
        tuned: The same of the model that was tuned from the base.
    """
    return _over_matrices(
        base, tuned, lambda old, new: float((new - old).norm() / (old.norm() + _TINY))
    )


def parameter_angle(base: Sequence[Named], tuned: Sequence[Named]) -> list[float]:
    """Sum over a layer's matrices of the angle between base and tuned, as a share of pi."""
    return _over_matrices(base, tuned, lambda old, new: angular_distance(old.ravel(), new.ravel()))


def angular_distance(one: Tensor, other: Tensor) -> float:
    """Return the angle between two vectors as a share of pi: 0 if parallel, 1 if opposite."""
    # Half-angles keep full precision where the cosine is flat.
    a = one.double() / (one.double().norm() + 1e-300)
    b = other.double() / (other.double().norm() + 1e-300)
    return float(2 * torch.atan2((a - b).norm(), (a + b).norm()) / math.pi)


def _over_matrices(
    base: Sequence[Named], tuned: Sequence[Named], measure: Callable[[Tensor, Tensor], float]
) -> list[float]:
    return [
        math.fsum(
            measure(old.detach().float(), after[name].detach().float())
            for name, old in before.items()
            if old.ndim == 2
        )
        for before, after in zip(base, tuned, strict=True)
    ]


def block_influence(input_BTW: Tensor, output_BTW: Tensor, counted_BT: Tensor) -> tuple[float, int]:
    """Sum one layer's 1 - cosine(input, output) over tokens.

    Args:
        input_BTW: Hidden states before the layer.
        output_BTW: Hidden states after the layer.
        counted_BT: Tokens that count.

    Returns:
        The sum, 0 to 2 per token, and the number of tokens. Tokens with a zero vector do not count.
    """
    cosine_BT = nn.functional.cosine_similarity(
        input_BTW.double(), output_BTW.double(), dim=-1, eps=1e-300
    )
    norm_BT = torch.minimum(input_BTW.double().norm(dim=-1), output_BTW.double().norm(dim=-1))
    valid_BT = counted_BT.bool() & cosine_BT.isfinite() & (norm_BT > 0)
    return float((1 - cosine_BT[valid_BT]).sum()), int(valid_BT.sum())


class LayerProbe:
    """Observes the layers of a model while batches pass through it."""

    def __init__(self, model: Any, image_token_id: int) -> None:
        """Find the layers.

        Args:
            model: In eval mode.
            image_token_id: Placeholder of image positions in `input_ids`.
        """
        self.model, self.image_token_id = model, image_token_id
        self.layers = list(model.get_submodule(language_model(model).layers_path))
        num = len(self.layers)
        self._image = [(0.0, 0)] * num
        self._text = [(0.0, 0)] * num
        self._attention = [(0.0, 0)] * num

    @torch.inference_mode()
    def observe(self, batches: Iterable[Mapping[str, Tensor]], *, attention: bool = False) -> None:
        """Run batches through the model and accumulate what each layer does.

        Args:
            batches: Inputs of the model, with `input_ids` and `attention_mask`.
            attention: Also observe attention weights, which models return only without fused
                kernels.
        """
        implementation = self.model.config._attn_implementation
        if attention:
            self.model.set_attn_implementation("eager")
        try:
            self._observe(batches, attention)
        finally:
            self.model.set_attn_implementation(implementation)

    def _observe(self, batches: Iterable[Mapping[str, Tensor]], attention: bool) -> None:
        for batch in batches:
            is_image_BT = batch["input_ids"] == self.image_token_id
            is_text_BT = batch["attention_mask"].bool() & ~is_image_BT
            hidden: list[tuple[Tensor, Tensor]] = []
            hooks = [layer.register_forward_hook(_record(hidden)) for layer in self.layers]
            try:
                inputs = {name: value for name, value in batch.items() if name != "labels"}
                output = self.model(**inputs, use_cache=False, output_attentions=attention)
            finally:
                for hook in hooks:
                    hook.remove()
            for number, (before, after) in enumerate(hidden):
                self._image[number] = _add(
                    self._image[number], block_influence(before, after, is_image_BT)
                )
                self._text[number] = _add(
                    self._text[number], block_influence(before, after, is_text_BT)
                )
            for number, weights in enumerate(output.attentions or () if attention else ()):
                self._attention[number] = _add(
                    self._attention[number], image_attention(weights, is_image_BT, is_text_BT)
                )

    def block_influence(self) -> list[float]:
        """Return the mean over all tokens, by layer; arXiv 2403.03853."""
        return [_mean(_add(*both)) for both in zip(self._image, self._text, strict=True)]

    def multimodal_block_influence(self) -> list[float]:
        """Return the mean of image tokens and the mean of text tokens, averaged, by layer."""
        return [
            (_mean(image) + _mean(text)) / 2
            for image, text in zip(self._image, self._text, strict=True)
        ]

    def image_attention(self) -> list[float]:
        """Return the share of attention that text tokens give to images before them, by layer."""
        return [_mean(one) for one in self._attention]


def image_attention(
    weights_BHTT: Tensor, is_image_BT: Tensor, is_text_BT: Tensor
) -> tuple[float, int]:
    """Sum the attention that text tokens give to image tokens before them.

    Args:
        weights_BHTT: Attention weights: softmax over the last dimension, by query.
        is_image_BT: Image tokens.
        is_text_BT: Text tokens.

    Returns:
        The sum, and the number of text tokens with an image before them.
    """
    mass_BT = (weights_BHTT.float().mean(dim=1) * is_image_BT[:, None, :]).sum(dim=-1)
    after_image_BT = is_text_BT & (is_image_BT.cumsum(dim=1) > 0)
    return float(mass_BT[after_image_BT].sum()), int(after_image_BT.sum())


def _record(hidden: list[tuple[Tensor, Tensor]]) -> Callable[[Any, Any, Any], None]:
    """Make a hook that appends a layer's input and output."""

    def hook(module: Any, inputs: Any, output: Any) -> None:
        hidden.append((inputs[0], output[0] if isinstance(output, tuple) else output))

    return hook


def _add(one: tuple[float, int], other: tuple[float, int]) -> tuple[float, int]:
    return one[0] + other[0], one[1] + other[1]


def _mean(one: tuple[float, int]) -> float:
    return one[0] / one[1] if one[1] else 0.0
