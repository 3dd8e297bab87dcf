"""Which files of a model are brought from object storage or the hub, and which never are."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consomme.base.errors import CheckpointError
from consomme.storage.model_cache import cached_model
from consomme.storage.stores.store import FileInfo, Store, is_safe_path

WEIGHTS = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class FolderKind:
    """What a folder holds that a recipe names."""

    noun: str
    """What it is called in messages."""

    config: str
    """File that every such folder has."""

    inside: str
    """Folder of a train or soup run that is one."""


MODEL = FolderKind(noun="model", config="config.json", inside="model")
"""A Hugging Face folder."""

ADAPTER = FolderKind(noun="adapter", config="adapter_config.json", inside="adapter")
"""A LoRA in PEFT's format."""

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""Weights in these run code when they are opened, so they are neither opened nor brought."""

_OPENED = (WEIGHTS, ".json", ".txt", ".model", ".jinja", ".tiktoken", ".bpe", ".vocab")
"""What is opened of a model. Notes for people, weights for other libraries, and code, which is
never run (`trust_remote_code` stays off), are not brought."""

_INSIDE = ("additional_chat_templates/",)
"""Folders of a model folder that are part of the model."""

_WHOLE_INDEX = ("model.safetensors", "model.safetensors.index.json")
_OTHER_COPY = "consolidated"
"""Begins a second copy of the weights, under the names of another library."""

logger = logging.getLogger(__name__)


def bring_model(store: Store, files: Sequence[FileInfo], *, has_weights: bool) -> Path:
    """Return the local folder of a model in object storage or on the hub; see `cached_model`.

    Args:
        store: Rooted at the model folder.
        files: All its files.
        has_weights: False leaves the weights where they are.

    Raises:
        CheckpointError: Its only weights are pickles, or it has none.
    """
    for file in files:
        if not is_safe_path(file.path):
            raise CheckpointError(
                f"{store.url}: found a file {file.path!r}, whose path is not allowed in a model"
                " folder; remove it there"
            )
    wanted = wanted_files(files)
    light = [file for file in wanted if not file.path.endswith(WEIGHTS)]
    if len(light) == len(wanted):
        if found := pickles_of(file.path for file in files):
            raise refused_pickles(store.url, found)
        raise CheckpointError(
            f"{store.url} holds no *{WEIGHTS} file; expected a model folder with its weights"
        )
    if not has_weights:
        return cached_model(store, light, whole=wanted)
    if found := pickles_of(file.path for file in files):
        logger.info(
            "%s: %s left out: pickles, which run code when they are opened; the weights are read"
            " from the safetensors files",
            store.url,
            _names(found),
        )
    return cached_model(store, wanted, part=light)


def wanted_files(files: Iterable[FileInfo]) -> list[FileInfo]:
    """Return the files of a model folder that may be opened."""
    files = list(files)
    is_whole = any(file.path in _WHOLE_INDEX for file in files)
    return [file for file in files if _is_wanted(file.path, is_whole=is_whole)]


def _is_wanted(path: str, *, is_whole: bool) -> bool:
    folder, _, name = path.rpartition("/")
    if folder and not path.startswith(_INSIDE):
        return False
    if is_whole and name.startswith(_OTHER_COPY):
        return False
    return name.endswith(_OPENED)


def pickles_of(paths: Iterable[str]) -> list[str]:
    """Return those of the paths at the top of a folder that are pickled weights."""
    return sorted(path for path in paths if "/" not in path and path.endswith(_PICKLES))


def refused_pickles(where: str, found: Sequence[str]) -> CheckpointError:
    """Say that a model has no weights but pickles."""
    return CheckpointError(
        f"{where} holds no *{WEIGHTS} file, only {_names(found)}: pickles, which run code when they"
        " are opened, so they are not opened here. Use a revision with safetensors (on the hub"
        " often refs/pr/1), or convert them where you trust them: load the model, save_pretrained"
    )


def missing_model(model: str, found: str, kind: FolderKind = MODEL) -> CheckpointError:
    """Say that there is no model, or adapter, where a recipe names one."""
    folder = "a Hugging Face folder" if kind is MODEL else "a folder in PEFT's format"
    shipped = ", or package://models/nano," if kind is MODEL else ","
    return CheckpointError(
        f"{kind.noun}: found no {kind.config} in {found}; expected {folder}, or the folder of a"
        f" finished train or soup run{shipped} by path or URL (s3://, gs://), or one on the"
        f" hub (org/name, hf://org/name) (the recipe says {model})"
    )


def _names(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(paths[:3]) + more


def is_quantised(config: Mapping[str, Any]) -> bool:
    """Whether a model's stored numbers are codes, by the content of its `config.json`."""
    return bool(config.get("quantization_config")) and not is_from_gguf(config)


def is_from_gguf(config: Mapping[str, Any]) -> bool:
    """Whether transformers opened a model from GGUF and saved it again: its weights are plain."""
    how = config.get("quantization_config")
    return isinstance(how, Mapping) and how.get("quant_method") == "gguf"
