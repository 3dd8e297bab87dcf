"""Open the checkpoints of a soup, and check that they can be averaged.

Everything that can be checked without loading weights is checked first. Only the headers of the
safetensors files are read, a few kilobytes per model, so opening forty models of seven billion
parameters takes well under a second.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consomme.base.errors import CheckpointError
from consomme.soup.arrays import Floats, stored_type
from consomme.storage.model_files import is_quantised

_HEADER_LIMIT = 100_000_000


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """Location, data type and shape of a stored tensor."""

    file: str
    """Name of the safetensors file."""

    dtype: str
    """Data type in safetensors notation, such as `BF16`."""

    shape: tuple[int, ...]
    """Shape of the tensor."""

    start: int
    """Offset of its first byte in the file."""


@dataclass(frozen=True, kw_only=True)
class Ingredient:
    """A checkpoint folder whose headers have been read."""

    name: str
    """Name in messages and lineages: the folder's name, or one given by the caller."""

    folder: Path
    """Hugging Face folder on local disk."""

    source: str
    """Where the folder came from, in lineages: itself, or a URL."""

    tensors: Mapping[str, TensorSpec]
    """Stored tensors by name, in the order of their offsets."""

    config: Mapping[str, Any]
    """config.json."""

    has_index: bool
    """Whether an index says which file holds which tensor."""

    updates: Mapping[str, LowRank] = field(default_factory=dict)
    """Of an adapter: what it adds to some tensors. All else is that of the model it is for."""


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """A product that is added to a matrix of O x I values."""

    a_RI: NDArray[np.float64]  # noqa: N815
    b_OR: NDArray[np.float64]  # noqa: N815
    """Scaled."""

    def add_to(self, values: Floats, start: int) -> Floats:
        """Return whole rows of the matrix, flat, with the product added.

        It is summed in float64 and rounded once, so it does not depend on how many rows there are.

        Args:
            values: The rows, flat.
            start: Place of the first value in the matrix.
        """
        width = self.a_RI.shape[1]
        first = start // width
        product = self.b_OR[first : first + len(values) // width] @ self.a_RI
        return (values + product.reshape(-1)).astype(values.dtype)


def open_ingredient(folder: str | Path, name: str = "", source: str = "") -> Ingredient:
    """Read the headers of one checkpoint.

    Args:
        folder: Hugging Face folder on local disk.
        name: See `Ingredient`.
        source: See `Ingredient`; empty for the folder itself.

    Raises:
        CheckpointError: There is no folder, config.json or safetensors file, or one is damaged.
    """
    path = Path(folder)
    config_file = path / "config.json"
    config = _config(config_file)
    index = _index(path)
    files = _weight_files(path, index)
    tensors: dict[str, TensorSpec] = {}
    for file in files:
        header, body = read_header(file)
        for key, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            if key in tensors:
                raise CheckpointError(
                    f"ingredient {str(path)!r}: tensor {key!r} is stored twice, in "
                    f"{tensors[key].file} and {file.name}; remove the file that does not belong"
                )
            tensors[key] = TensorSpec(
                file=file.name,
                dtype=entry["dtype"],
                shape=tuple(entry["shape"]),
                start=body + entry["data_offsets"][0],
            )
    lost = sorted(set(index or ()) - tensors.keys())
    if lost:
        raise CheckpointError(
            f"ingredient {str(path)!r}: {len(lost):,} tensors that its index names are in none of"
            f" its files, such as {lost[0]!r}; copy it again"
        )
    _drop_tied_copy(path, tensors, config)
    return Ingredient(
        name=name or path.name,
        folder=path,
        source=source or str(path),
        tensors=tensors,
        config=config,
        has_index=index is not None,
    )


def read_header(file: Path) -> tuple[dict[str, Any], int]:
    """Return a safetensors header (name -> dtype, shape, data_offsets) and the data's offset.

    Raises:
        CheckpointError: The file is truncated or is not a safetensors file.
    """
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        text = stream.read(length) if 2 <= length <= _HEADER_LIMIT else b""
    try:
        header = json.loads(text) if len(text) == length else None
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise CheckpointError(f"{file}: not a whole safetensors file; copy it again")
    header.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    size = file.stat().st_size
    if 8 + length + end != size:
        raise CheckpointError(
            f"{file}: {size:,} bytes, expected {8 + length + end:,}; it was cut off, copy it again"
        )
    return header, 8 + length


def _drop_tied_copy(
    folder: Path, tensors: dict[str, TensorSpec], config: Mapping[str, Any]
) -> None:
    """Forget an output matrix that copies the embeddings; most programs do not store it.

    So a model that was saved with it is like one that was saved without it.
    """
    flags = [config, *(one for one in config.values() if isinstance(one, dict))]
    if not any(one.get("tie_word_embeddings") for one in flags):
        return
    for head in [name for name in tensors if name.endswith("lm_head.weight")]:
        spec = tensors[head]
        same = [
            name
            for name, one in tensors.items()
            if name.endswith(_EMBEDDINGS) and (one.shape, one.dtype) == (spec.shape, spec.dtype)
        ]
        if any(_is_equal(folder, spec, tensors[name]) for name in same):
            del tensors[head]


_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
_COMPARED = 1 << 24


def _is_equal(folder: Path, one: TensorSpec, other: TensorSpec) -> bool:
    """Whether two stored tensors have the same bytes."""
    left = math.prod(one.shape) * stored_type(one.dtype).itemsize
    with (folder / one.file).open("rb") as first, (folder / other.file).open("rb") as second:
        first.seek(one.start)
        second.seek(other.start)
        while left > 0:
            size = min(left, _COMPARED)
            if first.read(size) != second.read(size):
                return False
            left -= size
    return True


_ADAPTER = "adapter_config.json"
_ADAPTER_WEIGHTS = "adapter_model"
_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d{5}-of-(\d{5})\.safetensors")


def _config(file: Path) -> dict[str, Any]:
    folder = file.parent
    if not file.is_file() and (folder / _ADAPTER).is_file():
        raise CheckpointError(
            f"ingredient {str(folder)!r}: an adapter without its model; expected a model, or the"
            " adapter as an ingredient of a soup whose base is its model"
        )
    if not file.is_file():
        raise CheckpointError(
            f"ingredient {str(folder)!r}: no config.json; expected a Hugging Face model folder"
        )
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise CheckpointError(f"{file}: not JSON: {error}; copy it again") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: found {type(config).__name__}, expected an object")
    if is_quantised(config):
        raise CheckpointError(
            f"ingredient {str(folder)!r}: a quantised model, whose stored numbers have no average;"
            " mix the models that were quantised, and quantise the soup"
        )
    return config


def _index(folder: Path) -> dict[str, str] | None:
    """Return which file holds which tensor, if there is an index."""
    file = folder / _INDEX
    if not file.is_file() or (folder / _WHOLE).is_file():
        return None
    try:
        found: dict[str, str] = json.loads(file.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: no index of weights: {error!r}; copy it again") from error
    return found


def _weight_files(folder: Path, index: Mapping[str, str] | None) -> list[Path]:
    """Return the files of the model's weights; others beside them are none of it.

    Raises:
        CheckpointError: There are none, or one is missing.
    """
    if index is not None:
        names = sorted(set(index.values()))
    elif (folder / _WHOLE).is_file():
        names = [_WHOLE]
    else:
        files = (path.name for path in folder.glob("*.safetensors"))
        names = sorted(name for name in files if not name.startswith(_ADAPTER_WEIGHTS))
        shards = [name for name in names if _SHARD.fullmatch(name)]
        if shards:
            total = int(_SHARD.fullmatch(shards[0])[1])  # type: ignore[index]
            names = [f"model-{k + 1:05d}-of-{total:05d}.safetensors" for k in range(total)]
    if not names:
        raise CheckpointError(
            f"ingredient {str(folder)!r}: no *.safetensors file; other formats are not read,"
            " because loading them can run code. Save the model with safe serialization"
        )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"ingredient {str(folder)!r}: {len(missing)} of {len(names)} files of weights are"
            f" missing, such as {missing[0]}; copy it again"
        )
    return [folder / name for name in names]
