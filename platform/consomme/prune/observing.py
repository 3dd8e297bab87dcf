"""Observe a model while samples pass through it: hidden states between layers, and attention.

Each sample has a forward pass of its own, so there is no padding, and every family is observed as
it computes. Layers can be left out, as if they had been removed already.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from consomme.base.errors import CheckpointError
from consomme.models.anatomy import language_model
from consomme.prune.skipping import layer_input, skipped
from consomme.train.layer_scores import angular_distance, block_influence, image_attention

# Shapes: B = 1 sample, T positions, W width (of all streams of a layer), H heads.

Inputs = Mapping[str, Tensor]


@torch.inference_mode()
def boundaries(model: Any, batch: Inputs, kept: Sequence[int]) -> list[Tensor]:
    """Return the hidden states before each kept layer, and after the last of them.

    Args:
        model: In eval mode.
        batch: Inputs of one sample.
        kept: Layers that are not left out, ascending.

    Returns:
        (B, T, W) each; streams of families that have several are side by side.
    """
    stack = list(model.get_submodule(language_model(model).layers_path))
    missing = sorted(set(range(len(stack))) - set(kept))
    found: list[Tensor] = []

    def hook(module: Any, inputs: Any, named: Any, output: Any) -> None:
        found.append(layer_input(inputs, named))
        if module is stack[kept[-1]]:
            found.append(output[0] if isinstance(output, tuple) else output)

    hooks = [stack[index].register_forward_hook(hook, with_kwargs=True) for index in kept]
    try:
        with skipped(model, missing):
            model(**batch, use_cache=False)
    finally:
        for one in hooks:
            one.remove()
    return [_joined(one, *batch["input_ids"].shape) for one in found]


def _joined(hidden: Tensor, num_rows: int, num_positions: int) -> Tensor:
    """Return hidden states as (B, T, W), whichever way a family has several streams."""
    if hidden.shape[:2] == (num_rows, num_positions):
        return hidden.flatten(2)
    if hidden.ndim > 3 and hidden.shape[1:3] == (num_rows, num_positions):
        return hidden.movedim(0, 2).flatten(2)
    raise CheckpointError(
        f"found hidden states of shape {tuple(hidden.shape)} between layers for"
        f" {num_positions} tokens; layers of this model cannot be compared by them"
    )


class RunMeans:
    """Means of a measure over samples, for runs of neighbouring layers."""

    def __init__(self, num_runs: int) -> None:
        """Begin with nothing."""
        self._sums = [(0.0, 0)] * num_runs

    def add(self, run: int, total: float, count: int) -> None:
        """Add a sum, and of how many it is."""
        self._sums[run] = self._sums[run][0] + total, self._sums[run][1] + count

    def add_all(self, other: RunMeans) -> None:
        """Add what another one has seen."""
        for run, (total, count) in enumerate(other._sums):
            self.add(run, total, count)

    def means(self) -> list[float]:
        """Return the means; 0 of nothing."""
        return [total / count if count else 0.0 for total, count in self._sums]


def angular_distances(
    model: Any, batches: Iterable[Inputs], kept: Sequence[int], size: int
) -> list[float]:
    """Return the angle between the hidden states before and after each run of layers.

    Source: Gromov et al., arXiv 2403.17887: of the last token of each sample, as a share of pi.

    Args:
        model: In eval mode.
        batches: Samples, one each.
        kept: Layers that are not left out.
        size: Layers of a run.
    """
    means = RunMeans(len(kept) - size + 1)
    for batch in batches:
        hidden = boundaries(model, batch, kept)
        for run in range(len(kept) - size + 1):
            before, after = hidden[run][0, -1], hidden[run + size][0, -1]
            means.add(run, angular_distance(before, after), 1)
    return means.means()


def block_influences(
    model: Any,
    batches: Iterable[Inputs],
    kept: Sequence[int],
    size: int,
    image_token_id: int | None = None,
    *,
    halves: bool = False,
) -> list[float]:
    """Return 1 - cosine between before and after each run of layers, averaged over tokens.

    Source: ShortGPT, arXiv 2403.03853, for runs of any length.

    Args:
        model: In eval mode.
        batches: Samples, one each.
        kept: Layers that are not left out.
        size: Layers of a run.
        image_token_id: Placeholder of image positions; None if the model takes no images.
        halves: Let image tokens and text tokens weigh one half each, however many they are
            (multimodal Block Influence, arXiv 2412.12785). Where there are tokens of one kind only,
            they count alone.
    """
    count = len(kept) - size + 1
    kinds = [RunMeans(count), RunMeans(count)]
    has = [False, False]
    for batch in batches:
        hidden = boundaries(model, batch, kept)
        is_image_BT = _image_mask(batch, image_token_id)
        for kind, mask_BT in enumerate((is_image_BT, ~is_image_BT)):
            if not mask_BT.any():
                continue
            has[kind] = True
            for run in range(count):
                kinds[kind].add(run, *block_influence(hidden[run], hidden[run + size], mask_BT))
    if halves:
        used = [kind.means() for kind, there in zip(kinds, has, strict=True) if there]
        return [math.fsum(means) / len(used) for means in zip(*used, strict=True)]
    whole = RunMeans(count)
    for one in kinds:
        whole.add_all(one)
    return whole.means()


def _image_mask(batch: Inputs, image_token_id: int | None) -> Tensor:
    ids = batch["input_ids"]
    return torch.zeros_like(ids, dtype=torch.bool) if image_token_id is None else (
        ids == image_token_id
    )  # fmt: skip


def image_attention_shares(
    model: Any, batches: Iterable[Inputs], kept: Sequence[int], image_token_id: int | None
) -> list[float]:
    """Return the share of attention that text tokens give to images before them, by kept layer.

    Raises:
        CheckpointError: The model takes no images, or does not return its attention weights.
    """
    if image_token_id is None:
        raise CheckpointError(
            "image_attention: found a model without a vision encoder; choose another importance"
        )
    means = RunMeans(len(kept))
    with eager_attention(model):
        for batch in batches:
            is_image_BT = _image_mask(batch, image_token_id)
            if not is_image_BT.any():
                continue
            for place, weights in enumerate(attention_weights(model, batch, kept)):
                means.add(place, *image_attention(weights, is_image_BT, ~is_image_BT))
    return means.means()


@contextlib.contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """Have a model compute attention weights one by one, which fused kernels do not return.

    Raises:
        CheckpointError: The family has fused kernels only.
    """
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation("eager")
    except (ValueError, ImportError) as error:
        raise CheckpointError(
            f"a {type(model).__name__} does not return attention weights: {error}"
        ) from error
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@torch.inference_mode()
def attention_weights(model: Any, batch: Inputs, kept: Sequence[int]) -> list[Tensor]:
    """Return the attention weights of each kept layer, (B, H, T, T), while the others are left out.

    Raises:
        CheckpointError: The model returns none, or not of every layer.
    """
    num_layers = len(model.get_submodule(language_model(model).layers_path))
    missing = sorted(set(range(num_layers)) - set(kept))
    with skipped(model, missing):
        found = model(**batch, use_cache=False, output_attentions=True).get("attentions") or ()
    length = batch["input_ids"].shape[1]
    if len(found) != num_layers or any(
        one is None or one.shape[-2:] != (length, length) for one in found
    ):
        raise CheckpointError(
            f"a {type(model).__name__} does not return attention weights between all tokens for"
            f" each of its {num_layers} layers (it returns {len(found)}): some of its layers have"
            " no attention, or attend to something else; choose another measure"
        )
    return [found[index] for index in kept]
