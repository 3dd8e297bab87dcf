"""Packed samples have the same loss as alone, in every model family that supports packing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.conversations import batcher_of
from tests.support.families import FAMILIES, make, noise

from consomme.base.sample import Turn
from consomme.models.batches import IGNORE_INDEX, Batcher
from consomme.models.encoded import EncodedChat
from consomme.models.weights import open_model
from consomme.train.batch_check import PADDED, check_batches, row_layout
from consomme.train.loop import sum_nll
from consomme.train.packing import RowLayout

LOOKS_AHEAD = ("gemma3", "paligemma")
SHARING = sorted(set(FAMILIES) - set(LOOKS_AHEAD))


def spoken(chat: Any) -> list[EncodedChat]:
    """Pictures of several sizes, a text without one, and a conversation of two answers."""

    def image(number: int, width: int, height: int) -> Any:
        return [noise(number, width, height)] if chat.has_vision else []

    ask = Turn(role="user", content="describe the image.")
    texts = ("a red circle", "a large blue square at the top left", "star")
    rows = [
        chat.encode(
            (ask, Turn(role="assistant", content=text)), image(number, 40 + 30 * number, 64)
        )
        for number, text in enumerate(texts)
    ]
    talk = (ask, Turn(role="assistant", content="a star"), ask, Turn(role="assistant", content="x"))
    return [
        rows[0],
        chat.encode(talk),
        rows[1],
        chat.encode(talk, image(9, 64, 40)),
        rows[2],
    ]


def alone(model: Any, batcher: Batcher, row: EncodedChat) -> float:
    return float(sum_nll(model, batcher.collate([row])))


@pytest.mark.parametrize("family", SHARING)
def test_each_sample_loses_what_it_loses_alone(family: str, tmp_path: Path) -> None:
    model, processor = open_model(make(family, tmp_path))
    chat, batcher = batcher_of(model, processor)
    rows = spoken(chat)
    packed = batcher.pack(rows)
    ends = torch.tensor([len(row.input_ids) for row in rows]).cumsum(0).tolist()
    assert packed["input_ids"].shape == (1, ends[-1])
    with torch.no_grad():
        for row, begin, end in zip(rows, [0, *ends], ends, strict=False):
            labels = torch.full_like(packed["labels"], IGNORE_INDEX)
            labels[:, begin:end] = packed["labels"][:, begin:end]
            wanted = alone(model, batcher, row)
            assert float(sum_nll(model, packed | {"labels": labels})) == pytest.approx(
                wanted, rel=1e-5
            )
        total = sum(alone(model, batcher, row) for row in rows)
        assert float(sum_nll(model, packed)) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("family", SHARING)
def test_gradients_are_those_of_samples_alone(family: str, tmp_path: Path) -> None:
    model, processor = open_model(make(family, tmp_path))
    chat, batcher = batcher_of(model, processor)
    rows = spoken(chat)
    sum(sum_nll(model, batcher.collate([row])) for row in rows).backward()  # type: ignore[union-attr]
    wanted = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    # Some gradients are rounding errors only, such as those of a key bias.
    floor = 1e-6 * max(float(grad.abs().max()) for grad in wanted.values())
    model.zero_grad()
    sum_nll(model, batcher.pack(rows)).backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        if name in wanted:
            scale = float(wanted[name].abs().max())
            assert torch.allclose(parameter.grad, wanted[name], atol=1e-4 * scale + floor), name


def test_a_neighbour_changes_nothing(debug_vlm: Path) -> None:
    model, processor = open_model(debug_vlm)
    chat, batcher = batcher_of(model, processor)
    rows = spoken(chat)
    length = len(rows[0].input_ids)
    with torch.no_grad():
        logits = []
        for neighbour in (rows[1], rows[3]):
            packed = {k: v for k, v in batcher.pack([neighbour, rows[0]]).items() if k != "labels"}
            logits.append(model(**packed).logits[:, -length:])
    assert torch.allclose(logits[0], logits[1], atol=1e-5)


@pytest.mark.parametrize("family", LOOKS_AHEAD)
def test_families_that_look_ahead_are_not_packed(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, processor = open_model(make(family, tmp_path))
    chat, batcher = batcher_of(model, processor)
    check = check_batches(model, chat, batcher, packs=True)
    assert check.way == PADDED
    layout = row_layout(check, batcher, micro_batch=8, pack_tokens=512)
    assert layout == RowLayout(micro_batch=8)
    (warning,) = [one.message for one in caplog.records if one.name.endswith("selfcheck")]
    assert "pack_tokens packs nothing (it attends in both directions" in warning
