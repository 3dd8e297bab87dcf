"""What a saved model takes over from its base, byte for byte, beside weights and configuration.

Tokenizer, processor and chat template stay as they are in training, so they are copied and not made
again: a file that transformers reads but refuses to write, or writes in another form, is no reason
for a finished training to have no model.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from consomme.base.errors import CheckpointError

GENERATION_CONFIG = "generation_config.json"

_MADE = frozenset({"config.json", GENERATION_CONFIG})
"""Files that are written for every model."""

_WEIGHTS = frozenset(
    ".safetensors .bin .pt .pth .ckpt .h5 .msgpack .onnx .gguf .npz .index.json".split()
)
_RECORDS = frozenset(
    {"soup.json", "manifest.json", "trainer_state.json", "adapter_config.json", "readme"}
)
"""What tells of the base: where it comes from and what it can do."""

_FOLDERS = ("additional_chat_templates",)


def carry_over(base: Path, folder: Path) -> None:
    """Copy the files of a base that a model trained from it needs too, or that license it."""
    for path in sorted(base.iterdir()):
        if path.is_file() and _is_carried(path.name):
            shutil.copyfile(path, folder / path.name)
    for name in _FOLDERS:
        if (base / name).is_dir():
            shutil.copytree(base / name, folder / name)


def _is_carried(name: str) -> bool:
    lower = name.lower()
    return not (
        lower.startswith(".")
        or lower in _MADE
        or lower in _RECORDS
        or lower.partition(".")[0] in _RECORDS
        or lower.endswith(tuple(_WEIGHTS))
    )


def carry_over_generation_config(base: Path, folder: Path, stop_id: int) -> None:
    """Copy a base's generation config, and add the token by which the model ends its turns.

    The file may contradict itself, as one with a temperature and without sampling does:
    transformers reads such a file with a warning, so the base works, but refuses to write one.

    Args:
        base: Folder of the base; without the file, the one in `folder` is completed.
        folder: Folder of the model.
        stop_id: Generation that does not stop at this token would run on past the answer.

    Raises:
        CheckpointError: The file is no JSON object.
    """
    source = base if (base / GENERATION_CONFIG).exists() else folder
    content = read_generation_config(source)
    stop_ids = as_ids(content.get("eos_token_id"))
    if stop_id not in stop_ids:
        content["eos_token_id"] = [*stop_ids, stop_id] if stop_ids else stop_id
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        (folder / GENERATION_CONFIG).write_text(text)
    elif source == base:
        shutil.copyfile(base / GENERATION_CONFIG, folder / GENERATION_CONFIG)


def read_generation_config(folder: Path) -> dict[str, Any]:
    """Read the generation config of a model folder; empty if there is none.

    Raises:
        CheckpointError: The file is no JSON object.
    """
    path = folder / GENERATION_CONFIG
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path}: found no JSON ({error}); mend or delete it") from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: found no JSON object but a {type(content).__name__}; mend or delete it"
        )
    return content


def as_ids(value: Any) -> list[int]:
    """Return the ids of a configuration's `eos_token_id`: one, several, or none."""
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]
