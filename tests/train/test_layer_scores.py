"""Layer scores on hand-made tensors with known results."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.conversations import batcher_of, batches_of
from tests.support.families import FAMILIES, make
from torch import Tensor

from consomme.models.anatomy import anatomy
from consomme.models.weights import open_vlm
from consomme.train.layer_scores import (
    LayerProbe,
    angular_distance,
    block_influence,
    image_attention,
    parameter_angle,
    parameter_change,
)


def test_angles_are_shares_of_pi() -> None:
    x, y = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 5.0])
    assert angular_distance(x, 7 * x) == 0
    assert angular_distance(x, y) == pytest.approx(0.5)
    assert angular_distance(x, -x) == pytest.approx(1)
    # The arc cosine of float32 would give 0 here.
    assert angular_distance(x, x + torch.tensor([0.0, 3e-6])) == pytest.approx(1e-6 / math.pi)


def test_changes_are_relative_to_the_base_and_of_matrices_only() -> None:
    base = [{"a": torch.eye(2), "norm": torch.ones(2)}, {"a": 2 * torch.eye(2)}]
    tuned = [{"a": torch.eye(2), "norm": torch.zeros(2)}, {"a": 3 * torch.eye(2)}]
    assert parameter_change(base, base) == [0, 0]
    assert parameter_change(base, tuned) == pytest.approx([0, 0.5])
    assert parameter_angle(base, tuned) == pytest.approx([0, 0], abs=1e-7)
    turned = [{"a": torch.tensor([[0.0, 1.0], [-1.0, 0.0]])}]
    assert parameter_angle([{"a": torch.eye(2)}], turned) == pytest.approx([0.5])


def test_block_influence_is_0_for_nothing_and_2_for_the_opposite() -> None:
    hidden_BTW = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    every_BT = torch.ones(2, 3)
    total, number = block_influence(hidden_BTW, 4 * hidden_BTW, every_BT)
    assert (total, number) == (pytest.approx(0, abs=1e-12), 6)
    total, number = block_influence(hidden_BTW, -hidden_BTW, every_BT)
    assert (total, number) == (pytest.approx(12), 6)
    some_BT = torch.tensor([[1, 0, 0], [0, 0, 1]])
    assert block_influence(hidden_BTW, -hidden_BTW, some_BT) == (pytest.approx(4), 2)
    broken_BTW = hidden_BTW.clone()
    broken_BTW[0, 0] = float("nan")
    broken_BTW[1, 2] = 0
    assert block_influence(broken_BTW, hidden_BTW, every_BT)[1] == 4


def test_image_attention_counts_words_that_stand_after_a_picture() -> None:
    is_image_BT = torch.tensor([[False, True, True, False, False]])
    is_text_BT = torch.tensor([[True, False, False, True, True]])
    weights_BHTT = torch.zeros(1, 2, 5, 5)
    weights_BHTT[0, :, 0, 0] = 1
    weights_BHTT[0, 0, 3, 1] = 1
    weights_BHTT[0, 1, 3, 3] = 1
    weights_BHTT[0, :, 4, 1:3] = 0.25
    total, number = image_attention(weights_BHTT, is_image_BT, is_text_BT)
    assert (total, number) == (pytest.approx(0.5 + 0.5), 2)


def naive_influences(model: Any, batch: dict[str, Tensor], image: int) -> tuple[list[float], ...]:
    """By hidden states, token by token; the last layer's output comes after the final norm there,
    so it is left out."""
    with torch.no_grad():
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        hidden = model(**inputs, output_hidden_states=True).hidden_states
    plain, halves = [], []
    for before, after in itertools.pairwise(hidden[:-1]):
        kinds: dict[bool, list[float]] = {True: [], False: []}
        for row, ids in enumerate(batch["input_ids"].tolist()):
            for place, token in enumerate(ids):
                if batch["attention_mask"][row, place]:
                    a, b = before[row, place].double(), after[row, place].double()
                    kinds[token == image].append(1 - float(a @ b / a.norm() / b.norm()))
        every = kinds[True] + kinds[False]
        plain.append(sum(every) / len(every))
        halves.append(sum(sum(kind) / len(kind) for kind in kinds.values()) / 2)
    return plain, halves


@pytest.mark.parametrize("family", FAMILIES)
def test_the_probe_equals_hidden_states_taken_one_by_one(tmp_path: Path, family: str) -> None:
    model, processor = open_vlm(make(family, tmp_path / family))
    chat, _ = batcher_of(model, processor)
    image = chat.image_token_id
    batches = [batches_of(model, processor)(step)[0] for step in range(1)]
    probe = LayerProbe(model, image)
    probe.observe(batches, attention=True)
    plain, halves = naive_influences(model, batches[0], image)
    assert probe.block_influence()[:-1] == pytest.approx(plain, rel=1e-5)
    assert probe.multimodal_block_influence()[:-1] == pytest.approx(halves, rel=1e-5)
    shares = probe.image_attention()
    assert len(shares) == len(anatomy(model).layers)
    assert all(0 < share < 1 for share in shares)
