"""A model folder that brings code or pickled weights is refused, and nothing of it runs."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from consomme.base.errors import CheckpointError
from consomme.models.weights import open_vlm


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def folder(debug_vlm: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(debug_vlm, tmp_path / "model"))


def test_code_in_a_model_folder_does_not_run(folder: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own: ...\n")
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "own-family"
    config["auto_map"] = {
        "AutoConfig": "own.Own",
        "AutoModelForImageTextToText": "own.Own",
        "AutoProcessor": "own.Own",
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError):
        open_vlm(folder)
    assert not ran.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_pickled_weights_are_not_read(name: str, folder: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    if name.endswith(".bin"):
        torch.save({"weight": Harmful(ran)}, folder / name)
    else:
        (folder / name).write_bytes(pickle.dumps(Harmful(ran)))
    with pytest.raises(CheckpointError):
        open_vlm(folder)
    assert not ran.exists()
