"""Write a model folder without some layers of the language model.

Weights of the other layers are copied bit for bit and renumbered, the config is rewritten, and all
else is copied. Nothing is loaded, so memory does not grow with the model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consomme.base.errors import CheckpointError, RecipeError
from consomme.models.anatomy import language_model
from consomme.models.stored_keys import LayerKeys, layer_keys, stored_targets
from consomme.models.weights import open_processor
from consomme.prune.layer_config import pruned_config
from consomme.prune.stored import INDEX, KeptTensor, largest_file, stored_tensors, write_tensors
from consomme.prune.structure import BlockSlice, build_empty, compare_layers
from consomme.storage.model_files import is_quantised

_COPIED_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".bpe", ".vocab")

_NOT_COPIED = (
    "config.json",
    "soup.json",
    "manifest.json",
    "trainer_state.json",
    "adapter_config.json",
    INDEX,
)

_TEMPLATES = "additional_chat_templates"


@dataclass(frozen=True, kw_only=True)
class LayerRemoval:
    """How a model folder is written without some layers; nothing is read but headers."""

    folder: Path
    removed: tuple[int, ...]
    """Layers, ascending."""

    num_layers: int
    """Before."""

    config: Mapping[str, Any]
    """Content of the new `config.json`."""

    tensors: Mapping[str, KeptTensor]
    """What is written, by its new name."""

    dropped: tuple[str, ...]
    """Stored tensors of layers beyond the model's own, which are left out."""

    max_file_bytes: int

    @property
    def num_parameters(self) -> int:
        """Numbers that are written."""
        return sum(_count(one.shape) for one in self.tensors.values())

    @property
    def num_bytes(self) -> int:
        """Bytes of weights that are written."""
        return sum(one.num_bytes for one in self.tensors.values())


def plan_removal(folder: str | Path, removed: Sequence[int]) -> LayerRemoval:
    """Say how a model is written without some layers.

    Args:
        folder: Hugging Face folder on this machine.
        removed: Layers of the language model, 0-based.

    Raises:
        CheckpointError: Without these layers, the model cannot be described by a config.
        RecipeError: There are no such layers, or nothing would be left.
    """
    folder = Path(folder)
    stored = stored_tensors(folder)
    content = json.loads((folder / "config.json").read_text())
    if is_quantised(content):
        raise CheckpointError(
            f"{folder}: found a quantised model; prune the model that was quantised, and quantise"
            " what is left"
        )
    config, _ = open_processor(folder)
    whole = build_empty(content)
    path = language_model(whole).layers_path
    num_layers = len(whole.get_submodule(path))
    removed = sorted(set(removed))
    if not all(0 <= index < num_layers for index in removed) or len(removed) >= num_layers:
        raise RecipeError(
            f"found layers {list(removed)} to remove, but the language model has layers 0 to"
            f" {num_layers - 1}, of which one has to stay"
        )
    told = config.get_text_config().num_hidden_layers
    if told != num_layers:
        raise CheckpointError(
            f"found {num_layers} layers in a {type(whole).__name__}, but its config says {told};"
            " layers of this model cannot be removed"
        )
    if removed:
        content = pruned_config(folder, config, removed)
        content.pop("quantization_config", None)
        blocks = compare_layers(whole, build_empty(content), removed)
    else:
        blocks = {}
    keys = layer_keys(whole, stored)
    kept = [index for index in range(num_layers) if index not in removed]
    moved = {old: new for new, old in enumerate(kept)}
    targets = stored_targets(whole, [name for name in stored if name not in keys.layer_of])
    tensors: dict[str, KeptTensor] = {}
    dropped = []
    for name, tensor in stored.items():
        layer = keys.layer_of.get(name)
        if layer is None:
            block = _block_of(targets[name], blocks)
            tensors[name] = (
                KeptTensor(source=tensor)
                if block is None
                else KeptTensor(
                    source=tensor, dim=block.dim, num_blocks=num_layers, blocks=tuple(kept)
                )
            )
        elif layer in moved:
            tensors[keys.renamed(name, moved[layer])] = KeptTensor(source=tensor)
        elif layer >= num_layers and not removed:
            tensors[name] = KeptTensor(source=tensor)
        elif layer >= num_layers:
            dropped.append(name)
    return LayerRemoval(
        folder=folder,
        removed=tuple(removed),
        num_layers=num_layers,
        config=content,
        tensors=tensors,
        dropped=tuple(dropped),
        max_file_bytes=largest_file(list(stored.values())),
    )


def _block_of(target: str, blocks: Mapping[str, BlockSlice]) -> BlockSlice | None:
    return blocks.get(target)


def write_pruned(
    target: str | Path,
    removal: LayerRemoval,
    *,
    max_file_bytes: int | None = None,
    card: str | None = None,
) -> Path:
    """Write what is left of a model as a Hugging Face folder.

    Without a removed layer, weights and config are copied file by file.

    Args:
        target: Created if missing.
        removal: Returned by `plan_removal`.
        max_file_bytes: Largest file of weights; None: as large as the largest of the model.
        card: Text of the model card; None writes none.
    """
    target = Path(target)
    target.mkdir(parents=True, exist_ok=True)
    source = removal.folder
    if removal.removed:
        write_tensors(
            target,
            removal.tensors,
            max_file_bytes=max_file_bytes or removal.max_file_bytes,
        )
        text = json.dumps(removal.config, indent=2) + "\n"
        (target / "config.json").write_text(text)
    else:
        used = {one.source.file for one in removal.tensors.values()}
        for file in sorted([*used, source / "config.json", source / INDEX]):
            if file.exists():
                shutil.copyfile(file, target / file.name)
    for file in sorted(source.iterdir()):
        if file.is_file() and file.suffix in _COPIED_SUFFIXES and file.name not in _NOT_COPIED:
            shutil.copyfile(file, target / file.name)
    if (source / _TEMPLATES).is_dir():
        shutil.copytree(source / _TEMPLATES, target / _TEMPLATES, dirs_exist_ok=True)
    if card is not None:
        (target / "README.md").write_text(card)
    return target


def keys_of(folder: str | Path) -> LayerKeys:
    """Return which stored tensors of a model folder belong to which layer."""
    content = json.loads(Path(folder, "config.json").read_text())
    return layer_keys(build_empty(content), stored_tensors(folder))


def _count(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
