"""Resolve a recipe's model to a local folder, and hash its content.

A model in object storage is downloaded once per machine, by `consomme.storage.model_cache`, and
loaded from there.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import consomme
from consomme.base.errors import CheckpointError
from consomme.storage.model_cache import cached_model
from consomme.storage.stores.open import absolute_url, open_store
from consomme.storage.stores.regular import kind_of

_PACKAGE = "package://"


def model_folder(model: str) -> str:
    """Resolve a recipe's model: a folder, a finished train or soup run, or `package://models/nano`.

    Returns:
        Absolute path of a Hugging Face folder on this machine.

    Raises:
        CheckpointError: There is no config.json, or something in the folder is no file.
    """
    if model.startswith(_PACKAGE):
        path = Path(consomme.__file__).parent / model.removeprefix(_PACKAGE)
    elif "://" in model:
        path = _downloaded(model)
    else:
        path = Path(model)
    if not (path / "config.json").exists() and (path / "model" / "config.json").exists():
        path = path / "model"
    if not (path / "config.json").exists():
        raise _missing(model, str(path))
    for entry in sorted([*path.glob("*"), *path.glob("*/*")]):
        # Links are the user's own choice, and all that a cache of the hub has; a pipe would block.
        if kind := kind_of(entry):
            raise CheckpointError(f"model: {entry} is {kind}, expected a file; remove it")
    return str(path.resolve())


def portable_path(model: str) -> str:
    """Return a path or URL by which another process or machine finds the model.

    That is what workers are given: each node brings a model in object storage once, into its own
    cache, and a model of the package lies where the package is installed there.

    Raises:
        CheckpointError: There is no such model.
    """
    folder = model_folder(model)
    return absolute_url(model) if "://" in model else folder


def _missing(model: str, found: str) -> CheckpointError:
    return CheckpointError(
        f"model: found no config.json in {found}; expected a Hugging Face folder, or the folder of"
        f" a finished train or soup run, or package://models/nano (the recipe says {model})"
    )


def _downloaded(url: str) -> Path:
    """Download a model from object storage, unless it is in the local cache."""
    store = open_store(url)
    if not store.exists("config.json"):
        store = open_store(f"{url.rstrip('/')}/model")
    files = list(store.list())
    if "config.json" not in {file.path for file in files}:
        raise _missing(url, store.url)
    return cached_model(store, files)


_GENERATION_CONFIG = "generation_config.json"
_NOTES = ("readme", "license", "licence", "notice", "changelog")
_MODEL_SUFFIXES = (".safetensors", ".json", ".txt", ".model", ".jinja")
_NOT_MODEL = ("soup.json", "manifest.json", "trainer_state.json")
_CHUNK_BYTES = 1 << 22


def model_content_hash(folder: str | Path, *, generates: bool = True) -> str:
    """Return the SHA-256 of all files of a model folder that determine the model's output.

    Weights, configuration, tokenizer, processor and chat template count; records of the model's
    origin, notes for people and the path of the folder do not.

    Args:
        folder: The model folder.
        generates: Whether the model writes text. If not, as in training, the tokens that end a text
            are all that counts of its generation config.

    Raises:
        CheckpointError: The folder holds no safetensors file.
    """
    files = sorted(
        p
        for p in Path(folder).glob("*")
        if p.is_file()
        and p.suffix in _MODEL_SUFFIXES
        and p.name not in _NOT_MODEL
        and p.name.lower().partition(".")[0] not in _NOTES
    )
    if not any(p.suffix == ".safetensors" for p in files):
        raise CheckpointError(
            f"{str(folder)!r} holds no *.safetensors file; expected a model folder"
        )
    digest = hashlib.sha256()
    for path in files:
        if path.name == _GENERATION_CONFIG and not generates:
            digest.update(f"eos_token_id {_eos_token_id(path)}\n".encode())
            continue
        inner = hashlib.sha256()
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                inner.update(chunk)
        digest.update(f"{path.name}\0{inner.hexdigest()}\n".encode())
    return digest.hexdigest()


def _eos_token_id(path: Path) -> str:
    try:
        content = json.loads(path.read_bytes())
        return json.dumps(content.get("eos_token_id"))
    except (ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: found no JSON object ({error}); mend the file, or delete it"
        ) from error
