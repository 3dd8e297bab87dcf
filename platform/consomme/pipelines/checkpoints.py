"""Find the model folder a recipe names."""

from __future__ import annotations

from pathlib import Path

import consomme
from consomme.base.errors import CheckpointError

_PACKAGE = "package://"


def model_folder(model: str) -> str:
    """Resolve a recipe's model: a folder, a finished train or soup run, or `package://models/nano`.

    Returns:
        Absolute path of a Hugging Face folder.

    Raises:
        CheckpointError: There is no config.json.
    """
    if model.startswith(_PACKAGE):
        path = Path(consomme.__file__).parent / model.removeprefix(_PACKAGE)
    else:
        path = Path(model)
    if not (path / "config.json").exists() and (path / "model" / "config.json").exists():
        path = path / "model"
    if not (path / "config.json").exists():
        raise CheckpointError(
            f"model: found no config.json in {path}; expected a Hugging Face folder, or the folder"
            " of a finished train or soup run, or package://models/nano"
        )
    return str(path.resolve())
