"""Folders that `datasets.save_to_disk` wrote: which of their files are shards.

Beside the shards, `data-*.arrow`, lie descriptions in JSON, and often caches of later steps, whose
rows would be samples a second time. `state.json` names the shards.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from consomme.base.errors import RecipeError
from consomme.storage.stores.store import FileInfo, Store, join_url

_STATE = "state.json"
_DESCRIPTIONS = (_STATE, "dataset_info.json", "dataset_dict.json")


def only_saved(store: Store, files: Sequence[FileInfo], text: str) -> list[FileInfo]:
    """Return the shards of a listing: of folders that `datasets` wrote, those that they name.

    Args:
        store: The folder that was listed.
        files: Shards, going by their names.
        text: Input of the recipe, for messages.

    Raises:
        RecipeError: It is a dictionary of several splits, or lacks a shard.
    """
    states = [file.path for file in files if file.path.rpartition("/")[2] == _STATE]
    folders = {path.rpartition("/")[0]: names for path in states if (names := _names(store, path))}
    if not folders:
        return list(files)
    if any(file.path == "dataset_dict.json" for file in files) and len(folders) > 1:
        splits = sorted(folders)
        raise RecipeError(
            f"inputs: the folder {text!r} holds the splits {', '.join(splits)}; say which to read,"
            f" as in {join_url(text, splits[0])}"
        )
    kept = []
    missing = {f"{folder}/{name}".lstrip("/") for folder in folders for name in folders[folder]}
    for file in files:
        folder, _, name = file.path.rpartition("/")
        if folder in folders:
            if file.path in missing:
                missing.remove(file.path)
                kept.append(file)
        elif name not in _DESCRIPTIONS:
            kept.append(file)
    if missing:
        listed = ", ".join(sorted(missing))
        raise RecipeError(f"inputs: the folder {text!r} lacks {listed}, which {_STATE} names")
    return kept


def _names(store: Store, path: str) -> list[str]:
    """Return the shards that a description names; none if it is another file of that name."""
    try:
        state: Any = json.loads(store.read(path))
        return [str(one["filename"]) for one in state["_data_files"]]
    except (ValueError, TypeError, KeyError):
        return []
