"""Open the checkpoints of a soup, and check that they can be averaged.

Everything that can be checked without loading weights is checked first. Only the headers of the
safetensors files are read, a few kilobytes per model, so opening forty models of seven billion
parameters takes well under a second.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consomme.base.errors import CheckpointError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")
"""Files that must be byte-identical: with another token order an average is meaningless."""

VOLATILE_CONFIG = frozenset({"_name_or_path", "transformers_version", "dtype", "torch_dtype"})
"""Keys of config.json that do not affect the model's architecture."""

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
    """config.json without volatile keys."""

    tokenizer_hash: str
    """Hash over the tokenizer files."""


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
    if not config_file.is_file():
        raise CheckpointError(
            f"ingredient {str(path)!r}: no config.json; expected a Hugging Face model folder"
        )
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise CheckpointError(
            f"ingredient {str(path)!r}: no *.safetensors file; other formats are not read, because "
            "loading them can run code. Save the model with safe serialization"
        )
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
    config = json.loads(config_file.read_text())
    return Ingredient(
        name=name or path.name,
        folder=path,
        source=source or str(path),
        tensors=tensors,
        config=_without_volatile(config),
        tokenizer_hash=_tokenizer_hash(path),
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


def check_compatible(ingredients: Sequence[Ingredient]) -> None:
    """Check that the ingredients can be averaged, by comparing each with the first.

    Raises:
        CheckpointError: There are no ingredients, or two ingredients differ in tensors, shapes,
            data types, tokenizer or architecture. The message names the first difference.
    """
    if not ingredients:
        raise CheckpointError("a soup needs at least one ingredient; none was given")
    first = ingredients[0]
    for other in ingredients[1:]:
        difference = _first_difference(first, other)
        if difference:
            raise CheckpointError(
                f"a soup of strangers: {first.name!r} and {other.name!r} cannot be averaged: "
                f"{difference}. Ingredients must be fine-tunes of one base with one architecture "
                f"and one tokenizer; leave {other.name!r} out, or train it from the same base"
            )


def _first_difference(first: Ingredient, other: Ingredient) -> str:
    for key, spec in first.tensors.items():
        other_spec = other.tensors.get(key)
        if other_spec is None:
            return f"tensor {key!r} is missing in the second"
        if other_spec.shape != spec.shape:
            return f"tensor {key!r} has shape {list(spec.shape)} against {list(other_spec.shape)}"
        if other_spec.dtype != spec.dtype:
            return (
                f"tensor {key!r} is stored as {spec.dtype} against {other_spec.dtype} "
                "(save both in the same data type)"
            )
    extra = sorted(set(other.tensors) - set(first.tensors))
    if extra:
        return f"tensor {extra[0]!r} exists only in the second"
    for key in sorted(set(first.config) | set(other.config)):
        if first.config.get(key) != other.config.get(key):
            ours, theirs = first.config.get(key), other.config.get(key)
            return f"config.json: {key!r} is {_short(ours)} against {_short(theirs)}"
    if first.tokenizer_hash != other.tokenizer_hash:
        return f"their tokenizers differ ({', '.join(TOKENIZER_FILES)})"
    return ""


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 80 else text[:77] + "…"


def _without_volatile(config: Any) -> Any:
    if not isinstance(config, dict):
        return config
    return {k: _without_volatile(v) for k, v in config.items() if k not in VOLATILE_CONFIG}


def _tokenizer_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
    return digest.hexdigest()
