"""A child process can import what its parent can, and keeps its own sitecustomize."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from consomme.engines.vllm_environment import prepare_environment
from consomme.models.checkpoint_keys import vllm_key


@pytest.mark.slow
def test_children_can_import_media_packages_and_keep_their_sitecustomize(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import builtins\nbuiltins.own_hook = True\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    before = os.environ["PYTHONPATH"]

    needed = prepare_environment()
    prepare_environment()

    assert os.environ["PYTHONPATH"].count("sitecustomize") == int(needed)
    if not needed:
        assert os.environ["PYTHONPATH"] == before
    program = (
        "import builtins; assert builtins.own_hook\n"
        "import importlib.util\n"
        "if importlib.util.find_spec('torchvision'): import torchvision\n"
        "from transformers import LlamaConfig\n"
        "print('imported')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "imported", done.stderr


def test_children_without_a_sitecustomize_of_their_own_print_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    prepare_environment()
    done = subprocess.run([sys.executable, "-c", ""], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        (
            "vision_tower.encoder.layers.0.mlp.fc1.bias",
            "vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias",
        ),
        (
            "vision_tower.vision_model.pre_layrnorm.bias",
            "vision_tower.vision_model.pre_layrnorm.bias",
        ),
        ("language_model.lm_head.weight", "language_model.lm_head.weight"),
        ("multi_modal_projector.linear_1.bias", "multi_modal_projector.linear_1.bias"),
    ],
)
def test_only_the_vision_encoder_is_renamed(written: str, stored: str) -> None:
    assert vllm_key(written) == stored
