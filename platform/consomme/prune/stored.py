"""Read tensors of a model folder, and write some of them under other names, piece by piece.

Bytes are copied as they are stored, so memory does not grow with the model, every data type passes,
and what is kept is kept bit for bit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from consomme.base.errors import CheckpointError
from consomme.soup.ingredients import read_header

INDEX = "model.safetensors.index.json"

_PIECE_BYTES = 1 << 25


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor in a safetensors file."""

    file: Path
    dtype: str
    """In safetensors notation, such as `BF16`."""

    shape: tuple[int, ...]
    start: int
    """Offset of its first byte in the file."""

    num_bytes: int

    @property
    def num_values(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)


def stored_tensors(folder: str | Path) -> dict[str, StoredTensor]:
    """Return the tensors of a model folder by name, in the order of its files.

    Raises:
        CheckpointError: A file is damaged or missing, or a tensor is stored twice.
    """
    folder = Path(folder)
    index = folder / INDEX
    if index.exists():
        content = json.loads(index.read_text())
        files = sorted({folder / file for file in content["weight_map"].values()})
    else:
        files = sorted(folder.glob("*.safetensors"))
    found: dict[str, StoredTensor] = {}
    for file in files:
        if not file.exists():
            raise CheckpointError(f"{index}: names {file.name}, which is missing; copy it again")
        header, body = read_header(file)
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            if name in found:
                raise CheckpointError(
                    f"{folder}: tensor {name!r} is stored twice, in {found[name].file.name} and"
                    f" {file.name}; remove the file that does not belong"
                )
            start, end = entry["data_offsets"]
            found[name] = StoredTensor(
                file=file,
                dtype=entry["dtype"],
                shape=tuple(entry["shape"]),
                start=body + start,
                num_bytes=end - start,
            )
    if not found:
        raise CheckpointError(f"{folder}: found no *.safetensors file, expected a model folder")
    return found


@dataclass(frozen=True, kw_only=True)
class KeptTensor:
    """A stored tensor that is written, as a whole or without some of its blocks."""

    source: StoredTensor
    dim: int = 0
    """Dimension that its blocks share."""

    num_blocks: int = 1
    """Blocks in that dimension."""

    blocks: tuple[int, ...] = (0,)
    """Those that are kept."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what is written."""
        shape = list(self.source.shape)
        if shape:
            shape[self.dim] = shape[self.dim] // self.num_blocks * len(self.blocks)
        return tuple(shape)

    @property
    def num_bytes(self) -> int:
        """Bytes that are written."""
        return self.source.num_bytes // self.num_blocks * len(self.blocks)

    def pieces(self) -> Iterator[bytes]:
        """Yield the bytes that are written, at most some megabytes at a time."""
        source = self.source
        if source.num_bytes == 0:
            return
        stored = np.memmap(
            source.file, np.uint8, mode="r", offset=source.start, shape=(source.num_bytes,)
        )
        if len(self.blocks) == self.num_blocks:
            for start in range(0, source.num_bytes, _PIECE_BYTES):
                yield stored[start : start + _PIECE_BYTES].tobytes()
            return
        rows = math.prod(source.shape[: self.dim])
        table = stored.reshape(rows, self.num_blocks, -1)
        step = max(1, _PIECE_BYTES // (table.shape[1] * table.shape[2]))
        for start in range(0, rows, step):
            yield table[start : start + step, list(self.blocks)].tobytes()


def write_tensors(
    folder: Path, tensors: Mapping[str, KeptTensor], *, max_file_bytes: int
) -> list[str]:
    """Write tensors as safetensors files, with an index if there are several.

    Args:
        folder: Exists.
        tensors: By the name that they get.
        max_file_bytes: Largest file, unless a single tensor is larger.

    Returns:
        Names of the files of weights.
    """
    groups: list[list[str]] = [[]]
    filled = 0
    for name, tensor in tensors.items():
        if groups[-1] and filled + tensor.num_bytes > max_file_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += tensor.num_bytes
    if len(groups) == 1:
        files = {"model.safetensors": groups[0]}
    else:
        files = {
            f"model-{k + 1:05d}-of-{len(groups):05d}.safetensors": group
            for k, group in enumerate(groups)
        }
    for file, names in files.items():
        _write_file(folder / file, {name: tensors[name] for name in names})
    if len(files) > 1:
        index = {
            "metadata": {"total_size": sum(one.num_bytes for one in tensors.values())},
            "weight_map": {name: file for file, names in files.items() for name in sorted(names)},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return list(files)


def _write_file(path: Path, tensors: Mapping[str, KeptTensor]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.num_bytes
        header[name] = {
            "dtype": tensor.source.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    # The format requires tensor data to be aligned to eight bytes.
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            for piece in tensor.pieces():
                stream.write(piece)


def largest_file(tensors: Sequence[StoredTensor]) -> int:
    """Return the bytes of tensors in the largest file."""
    sizes: dict[Path, int] = {}
    for tensor in tensors:
        sizes[tensor.file] = sizes.get(tensor.file, 0) + tensor.num_bytes
    return max(sizes.values())
