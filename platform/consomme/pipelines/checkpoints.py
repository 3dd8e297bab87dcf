"""Find the model folder a recipe names, and fingerprint what is in it."""

from __future__ import annotations

import hashlib
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
            f"model: found no config.json in {path}; expected a Hugging Face folder, or the folder of"
            " a finished train or soup run, or package://models/nano"
        )
    return str(path.resolve())


def model_fingerprint(folder: str) -> str:
    """Hash of weights, configuration, tokenizer and chat template, by content.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(folder).iterdir()):
        if path.suffix in (".safetensors", ".json", ".jinja") and path.name != "recipe.json":
            digest.update(path.name.encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
