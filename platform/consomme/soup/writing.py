"""Write a mix of models as a folder that `transformers` loads.

Pieces are written in order as they are mixed, so memory does not grow with the model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from consomme.soup.arrays import stored_type
from consomme.soup.card import group_shares, model_card
from consomme.soup.methods import METHODS, MixMethod
from consomme.soup.mixing import STORED_AS, MixReader, ModelMix

_COPIED_SUFFIXES = (".json", ".txt", ".model", ".jinja")

_NOT_COPIED = (
    "soup.json",
    "manifest.json",
    "trainer_state.json",
    "adapter_config.json",
    "all_results.json",
    "train_results.json",
    "eval_results.json",
)

INDEX = "model.safetensors.index.json"


def write_soup(
    folder: str | Path,
    mixture: ModelMix,
    *,
    max_shard_bytes: int | None = None,
    lineage: Mapping[str, Any] | None = None,
) -> Path:
    """Write a mixture as a Hugging Face folder with a `soup.json`.

    The configuration, tokenizer and processor of the first model are copied. `soup.json` is written
    last, so a folder that has one is complete.

    Args:
        folder: Created if missing.
        mixture: What is mixed.
        max_shard_bytes: Largest file of weights, unless a single tensor is larger; None: files as
            the first model has them.
        lineage: Further content of `soup.json`, such as the decisions of the search.
    """
    target, first = Path(folder), mixture.ingredients[0]
    target.mkdir(parents=True, exist_ok=True)
    files = _files(mixture, max_shard_bytes)
    with MixReader(mixture) as reader:
        for file, names in files.items():
            _write_file(target / file, names, mixture, reader)
    for path in sorted(first.folder.iterdir()):
        is_copied = path.suffix in _COPIED_SUFFIXES and path.name not in (*_NOT_COPIED, INDEX)
        if is_copied:
            _replace(target / path.name, path.read_bytes())
    _drop_origin(target / "config.json")
    if mixture.dtype:
        _set_dtype(target / "config.json", mixture.dtype)
    if len(files) > 1 or first.has_index:
        _replace(target / INDEX, _index_of(mixture, files))
    method = _described(mixture.method)
    _replace(target / "README.md", model_card(mixture, method).encode())
    content = {
        "method": method,
        **({"base": mixture.base.source} if mixture.base else {}),
        **({"groups": group_shares(mixture)} if mixture.groups else {}),
        "ingredients": [
            {"name": i.name, "folder": i.source, "share": share}
            for i, share in zip(mixture.ingredients, mixture.shares, strict=True)
        ],
        **(lineage or {}),
    }
    _replace(target / "soup.json", (json.dumps(content, indent=2) + "\n").encode())
    return target


def _described(method: MixMethod) -> dict[str, Any]:
    name = next(name for name in METHODS.names() if type(method) is METHODS.get(name))
    return {"name": name, **asdict(method)}  # type: ignore[call-overload]


def _files(mixture: ModelMix, max_shard_bytes: int | None) -> dict[str, list[str]]:
    """Return the tensors of each file that is written."""
    tensors = mixture.ingredients[0].tensors
    files: dict[str, list[str]] = {}
    if max_shard_bytes is None:
        for name, spec in tensors.items():
            files.setdefault(spec.file, []).append(name)
        return dict(sorted(files.items()))
    groups: list[list[str]] = [[]]
    filled = 0
    for name in tensors:
        size = _num_bytes(mixture, name)
        if groups[-1] and filled + size > max_shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {
        f"model-{k + 1:05d}-of-{len(groups):05d}.safetensors": names
        for k, names in enumerate(groups)
    }


def _num_bytes(mixture: ModelMix, name: str) -> int:
    shape = mixture.ingredients[0].tensors[name].shape
    return math.prod(shape) * stored_type(mixture.stored_as(name)).itemsize


def _index_of(mixture: ModelMix, files: Mapping[str, Sequence[str]]) -> bytes:
    total = sum(_num_bytes(mixture, name) for names in files.values() for name in names)
    where = {name: file for file, names in files.items() for name in names}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    return (json.dumps(index, indent=2) + "\n").encode()


def _drop_origin(config: Path) -> None:
    """Take out of a configuration that its weights came from GGUF: they are plain ones here."""
    content = json.loads(config.read_text())
    if content.pop("quantization_config", None) is not None:
        _replace(config, (json.dumps(content, indent=2) + "\n").encode())


def _set_dtype(config: Path, dtype: str) -> None:
    """Let a configuration name the type of the weights beside it, wherever it names one."""
    name = next(name for name, stored in STORED_AS.items() if stored == dtype)

    def changed(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            key: name if key in ("dtype", "torch_dtype") and isinstance(one, str) else changed(one)
            for key, one in value.items()
        }

    content = changed(json.loads(config.read_text()))
    _replace(config, (json.dumps(content, indent=2) + "\n").encode())


def _write_file(target: Path, names: Sequence[str], mixture: ModelMix, reader: MixReader) -> None:
    """Write one safetensors file: the header, then the pieces as they are mixed."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        size = _num_bytes(mixture, name)
        header[name] = {
            "dtype": mixture.stored_as(name),
            "shape": list(mixture.ingredients[0].tensors[name].shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    # The format requires tensor data to be aligned to eight bytes.
    text += b" " * (-len(text) % 8)
    temporary = target.with_suffix(".tmp")
    with temporary.open("wb", buffering=0) as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            for _, _, piece in reader.mixed(reader.open(name)):
                stream.write(piece.view(np.uint8).data)
    temporary.replace(target)


def _replace(target: Path, content: bytes) -> None:
    temporary = target.with_name(target.name + ".tmp")
    temporary.write_bytes(content)
    temporary.replace(target)
