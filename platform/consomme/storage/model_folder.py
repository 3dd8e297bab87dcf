"""Resolve a recipe's model to a local folder, and tell it apart from others.

A model in object storage or on the hub is brought to each machine once, by
`consomme.storage.model_cache`, and loaded from there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from pathlib import Path

import consomme
from consomme.base.errors import CheckpointError, ClusterError, RecipeError
from consomme.storage.hub_models import hub_model
from consomme.storage.model_files import (
    MODEL,
    FolderKind,
    bring_model,
    missing_model,
    pickles_of,
    refused_pickles,
)
from consomme.storage.pins import pin
from consomme.storage.stores.hub_place import HubPlace, is_hub_url
from consomme.storage.stores.open import absolute_url, open_store
from consomme.storage.stores.regular import kind_of

_PACKAGE = "package://"

logger = logging.getLogger(__name__)


def model_folder(model: str, *, has_weights: bool = True, kind: FolderKind = MODEL) -> str:
    """Return the folder of a model on this machine; brings it here if it is not.

    Args:
        model: A folder, a finished train or soup run, `package://models/nano`, a URL of either in
            object storage, or a model on the hub: `org/name[@revision]`, `hf://org/name…`.
        has_weights: False brings no weights from elsewhere: for those who only need configuration,
            tokenizer and processor.
        kind: What it is, if it is no whole model.

    Returns:
        Absolute path of a Hugging Face folder.

    Raises:
        CheckpointError: There is no such model, or it has no weights that may be opened.
        RecipeError: The hub has no such model, or this user may not read it.
        ClusterError: It cannot be brought now; the same command may succeed later.
    """
    place = _pinned(model)
    if model.startswith(_PACKAGE):
        path = Path(consomme.__file__).parent / model.removeprefix(_PACKAGE)
    elif place is not None:
        path = hub_model(place, has_weights=has_weights, kind=kind)
    elif "://" in model:
        path = _downloaded(model, kind, has_weights=has_weights)
    else:
        path = Path(model)
    if not (path / kind.config).exists() and (path / kind.inside / kind.config).exists():
        path = path / kind.inside
    if not (path / kind.config).exists():
        raise missing_model(model, str(path), kind)
    for entry in sorted([*path.glob("*"), *path.glob("*/*")]):
        # Links are the user's own choice, and all that a cache of the hub has; a pipe would block.
        if other := kind_of(entry):
            raise CheckpointError(f"{kind.noun}: {entry} is {other}, expected a file; remove it")
    return str(path.resolve())


def hub_place(model: str) -> HubPlace | None:
    """Return where on the hub a model lies; None if it lies elsewhere.

    A folder comes before a model of the hub that is spelled like it, and it is said.

    Raises:
        RecipeError: It is an `hf://` URL, but names no model.
    """
    if is_hub_url(model):
        place = HubPlace.parse(model)
        if place.kind == "dataset":
            raise RecipeError(f"model: {model} is a data set, expected hf://org/name for a model")
        return place
    named = HubPlace.of_model_id(model)
    if named is None or not Path(model).exists():
        return named
    if model not in _told:
        _told.add(model)
        logger.info(
            "model %s is the folder %s; the hub's model of that name would be hf://%s",
            model,
            Path(model).resolve(),
            model,
        )
    return None


_told: set[str] = set()


def _pinned(model: str) -> HubPlace | None:
    """Return where on the hub a model lies, at its commit; None if it lies elsewhere."""
    place = hub_place(model)
    if place is None:
        return None
    try:
        return pin(place)
    except (RecipeError, ClusterError) as error:
        if is_hub_url(model):
            raise
        # It may as well be the misspelled path of a folder.
        raise type(error)(
            f"model: there is no folder {Path(model).absolute()}, so {model} was looked up on the"
            f" hub. {error}"
        ) from error


def portable_path(model: str, kind: FolderKind = MODEL) -> str:
    """Return a path or URL by which another process or machine finds the model.

    That is what workers are given: each node brings a model from elsewhere once, into its own
    cache, and a model of the package lies where the package is installed there. One on the hub is
    pinned to the commit that it has now; no weights are brought for that.

    Raises:
        CheckpointError: There is no such model.
        RecipeError: The hub has none.
    """
    place = _pinned(model)
    if place is not None:
        # What it is and whether it may be opened is known without its weights.
        hub_model(place, has_weights=False, kind=kind)
        return place.url
    folder = model_folder(model, kind=kind)
    return absolute_url(model) if "://" in model else folder


def model_hash(model: str, *, generates: bool = True, kind: FolderKind = MODEL) -> str:
    """Return what tells a model apart: of one on the hub its commit, else its content.

    Args:
        model: As for `model_folder`.
        generates: As for `model_content_hash`.
        kind: As for `model_folder`.

    Returns:
        A SHA-256 in hexadecimal.
    """
    place = _pinned(model)
    if place is None:
        return model_content_hash(model_folder(model, kind=kind), generates=generates)
    return hashlib.sha256(place.url.encode()).hexdigest()


def is_elsewhere(model: str) -> bool:
    """Whether a model has to be brought to a machine that reads it."""
    return hub_place(model) is not None or ("://" in model and not model.startswith(_PACKAGE))


def _downloaded(url: str, kind: FolderKind, *, has_weights: bool) -> Path:
    """Download a model from object storage, unless it is in the local cache."""
    store = open_store(url)
    if not store.exists(kind.config):
        store = open_store(f"{url.rstrip('/')}/{kind.inside}")
    files = list(store.list())
    if kind.config not in {file.path for file in files}:
        raise missing_model(url, store.url, kind)
    return bring_model(store, files, has_weights=has_weights)


_GENERATION_CONFIG = "generation_config.json"
_NOTES = ("readme", "license", "licence", "notice", "changelog")
_MODEL_SUFFIXES = (".safetensors", ".json", ".txt", ".model", ".jinja")
_NOT_MODEL = ("soup.json", "manifest.json", "trainer_state.json")
_CHUNK_BYTES = 1 << 22


def model_content_hash(
    folder: str | Path, *, generates: bool = True, has_weights: bool = True
) -> str:
    """Return the SHA-256 of all files of a model folder that determine the model's output.

    Weights, configuration, tokenizer, processor and chat template count; records of the model's
    origin, notes for people and the path of the folder do not.

    Args:
        folder: The model folder.
        generates: Whether the model writes text. If not, as in training, the tokens that end a text
            are all that counts of its generation config.
        has_weights: Whether weights count; without them, models with one hash differ in nothing
            but their weights.

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
        if found := pickles_of(path.name for path in Path(folder).glob("*")):
            raise refused_pickles(str(folder), found)
        raise CheckpointError(
            f"{str(folder)!r} holds no *.safetensors file; expected a model folder"
        )
    digest = hashlib.sha256()
    for path in files:
        if path.suffix == ".safetensors" and not has_weights:
            continue
        if path.name == _GENERATION_CONFIG and not generates:
            digest.update(f"eos_token_id {_eos_token_id(path)}\n".encode())
            continue
        digest.update(f"{path.name}\0{_file_sha256(path)}\n".encode())
    return digest.hexdigest()


_SUMS: dict[tuple[str, ...], str] = {}
"""SHA-256 of files that this process has read, by path and state."""

_MAX_SUMS = 10_000
_SETTLED_S = 2.0
"""A file that was changed just now may be changed again within one tick of the file system."""


def _file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file; one that has not changed is read once by a process.

    A run asks again at its end whether its inputs are still what they were.
    """
    state = path.stat()
    parts = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    key = (str(path.resolve()), *map(str, parts))
    if key in _SUMS:
        return _SUMS[key]
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    if time.time() - max(state.st_mtime, state.st_ctime) > _SETTLED_S:
        if len(_SUMS) >= _MAX_SUMS:
            _SUMS.clear()
        _SUMS[key] = digest.hexdigest()
    return digest.hexdigest()


def _eos_token_id(path: Path) -> str:
    try:
        content = json.loads(path.read_bytes())
        return json.dumps(content.get("eos_token_id"))
    except (ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: found no JSON object ({error}); mend the file, or delete it"
        ) from error
