"""`fetch`: bring a model to this machine before a run needs it, or before the network is gone."""

from __future__ import annotations

from pathlib import Path

from consomme.base.errors import CheckpointError
from consomme.storage.model_files import ADAPTER
from consomme.storage.model_folder import is_elsewhere, model_folder, portable_path
from consomme.storage.pins import pins_kept


def fetch_model(model: str) -> str:
    """Bring a model, or an adapter, here, and say where it is.

    Args:
        model: As a recipe names it: on the hub, by URL, or a folder, which stays where it is.

    Raises:
        CheckpointError: There is no such model, or its weights may not be opened.
        RecipeError: The hub has none, or this user may not read it.
        ClusterError: It cannot be brought now.
    """
    with pins_kept():
        place, folder = _brought(model)
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    num_bytes = sum(path.stat().st_size for path in files)
    lines = [
        f"model   {model}",
        f"is      {place}",
        f"folder  {folder}",
        f"size    {num_bytes / 1e6:,.1f} MB in {len(files)} files",
    ]
    if not is_elsewhere(model):
        lines.append("It was on this machine already; runs read it where it is.")
    return "\n".join(lines)


def _brought(model: str) -> tuple[str, str]:
    """Return the name that workers get, and the folder here."""
    try:
        return portable_path(model), model_folder(model)
    except CheckpointError as error:
        try:
            return portable_path(model, ADAPTER), model_folder(model, kind=ADAPTER)
        except CheckpointError:
            # It is neither; what is said is about models, as most are.
            raise error from None
