"""Bring a model from the Hugging Face hub to this machine, at one commit.

It is kept in consomme's own cache, like a model of object storage, and not in that of
`huggingface_hub`: that cache has no bound, no checksum that is looked at again, and its locks do
not keep what another process reads. A model that lies there already, whole, is used where it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import stat
import threading
from collections.abc import Sequence
from pathlib import Path

from consomme.base.errors import CheckpointError
from consomme.base.places import cache_folder
from consomme.storage.model_files import (
    MODEL,
    WEIGHTS,
    FolderKind,
    bring_model,
    missing_model,
    wanted_files,
)
from consomme.storage.stores.hub import HubStore
from consomme.storage.stores.hub_client import endpoint, hub_cache, is_offline
from consomme.storage.stores.hub_place import HubPlace
from consomme.storage.stores.store import FileInfo

_INDEX = "model.safetensors.index.json"
_NAMED = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME")

logger = logging.getLogger(__name__)

_told: set[Path] = set()


def hub_model(place: HubPlace, *, has_weights: bool = True, kind: FolderKind = MODEL) -> Path:
    """Return the local folder of a model on the hub; brings it if it is not on this machine.

    Args:
        place: Pinned to a commit.
        has_weights: False brings no weights.
        kind: What it is.

    Raises:
        CheckpointError: It is no model, its weights are pickles, or it is not on this machine and
            the hub may not be asked.
        RecipeError: The hub refuses it.
        ClusterError: The hub does not answer, or the disk is full.
    """
    files = _listed(place)
    if files is None and not is_offline():
        files = list(HubStore(place).list())
        if kind.config not in {file.path for file in files}:
            raise missing_model(place.url, f"{place.url} at {endpoint()}", kind)
        _remember(place, files)
    snapshot = _in_hub_cache(place, files, kind.config, has_weights=has_weights)
    if snapshot is not None:
        return snapshot
    if files is None:
        raise _offline(place)
    try:
        return bring_model(HubStore(place), files, has_weights=has_weights)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{place.url}: {error.filename}: the hub lists it, but has it not"
        ) from error


def _offline(place: HubPlace) -> CheckpointError:
    return CheckpointError(
        f"{place.url}: HF_HUB_OFFLINE is set, and the model is not on this machine; looked in"
        f" {cache_folder('models')} and {hub_cache()}. Bring it where the hub can be reached, or"
        f" unset HF_HUB_OFFLINE: consomme fetch {place.repo}@{place.revision}"
    )


def _in_hub_cache(
    place: HubPlace, files: Sequence[FileInfo] | None, config: str, *, has_weights: bool
) -> Path | None:
    """Return a model's folder in the cache of `huggingface_hub`, if it is there and whole."""
    repo = hub_cache() / f"models--{place.repo.replace('/', '--')}"
    snapshot = repo / "snapshots" / place.revision / place.folder
    if not (snapshot / config).is_file() or not _is_trusted(repo):
        return None
    if files is not None:
        wanted = [
            (file.path, file.size)
            for file in wanted_files(files)
            if has_weights or not file.path.endswith(WEIGHTS)
        ]
        is_whole = all(_size(snapshot / path) == size for path, size in wanted)
    else:
        is_whole = not has_weights or _has_all_weights(snapshot)
    if not is_whole:
        return None
    if snapshot not in _told:
        _told.add(snapshot)
        logger.info("%s is read from the cache of huggingface_hub: %s", place.url, snapshot)
    return snapshot


def _has_all_weights(snapshot: Path) -> bool:
    """Whether all files of the weights are there, as far as the folder itself says."""
    try:
        names = set(json.loads((snapshot / _INDEX).read_bytes())["weight_map"].values())
    except FileNotFoundError:
        return any(path.is_file() for path in snapshot.glob(f"*{WEIGHTS}"))
    except (ValueError, KeyError, AttributeError, TypeError):
        return False
    return all((snapshot / name).is_file() for name in names)


def _is_trusted(folder: Path) -> bool:
    """Whether nobody else could have written a folder, unless the user named it."""
    if any(os.environ.get(name) for name in _NAMED):
        return True
    found = folder.stat()
    is_own = found.st_uid in (0, os.geteuid())
    if is_own and not found.st_mode & stat.S_IWOTH:
        return True
    logger.warning("%s is not used: another user may have written what is in it", folder)
    return False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _listed(place: HubPlace) -> list[FileInfo] | None:
    """Return the files of a commit, which never change, as this machine listed them before."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads(_list_file(place).read_bytes())
        if content["url"] == place.url:
            return [FileInfo(path=p, size=size, version=v) for p, size, v in content["files"]]
    return None


def _remember(place: HubPlace, files: Sequence[FileInfo]) -> None:
    file = _list_file(place)
    partial = file.with_name(f"{file.name}.{os.getpid()}-{threading.get_ident()}.partial")
    content = {"url": place.url, "files": [[f.path, f.size, f.version] for f in files]}
    partial.write_text(json.dumps(content))
    partial.replace(file)


def _list_file(place: HubPlace) -> Path:
    return cache_folder("hub") / f"list-{hashlib.sha256(place.url.encode()).hexdigest()[:32]}.json"
