"""Check that a model without layers computes what the whole model does when it skips them.

That is known without the new folder: each removed layer returns what it is given. So the check
covers everything in between: names of tensors, the config, and what a family's code does by the
numbers of layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from consomme.base.errors import CheckpointError, ConsommeError
from consomme.base.sample import Turn
from consomme.models.batches import Batcher
from consomme.prune.skipping import skipped

Inputs = Mapping[str, Tensor]

NUM_NEW_TOKENS = 8
"""Tokens that are generated with and without a cache."""

_QUESTIONS = ("What is it?", "Describe what you see, in as many words as you like, and be exact.")
_SIZES = ((96, 64), (64, 96))
_ROOM = 64
"""Units in the last place that logits may differ by, relative to the largest of them."""

_CACHE_ROOM, _MOST_ROOM = 1024, 0.1
"""The same with a cache and without, where sums are taken in another order; and the most that it
may be in half precision."""


@dataclass(frozen=True, kw_only=True)
class SkippedOutputs:
    """What a whole model computes while it skips some layers."""

    logits: tuple[Tensor, ...]
    """For each probe, float32 on the CPU."""

    is_cacheable: bool
    """Whether the whole model generates the same with a cache and without."""


def probes(model: Any, chat: Any) -> list[Inputs]:
    """Return inputs of a few conversations, one each, on the model's device.

    Raises:
        CheckpointError: The model takes none, or its code fails on one.
    """
    batcher = Batcher(model, chat.tokenizer)
    found: list[Inputs] = []
    for number, question in enumerate(_QUESTIONS):
        turns = (Turn(role="user", content=question),)
        choices: list[list[Image.Image]] = [[]]
        if chat.has_vision:
            choices.insert(0, [_picture(number)])
        for images in choices:
            try:
                row = chat.encode_prompt(turns, images)
            except ConsommeError:
                # Some families take no conversation without an image.
                continue
            found.append(to_device(batcher.collate([row]), model))
    if not found:
        raise CheckpointError("the model's chat template takes no plain question, so nothing can be"
                              " checked; give a model that answers questions")  # fmt: skip
    for one in found:
        try:
            _logits(model, one)
        # A family's code raises what it happens to raise.
        except Exception as error:
            raise CheckpointError(
                f"a {type(model).__name__} cannot be run on a plain conversation: {error}; layers"
                " of this model cannot be removed"
            ) from error
    return found


def _picture(number: int) -> Image.Image:
    """Return a picture with something in it, the same each time."""
    image = Image.linear_gradient("L").resize(_SIZES[number])
    return Image.merge("RGB", (image, image.rotate(180), image.transpose(Image.Transpose(0))))


def to_device(batch: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Bring the inputs of a model to its device, and pixels to its dtype."""
    return {
        name: value.to(model.device, model.dtype)
        if value.is_floating_point()
        else value.to(model.device)
        for name, value in batch.items()
        if name != "labels"
    }


@torch.inference_mode()
def skipped_outputs(
    model: Any,
    inputs: Sequence[Inputs],
    removed: Sequence[int],
    *,
    cacheable: bool | None = None,
) -> SkippedOutputs:
    """Run the probes through a whole model that skips layers.

    Args:
        model: The whole model.
        inputs: Of the probes.
        removed: Layers that it skips.
        cacheable: What `is_cacheable` says of the whole model, if that is known.
    """
    with skipped(model, removed):
        logits = tuple(_logits(model, one) for one in inputs)
    if cacheable is None:
        cacheable = is_cacheable(model, inputs[0])
    return SkippedOutputs(logits=logits, is_cacheable=cacheable)


@torch.inference_mode()
def check_pruned(model: Any, inputs: Sequence[Inputs], expected: SkippedOutputs) -> float:
    """Check a model without layers against the whole model that skipped them.

    Args:
        model: Opened from the new folder, in the dtype that the whole model had.
        inputs: The same probes.
        expected: Of the whole model.

    Returns:
        The largest difference of a logit.

    Raises:
        CheckpointError: The model computes something else.
    """
    worst = 0.0
    for one, logits in zip(inputs, expected.logits, strict=True):
        found = _logits(model, one)
        if found.shape != logits.shape or not found.isfinite().all():
            raise CheckpointError(
                f"the model without these layers returns logits of shape {tuple(found.shape)},"
                f" expected finite ones of {tuple(logits.shape)}; layers of a"
                f" {type(model).__name__} cannot be removed"
            )
        worst = max(worst, float((found - logits).abs().max()))
        allowed = _ROOM * torch.finfo(model.dtype).eps * max(1.0, float(logits.abs().max()))
        if worst > allowed:
            raise CheckpointError(
                f"the model without these layers computes something else than the whole model that"
                f" skips them: logits differ by {worst:.3g}, expected at most {allowed:.3g}. Layers"
                f" of a {type(model).__name__} do something by their number; remove others, or"
                " protect those that the difference comes from"
            )
    if expected.is_cacheable and not is_cacheable(model, inputs[0]):
        raise CheckpointError(
            f"a {type(model).__name__} without these layers generates something else with a cache"
            " than without; layers of this model cannot be removed"
        )
    return worst


@torch.inference_mode()
def is_cacheable(model: Any, inputs: Inputs) -> bool:
    """Whether a model generates the same with a cache of keys and values and without.

    Logits of each step are compared, up to the first token that differs: where two tokens are as
    likely as each other, rounding decides. False as well for families that `generate` of
    transformers cannot do both with.
    """
    try:
        cached, plain = (_generated(model, inputs, use_cache=use) for use in (True, False))
    # Some families raise what their code happens to raise, without a cache or with images.
    except Exception:  # noqa: BLE001
        return False
    for number, (with_cache, without) in enumerate(zip(cached.logits, plain.logits, strict=True)):
        difference = float((with_cache - without).float().abs().max())
        room = min(_CACHE_ROOM * torch.finfo(model.dtype).eps, _MOST_ROOM)
        if not difference <= room * max(1.0, float(without.float().abs().max())):
            return False
        place = number - NUM_NEW_TOKENS
        if not torch.equal(cached.sequences[:, place], plain.sequences[:, place]):
            return True
    return True


def _generated(model: Any, inputs: Inputs, *, use_cache: bool) -> Any:
    """Return tokens and their logits, as a model generates them greedily."""
    # A placeholder of an image that is not there stops some families.
    tokens = [getattr(model.config, name, None) for name in ("image_token_id", "image_token_index")]
    placeholders = [one for one in tokens if isinstance(one, int) and one >= 0]
    return model.generate(
        **inputs,
        max_new_tokens=NUM_NEW_TOKENS,
        min_new_tokens=NUM_NEW_TOKENS,
        suppress_tokens=placeholders or None,
        do_sample=False,
        use_cache=use_cache,
        return_dict_in_generate=True,
        output_logits=True,
    )


@torch.inference_mode()
def _logits(model: Any, inputs: Inputs) -> Tensor:
    logits: Tensor = model(**inputs, use_cache=False).logits
    return logits.float().cpu()
