"""Look into the layers of a model: what they attend to, and what words image tokens are near to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from consomme.base.errors import CheckpointError
from consomme.models.anatomy import language_model
from consomme.prune.observing import boundaries, image_attention_shares

# Shapes: B = 1 sample, T positions, W width, V vocabulary, S image tokens.

Inputs = Mapping[str, Tensor]

_NORMS = ("norm", "final_layernorm", "ln_f", "norm_f", "final_layer_norm", "embedding_norm")
"""What families call the norm between the last layer and the output matrix."""


def attention_by_layer(
    model: Any, batches: Iterable[Inputs], image_token_id: int | None
) -> list[float]:
    """Return the share of attention that text tokens give to images before them, by layer.

    Raises:
        CheckpointError: The model takes no images, or returns no attention weights.
    """
    stack = model.get_submodule(language_model(model).layers_path)
    return image_attention_shares(model, batches, range(len(stack)), image_token_id)


@torch.inference_mode()
def lens_words(
    model: Any, batches: Iterable[Inputs], tokenizer: Any, image_token_id: int | None, top: int
) -> list[list[tuple[str, float]]]:
    """Return the words that image tokens are nearest to after each layer: the logit lens.

    The final norm and the output matrix are put on the hidden states of each layer; the most likely
    token of each image position is counted.

    Args:
        model: In eval mode.
        batches: Samples, one each.
        tokenizer: Of the model.
        image_token_id: Placeholder of image positions.
        top: Number of words by layer.

    Returns:
        For each layer words with the share of image tokens whose most likely token they are.

    Raises:
        CheckpointError: The model takes no images, or its final norm is not found.
    """
    if image_token_id is None:
        raise CheckpointError(
            "logit_lens: found a model without a vision encoder, so there are no image tokens"
        )
    norm, head = _final_norm(model), model.get_output_embeddings()
    num_layers = len(model.get_submodule(language_model(model).layers_path))
    counts: list[Counter[int]] = [Counter() for _ in range(num_layers)]
    for batch in batches:
        is_image_BT = batch["input_ids"] == image_token_id
        if not is_image_BT.any():
            continue
        for layer, hidden_BTW in enumerate(boundaries(model, batch, range(num_layers))[1:]):
            if hidden_BTW.shape[-1] != head.weight.shape[-1]:
                raise CheckpointError(
                    f"logit_lens: layers of a {type(model).__name__} pass on several streams of"
                    " hidden states, which the output matrix does not take one by one"
                )
            logits_SV = head(norm(hidden_BTW[is_image_BT]))
            # What the model can never write is no word.
            logits_SV[..., image_token_id] = -torch.inf
            counts[layer].update(logits_SV.argmax(dim=-1).flatten().tolist())
    if not counts[0]:
        raise CheckpointError("logit_lens: none of the calibration samples has an image")
    return [
        [
            (word_of(tokenizer, token), number / count.total())
            for token, number in count.most_common(top)
        ]
        for count in counts
    ]


def word_of(tokenizer: Any, token: int) -> str:
    """Return how a token is shown: decoded, with what cannot be seen spelled out."""
    text = str(tokenizer.decode([token]))
    return text if text.strip() and text.isprintable() else repr(text)


def _final_norm(model: Any) -> nn.Module:
    """Return the norm that is applied before the output matrix.

    Raises:
        CheckpointError: It is not found.
    """
    owner = model.get_submodule(language_model(model).path)
    for name in _NORMS:
        found = getattr(owner, name, None)
        if isinstance(found, nn.Module):
            return found
    raise CheckpointError(
        f"logit_lens: cannot find the final norm of a {type(model).__name__}; expected one of"
        f" {', '.join(_NORMS)} beside its layers"
    )


def reverted_layer(
    base: Any, tuned: Any, layer: int, stored: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the tensors of a tuned model with one layer as it was in its base.

    Args:
        base: `StoredLayers` of the base.
        tuned: Those of the tuned model.
        layer: 0-based.
        stored: All tensors of the tuned model by their stored names.
    """
    names = tuned.names(layer)
    before = {names[inner]: tensor for inner, tensor in base.read(layer).items()}
    return {name: before.get(name, tensor) for name, tensor in stored.items()}
