"""Average weights in float32, tensor by tensor, with one cast at the end.

The average is a running mean, `mean += (theta - mean) * share`. So the average of equal models is
that model bit for bit, memory is one accumulator and one tensor for any number of ingredients, and
no sum can overflow float32. The released POINTS script sums whole models in bfloat16, which loses
up to eight bits.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from consomme.base.errors import CheckpointError, RecipeError
from consomme.soup.ingredients import Ingredient, TensorSpec, check_compatible

_COPIED_SUFFIXES = (".json", ".txt", ".model", ".jinja")
_NOT_COPIED = ("soup.json", "manifest.json", "trainer_state.json")
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def mix_tensor(load: Sequence[Callable[[], Tensor]], shares: Sequence[float]) -> Tensor:
    """Return the weighted average of one tensor, in its own data type.

    Args:
        load: One function per ingredient that loads the tensor; called only for non-zero shares.
        shares: Non-negative, summing to one.

    Returns:
        Float tensors averaged in float32 (float64 stays float64) and cast once. Integer and boolean
        buffers have no meaningful average: those of the first ingredient with a share are returned.
    """
    mean: Tensor | None = None
    total = 0.0
    dtype = torch.float32
    for read, share in zip(load, shares, strict=True):
        if share == 0.0:
            continue
        tensor = read()
        total += share
        if mean is None:
            if not tensor.is_floating_point():
                return tensor.clone()
            dtype = tensor.dtype
            accumulator_dtype = torch.float64 if dtype == torch.float64 else torch.float32
            mean = tensor.to(accumulator_dtype, copy=True)
        else:
            mean.lerp_(tensor.to(mean.dtype), share / total)
    if mean is None:
        raise RecipeError("every share of the soup is zero; give at least one ingredient a share")
    return mean.to(dtype)


def shares_of(count: int, weights: Sequence[float] | None) -> list[float]:
    """Normalise weights to shares that sum to one; without `weights`, equal shares.

    Raises:
        RecipeError: The number of weights is wrong, or they are negative or sum to zero.
    """
    if weights is None:
        return [1.0 / count] * count
    if len(weights) != count:
        raise RecipeError(f"{len(weights)} weights for {count} ingredients: give one each")
    total = math.fsum(weights)
    if not all(math.isfinite(w) and w >= 0 for w in weights) or total <= 0:
        raise RecipeError(f"weights {list(weights)}: expected numbers >= 0 with a sum above zero")
    return [w / total for w in weights]


def average_ingredients(
    ingredients: Sequence[Ingredient], weights: Sequence[float] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Average checkpoints on disk, tensor by tensor, in the stored order of the first one.

    Raises:
        CheckpointError: The ingredients cannot be averaged; see `check_compatible`.
    """
    check_compatible(ingredients)
    shares = shares_of(len(ingredients), weights)
    for name in ingredients[0].tensors:
        yield name, mix_tensor(_readers(ingredients, name), shares)


def write_soup(
    folder: str | Path,
    ingredients: Sequence[Ingredient],
    weights: Sequence[float] | None = None,
    *,
    lineage: Mapping[str, Any] | None = None,
) -> Path:
    """Write the average as a Hugging Face folder with a `soup.json`.

    Weights are split into files as in the first ingredient; its configuration, tokenizer and
    processor are copied. Weights stream through memory one tensor at a time. `soup.json` is written
    last, so a folder that has one is complete.

    Args:
        folder: Created if missing.
        ingredients: Opened checkpoints.
        weights: One number per ingredient, or None for equal shares.
        lineage: Further content of `soup.json`, such as the decisions of the search.
    """
    check_compatible(ingredients)
    shares = shares_of(len(ingredients), weights)
    target, first = Path(folder), ingredients[0]
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted({spec.file for spec in first.tensors.values()}):
        specs = {name: spec for name, spec in first.tensors.items() if spec.file == file}
        _write_file(target / file, specs, ingredients, shares)
    for path in sorted(first.folder.iterdir()):
        if path.suffix in _COPIED_SUFFIXES and path.name not in _NOT_COPIED:
            _replace(target / path.name, path.read_bytes())
    content = {
        "ingredients": [
            {"name": i.name, "folder": i.source, "share": share}
            for i, share in zip(ingredients, shares, strict=True)
        ],
        **(lineage or {}),
    }
    _replace(target / "soup.json", (json.dumps(content, indent=2) + "\n").encode())
    return target


def _write_file(
    target: Path,
    specs: Mapping[str, TensorSpec],
    ingredients: Sequence[Ingredient],
    shares: Sequence[float],
) -> None:
    """Write one safetensors file: the header, then each tensor as soon as it is averaged."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, spec in specs.items():
        size = math.prod(spec.shape) * _dtype(spec.dtype).itemsize
        header[name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    # The format requires tensor data to be aligned to eight bytes.
    text += b" " * (-len(text) % 8)
    temporary = target.with_suffix(".tmp")
    with temporary.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in specs:
            mixed = mix_tensor(_readers(ingredients, name), shares)
            stream.write(mixed.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    temporary.replace(target)


def _readers(ingredients: Sequence[Ingredient], name: str) -> list[Callable[[], Tensor]]:
    """Return one function per ingredient that reads the tensor of this name."""
    return [partial(_read, i.folder, i.tensors[name]) for i in ingredients]


def _read(folder: Path, spec: TensorSpec) -> Tensor:
    """Read one tensor; memory-mapping whole files would count them all as used memory."""
    dtype = _dtype(spec.dtype)
    size = math.prod(spec.shape) * dtype.itemsize
    if size == 0:
        return torch.empty(spec.shape, dtype=dtype)
    content = bytearray(size)
    with (folder / spec.file).open("rb", buffering=0) as file:
        file.seek(spec.start)
        filled = 0
        while filled < size:
            count = file.readinto(memoryview(content)[filled:])
            if not count:
                raise CheckpointError(f"{folder / spec.file}: ended within a tensor; copy it again")
            filled += count
    return torch.frombuffer(content, dtype=dtype).reshape(spec.shape)


def _dtype(name: str) -> torch.dtype:
    if name not in _DTYPES:
        known = ", ".join(_DTYPES)
        raise CheckpointError(f"tensors of type {name} cannot be averaged; expected one of {known}")
    return _DTYPES[name]


def _replace(target: Path, content: bytes) -> None:
    temporary = target.with_name(target.name + ".tmp")
    temporary.write_bytes(content)
    temporary.replace(target)
