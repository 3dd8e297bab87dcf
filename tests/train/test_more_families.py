"""Families that no test of training had before: each loss is that of plain forward passes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engines.scoring.test_families import CAPTIONS, Reference, conversation, picture
from tests.engines.scoring.test_more_families import LONG, FlatReference, TextReference
from tests.support.conversations import batcher_of
from tests.support.families import write
from tests.support.more_families import MORE_FAMILIES, TEXT_FAMILIES, WINDOW

from consomme.models.weights import open_model
from consomme.train.batch_check import LOST, PACKED, PADDED, SINGLE, check_batches, row_layout
from consomme.train.loop import sum_nll

pytestmark = [pytest.mark.slow, pytest.mark.long]

PACKING = {
    "qwen3", "phi3", "cohere2", "granite", "gemma2", "nanochat", "gemma3_text", "mistral", "olmo3",
    "gpt_oss", "exaone4", "llama4_text", "internvl_gpt_oss", "cohere2_vision", "got_ocr2", "llama4",
    "granite4_vision",
}  # fmt: skip
"""Every layer is attention with a mask of our own, within a window or a chunk or without one."""
ALONE = {"mllama", "minicpmv4_6"}
"""Rows of a batch cannot have images of different shape, or none."""


def reference_of(name: str, folder: Path, model: Any, processor: Any) -> Any:
    kinds: dict[str, Any] = {"got_ocr2": FlatReference}
    kind = TextReference if name in TEXT_FAMILIES else kinds.get(name, Reference)
    reference = kind(folder)
    reference.model = model
    return reference


@pytest.mark.parametrize("name", MORE_FAMILIES)
def test_losses_equal_plain_forward_passes_in_any_row(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(MORE_FAMILIES[name], tmp_path / name)
    model, processor = open_model(folder)
    chat, batcher = batcher_of(model, processor)
    reference = reference_of(name, folder, model, processor)
    rows, expected = [], []
    for number, caption in enumerate([*CAPTIONS, LONG.strip()]):
        image = picture(number % 4) if chat.has_vision else None
        rows.append(chat.encode(conversation(caption), [image] if image else []))
        nll, count = reference.nll(conversation(caption), image)
        assert rows[-1].num_tokens == count
        expected.append(nll)
    lengths = [len(row.input_ids) for row in rows]
    assert max(lengths) > 2 * WINDOW
    for pack_tokens in (None, 2 * max(lengths)):
        caplog.clear()
        check = check_batches(model, chat, batcher, packs=pack_tokens is not None)
        best = PADDED if pack_tokens is None or name not in PACKING else PACKED
        assert check.way == (SINGLE if name in ALONE else best), check
        # What cannot be had is said.
        wanted = PADDED if pack_tokens is None else PACKED
        said = [record.message for record in caplog.records if record.name.endswith("selfcheck")]
        assert len(said) == (check.way != wanted)
        assert all(LOST[wanted] in line for line in said)
        layout = row_layout(check, batcher, micro_batch=3, pack_tokens=pack_tokens)
        for rank in layout.split(lengths, world=2):
            for some in rank:
                batch = [rows[k] for row in some for k in row]
                if not batch:
                    continue
                make = batcher.collate if layout.pack_tokens is None else batcher.pack
                with torch.no_grad():
                    loss = float(sum_nll(model, make(batch)))
                plain = sum(expected[k] for row in some for k in row)
                assert loss == pytest.approx(plain, rel=1e-4)
