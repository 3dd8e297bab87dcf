"""Find the model folder a recipe names, wherever it lies.

One decision is made here: a model in object storage is brought to this machine once, into a folder
named after what is in storage, and opened from there like any other.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import uuid
from pathlib import Path

import consomme
from consomme.base.errors import CheckpointError
from consomme.storage.stores.open import absolute_url, open_store
from consomme.storage.stores.store import Store

_PACKAGE = "package://"


def model_folder(model: str) -> str:
    """Resolve a recipe's model: a folder, a finished train or soup run, or `package://models/nano`.

    Returns:
        Absolute path of a Hugging Face folder on this machine.

    Raises:
        CheckpointError: There is no config.json.
    """
    if model.startswith(_PACKAGE):
        path = Path(consomme.__file__).parent / model.removeprefix(_PACKAGE)
    elif "://" in model:
        path = _brought(model)
    else:
        path = Path(model)
    if not (path / "config.json").exists() and (path / "model" / "config.json").exists():
        path = path / "model"
    if not (path / "config.json").exists():
        raise _missing(model, str(path))
    return str(path.resolve())


def portable_path(model: str) -> str:
    """Name a model so that `model_folder` finds it in another process, on another machine.

    Raises:
        CheckpointError: There is none.
    """
    folder = model_folder(model)
    return absolute_url(model) if "://" in model else folder


def _missing(model: str, found: str) -> CheckpointError:
    return CheckpointError(
        f"model: found no config.json in {found}; expected a Hugging Face folder, or the folder of"
        f" a finished train or soup run, or package://models/nano (the recipe says {model})"
    )


def _brought(url: str) -> Path:
    """Bring a model from object storage, unless it is here."""
    store = open_store(url)
    if not store.exists("config.json"):
        store = open_store(f"{url.rstrip('/')}/model")
    files = list(store.list())
    if "config.json" not in {file.path for file in files}:
        raise _missing(url, store.url)
    named = "\n".join(f"{file.path} {file.size} {file.modified}" for file in files)
    digest = hashlib.sha256(f"{store.url}\n{named}".encode()).hexdigest()[:16]
    place = Path(tempfile.gettempdir()) / "consomme-models" / digest
    if not place.exists():
        _download(store, [file.path for file in files], place)
    return place


def _download(store: Store, paths: list[str], place: Path) -> None:
    building = place.with_name(f"{place.name}-{uuid.uuid4().hex[:8]}")
    for path in paths:
        target = building / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with store.open(path) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 16 << 20)
    try:
        building.rename(place)
    except OSError:
        # Another process brought it first.
        shutil.rmtree(building)


_MODEL_SUFFIXES = (".safetensors", ".json", ".txt", ".model", ".jinja")


_NOT_MODEL = ("soup.json", "manifest.json", "trainer_state.json")


_CHUNK = 1 << 22


def model_content_hash(folder: str | Path) -> str:
    """Return the SHA-256 of everything in a model folder that decides what the model says.

    Weights, configuration, tokenizer, processor and chat template count; notes on where the model
    came from do not, nor do the folder's name and place.

    Raises:
        CheckpointError: The folder holds no safetensors file.
    """
    files = sorted(
        p
        for p in Path(folder).glob("*")
        if p.is_file() and p.suffix in _MODEL_SUFFIXES and p.name not in _NOT_MODEL
    )
    if not any(p.suffix == ".safetensors" for p in files):
        raise CheckpointError(
            f"{str(folder)!r} holds no *.safetensors file; expected a model folder"
        )
    digest = hashlib.sha256()
    for path in files:
        inner = hashlib.sha256()
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                inner.update(chunk)
        digest.update(f"{path.name}\0{inner.hexdigest()}\n".encode())
    return digest.hexdigest()
