"""`consomme inspect` says of each family what its weights say."""

import re
from pathlib import Path

import pytest
from tests.support.families import FAMILIES, make

from consomme.base.errors import CheckpointError
from consomme.cli import run_command
from consomme.models.weights import open_model
from consomme.ops.inspection import inspect_model

QUICK = ("llava", "qwen2_vl", "idefics3")


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in FAMILIES],
)
def test_its_figures_are_those_of_the_weights(name: str, tmp_path: Path) -> None:
    make(name, tmp_path / name)
    said = inspect_model(str(tmp_path / name))
    assert "cannot be told" not in said
    model, _ = open_model(tmp_path / name)
    (total,) = re.findall(r"^  all +([\d,]+)", said, re.MULTILINE)
    assert int(total.replace(",", "")) == sum(p.numel() for p in model.parameters())
    parts = re.findall(r"^  (?!all)\S.*?  +([\d,]+)  +[\d.]+%", said, re.MULTILINE)
    assert sum(int(one.replace(",", "")) for one in parts) == int(total.replace(",", ""))
    layers = model.config.get_text_config().num_hidden_layers
    assert f"layers 0-{layers - 1}" in said or f"layers 0, {layers - 1}" in said
    assert re.search(r"images +\d+ tokens", said)
    assert "turns end" in said


def test_a_folder_without_weights_is_inspected_and_none_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make("llava", tmp_path / "llava")
    for path in (tmp_path / "llava").glob("*.safetensors"):
        path.unlink()
    assert run_command(["inspect", str(tmp_path / "llava")]) == 0
    assert "trains by default" in capsys.readouterr().out
    with pytest.raises(CheckpointError):
        inspect_model(str(tmp_path / "nothing"))
    assert run_command(["inspect", str(tmp_path / "nothing")]) == 2


def test_what_cannot_be_told_is_said_in_its_place(tmp_path: Path) -> None:
    make("llava", tmp_path / "bare")
    for name in ("chat_template.jinja", "chat_template.json"):
        (tmp_path / "bare" / name).unlink(missing_ok=True)
    said = inspect_model(str(tmp_path / "bare"))
    assert "cannot be told: found no chat template" in said
    assert "trains by default" in said
