"""Measures of layers, on models whose layers do something known."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.conversations import batcher_of, batches_of
from tests.support.families import FAMILIES, make

from consomme.base.errors import CheckpointError
from consomme.models.weights import open_model
from consomme.prune.comparing import stored_changes
from consomme.prune.observing import (
    angular_distances,
    block_influences,
    boundaries,
    image_attention_shares,
)
from consomme.prune.skipping import skipped
from consomme.train.layer_scores import LayerProbe, angular_distance, parameter_change


def opened(name: str, folder: Path) -> tuple[Any, Any, list[dict[str, torch.Tensor]]]:
    model, processor = open_model(make(name, folder))
    chat, _ = batcher_of(model, processor)
    rows = batches_of(model, processor, num_micro_batches=4)(0)
    batches = [{key: one for key, one in row.items() if key != "labels"} for row in rows]
    return model, chat.image_token_id, batches


# Between the layers of Qwen3-VL, features of images are added, which belong to no layer.
OTHERS = sorted({*FAMILIES} - {"llava", "qwen3_vl"})


@pytest.mark.parametrize(
    "name", ["llava", *(pytest.param(name, marks=pytest.mark.long) for name in OTHERS)]
)
def test_layers_score_as_the_probe_of_training_has_it(tmp_path: Path, name: str) -> None:
    model, image, batches = opened(name, tmp_path / name)
    probe = LayerProbe(model, image)
    probe.observe(batches, attention=True)
    layers = range(len(probe.layers))
    assert block_influences(model, batches, layers, 1, image) == pytest.approx(
        probe.block_influence(), rel=1e-6
    )
    assert block_influences(model, batches, layers, 1, image, halves=True) == pytest.approx(
        probe.multimodal_block_influence(), rel=1e-6
    )
    assert image_attention_shares(model, batches, layers, image) == pytest.approx(
        probe.image_attention(), rel=1e-5
    )


def test_a_run_is_measured_between_its_ends(tmp_path: Path) -> None:
    model, _, batches = opened("llava", tmp_path / "llava")
    hidden = [boundaries(model, batch, (0, 1)) for batch in batches]
    expected = sum(angular_distance(h[0][0, -1], h[2][0, -1]) for h in hidden) / len(hidden)
    assert angular_distances(model, batches, (0, 1), 2) == [pytest.approx(expected)]
    assert len(angular_distances(model, batches, (0, 1), 1)) == 2


def test_a_skipped_layer_is_as_if_it_did_nothing(tmp_path: Path) -> None:
    model, image, batches = opened("llava", tmp_path / "llava")
    with skipped(model, [1]):
        assert block_influences(model, batches, (0, 1), 1, image)[1] == pytest.approx(0, abs=1e-12)
    alone = block_influences(model, batches, (0,), 1, image)
    assert alone == pytest.approx(block_influences(model, batches, (0, 1), 1, image)[:1])


def test_stored_changes_are_those_of_open_models(tmp_path: Path) -> None:
    model, *_ = opened("llava", tmp_path / "base")
    layers = model.model.language_model.layers
    before = [{n: p.clone() for n, p in layer.named_parameters()} for layer in layers]
    with torch.no_grad():
        layers[1].self_attn.q_proj.weight.mul_(1.5)
    model.save_pretrained(tmp_path / "tuned")
    after = [dict(layer.named_parameters()) for layer in layers]
    found = stored_changes(str(tmp_path / "base"), str(tmp_path / "tuned"), parameter_change)
    assert found == pytest.approx(parameter_change(before, after))
    assert found == pytest.approx([0, 0.5])


def test_a_stranger_is_no_base(tmp_path: Path) -> None:
    for name in ("llava", "gemma3"):
        make(name, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"expected the model that it was tuned from"):
        stored_changes(str(tmp_path / "gemma3"), str(tmp_path / "llava"), parameter_change)
