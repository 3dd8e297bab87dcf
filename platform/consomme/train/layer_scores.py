"""How much each layer of a language model matters, by five measures.

One decision is made here: every measure is one number per layer, worked out in float32 and in one
pass over weights or samples; which layers follow from it is the selector's business.

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

from consomme.models.anatomy import anatomy

# Shapes: L layers, B samples, T positions, W width, H heads.

_TINY = 1e-8

Named = Mapping[str, Tensor]


def parameter_change(base: Sequence[Named], tuned: Sequence[Named]) -> list[float]:
    """Sum over a layer's matrices of the norm of the change, relative to the base's norm.

    Args:
        base: By layer, its tensors by name.
        tuned: The same of the model that was tuned from it.
    """
    return _over_matrices(
        base, tuned, lambda old, new: float((new - old).norm() / (old.norm() + _TINY))
    )


def parameter_angle(base: Sequence[Named], tuned: Sequence[Named]) -> list[float]:
    """Sum over a layer's matrices of the angle between before and after, as a share of pi."""
    return _over_matrices(base, tuned, lambda old, new: angular_distance(old.ravel(), new.ravel()))


def angular_distance(one: Tensor, other: Tensor) -> float:
    """Angle between two vectors as a share of pi: 0 for one direction, 1 for opposite ones."""
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


def block_influence(hidden_BTW: Tensor, after_BTW: Tensor, counted_BT: Tensor) -> tuple[float, int]:
    """One layer's 1 - cosine between what goes in and what comes out, summed over tokens.

    Args:
        hidden_BTW: What goes in.
        after_BTW: What comes out.
        counted_BT: Tokens that count.

    Returns:
        Sum, 0 to 2 for each token, and number of tokens; tokens without a direction do not count.
    """
    cosine_BT = nn.functional.cosine_similarity(
        hidden_BTW.double(), after_BTW.double(), dim=-1, eps=1e-300
    )
    length_BT = torch.minimum(hidden_BTW.double().norm(dim=-1), after_BTW.double().norm(dim=-1))
    good_BT = counted_BT.bool() & cosine_BT.isfinite() & (length_BT > 0)
    return float((1 - cosine_BT[good_BT]).sum()), int(good_BT.sum())


class LayerProbe:
    """Watches the layers of a model while batches go through it."""

    def __init__(self, model: Any, image_token_id: int) -> None:
        """Look at a model.

        Args:
            model: In eval mode.
            image_token_id: Stands for a piece of a picture in `input_ids`.
        """
        self.model, self.image_token_id = model, image_token_id
        self.layers = list(model.get_submodule(anatomy(model).layers_path))
        num = len(self.layers)
        self._image = [(0.0, 0)] * num
        self._text = [(0.0, 0)] * num
        self._attention = [(0.0, 0)] * num

    @torch.inference_mode()
    def watch(self, batches: Iterable[Mapping[str, Tensor]], *, attention: bool = False) -> None:
        """Let batches through and add up what each layer does.

        Args:
            batches: As the model takes them, with `input_ids` and `attention_mask`.
            attention: Also look at the attention's weights, which a model gives only when it does
                without fast kernels.
        """
        kernels = self.model.config._attn_implementation
        if attention:
            self.model.set_attn_implementation("eager")
        try:
            self._watch(batches, attention)
        finally:
            self.model.set_attn_implementation(kernels)

    def _watch(self, batches: Iterable[Mapping[str, Tensor]], attention: bool) -> None:
        for batch in batches:
            is_image_BT = batch["input_ids"] == self.image_token_id
            is_text_BT = batch["attention_mask"].bool() & ~is_image_BT
            seen: list[tuple[Tensor, Tensor]] = []
            hooks = [layer.register_forward_hook(_remember(seen)) for layer in self.layers]
            try:
                inputs = {name: value for name, value in batch.items() if name != "labels"}
                output = self.model(**inputs, use_cache=False, output_attentions=attention)
            finally:
                for hook in hooks:
                    hook.remove()
            for number, (before, after) in enumerate(seen):
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
        """Mean over all tokens, by layer; arXiv 2403.03853."""
        return [_mean(_add(*both)) for both in zip(self._image, self._text, strict=True)]

    def multimodal_block_influence(self) -> list[float]:
        """Mean of the pictures' tokens and of the words, each counting half."""
        return [
            (_mean(image) + _mean(text)) / 2
            for image, text in zip(self._image, self._text, strict=True)
        ]

    def image_attention(self) -> list[float]:
        """Share of its attention that a word after a picture gives to it, by layer."""
        return [_mean(one) for one in self._attention]


def image_attention(
    weights_BHTT: Tensor, is_image_BT: Tensor, is_text_BT: Tensor
) -> tuple[float, int]:
    """Attention that words give to pictures before them, summed, and the number of such words.

    Args:
        weights_BHTT: Softmax over the last dimension, by query.
        is_image_BT: Tokens of pictures.
        is_text_BT: Words.
    """
    mass_BT = (weights_BHTT.float().mean(dim=1) * is_image_BT[:, None, :]).sum(dim=-1)
    sees_BT = is_text_BT & (is_image_BT.cumsum(dim=1) > 0)
    return float(mass_BT[sees_BT].sum()), int(sees_BT.sum())


def _remember(seen: list[tuple[Tensor, Tensor]]) -> Callable[[Any, Any, Any], None]:
    def hook(module: Any, inputs: Any, output: Any) -> None:
        seen.append((inputs[0], output[0] if isinstance(output, tuple) else output))

    return hook


def _add(one: tuple[float, int], other: tuple[float, int]) -> tuple[float, int]:
    return one[0] + other[0], one[1] + other[1]


def _mean(one: tuple[float, int]) -> float:
    return one[0] / one[1] if one[1] else 0.0
