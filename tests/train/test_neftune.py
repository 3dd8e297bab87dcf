"""NEFTune noise is scaled by the conversation's length, and added in training mode only."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.conversations import batcher_of
from tests.support.families import write
from tests.support.more_families import TEXT_FAMILIES
from tests.train.test_packed_loss import spoken

from consomme.models.weights import open_model, open_vlm
from consomme.train.neftune import add_noise


@pytest.mark.parametrize("is_packed", [True, False])
def test_the_noise_of_each_conversation_has_its_own_bound(debug_vlm: Path, is_packed: bool) -> None:
    check_bounds(*open_vlm(debug_vlm), is_packed)


@pytest.mark.parametrize("family", ["mistral", "gpt_oss"])
def test_a_window_does_not_change_the_bound(tmp_path: Path, family: str) -> None:
    check_bounds(*open_model(write(TEXT_FAMILIES[family], tmp_path)), is_packed=True)


def check_bounds(model: Any, processor: Any, is_packed: bool) -> None:
    chat, batcher = batcher_of(model, processor)
    rows = spoken(chat)
    batch = batcher.pack(rows) if is_packed else batcher.collate(rows)
    batch.pop("labels")
    seen: list[torch.Tensor] = []
    embeddings = model.get_input_embeddings()
    before = embeddings(batch["input_ids"]).detach()
    add_noise(model, 5.0)
    embeddings.register_forward_hook(lambda _, __, output: seen.append(output.detach()))
    model.train()
    torch.manual_seed(0)
    with torch.no_grad():
        model(**batch)
    noise_BTD = (seen[0] - before).abs()
    width = before.shape[-1]
    begin = 0
    for number, row in enumerate(rows):
        length = len(row.input_ids)
        if is_packed:
            mine = noise_BTD[0, begin : begin + length]
            begin += length
        else:
            mine = noise_BTD[number, :length]
        bound = 5.0 / (length * width) ** 0.5
        assert 0.95 * bound < float(mine.max()) <= bound * (1 + 1e-5)
        assert float(mine.mean()) == pytest.approx(bound / 2, rel=0.1)
    model.eval()
    with torch.no_grad():
        model(**batch)
    assert torch.equal(seen[1], before)
