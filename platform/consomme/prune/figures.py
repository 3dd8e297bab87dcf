"""What a model costs: weights, time per generated token, and cache of keys and values per token."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

_TIMED_TOKENS = 16
_REPEATS = 3


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """Costs of one model on the machine that measured them."""

    num_layers: int
    num_parameters: int
    """Stored numbers."""

    weight_bytes: int
    """Of the stored weights."""

    token_s: float | None
    """Seconds per generated token, one conversation at a time, with a cache: the median of some
    repetitions. None for families that `generate` of transformers cannot do."""

    cache_bytes: int | None
    """Bytes of keys and values per token of a conversation, in the dtype of the measurement; None
    for families whose cache was not found."""

    def plain(self) -> dict[str, Any]:
        """Return the figures as plain values."""
        return asdict(self)


@torch.inference_mode()
def model_cost(
    model: Any,
    inputs: Sequence[Mapping[str, Tensor]],
    *,
    num_layers: int,
    num_parameters: int,
    weight_bytes: int,
) -> ModelCost:
    """Measure an open model.

    Args:
        model: In eval mode, on the device that counts.
        inputs: Of conversations of different lengths, one each; see `probes`.
        num_layers: Of the language model.
        num_parameters: Stored numbers.
        weight_bytes: Bytes of the stored weights.
    """
    by_length = sorted(inputs, key=lambda one: one["input_ids"].shape[1])
    return ModelCost(
        num_layers=num_layers,
        num_parameters=num_parameters,
        weight_bytes=weight_bytes,
        token_s=_seconds_per_token(model, by_length[0]),
        cache_bytes=_cache_growth(model, by_length[0], by_length[-1]),
    )


def _seconds_per_token(model: Any, inputs: Mapping[str, Tensor]) -> float | None:
    try:
        _generation_s(model, inputs, _TIMED_TOKENS)
    # Some families raise what their code happens to raise.
    except Exception:  # noqa: BLE001
        return None
    found = sorted(
        (_generation_s(model, inputs, 1 + _TIMED_TOKENS) - _generation_s(model, inputs, 1))
        / _TIMED_TOKENS
        for _ in range(_REPEATS)
    )
    return max(found[len(found) // 2], 0.0)


def _generation_s(model: Any, inputs: Mapping[str, Tensor], count: int) -> float:
    begin = time.perf_counter()
    model.generate(
        **inputs, max_new_tokens=count, min_new_tokens=count, do_sample=False, use_cache=True
    )
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter() - begin


def _cache_growth(
    model: Any, short: Mapping[str, Tensor], long: Mapping[str, Tensor]
) -> int | None:
    """Return the bytes that a longer text adds to the cache, per token."""
    sizes = []
    for inputs in (short, long):
        output = model(**inputs, use_cache=True)
        cache = output.get("past_key_values")
        if cache is None:
            return None
        sizes.append(sum(one.nbytes for one in _tensors(cache, set())))
    longer = long["input_ids"].shape[1] - short["input_ids"].shape[1]
    if not longer:
        return None
    return round((sizes[1] - sizes[0]) / longer)


def _tensors(value: Any, seen: set[int]) -> Sequence[Tensor]:
    """Return the tensors inside a cache, each once."""
    if id(value) in seen:
        return ()
    seen.add(id(value))
    if isinstance(value, Tensor):
        return (value,)
    if isinstance(value, list | tuple):
        parts = list(value)
    elif isinstance(value, dict):
        parts = list(value.values())
    elif type(value).__module__.startswith("transformers.") and hasattr(value, "__dict__"):
        parts = [one for key, one in vars(value).items() if "config" not in key]
    else:
        return ()
    return [tensor for part in parts for tensor in _tensors(part, seen)]
