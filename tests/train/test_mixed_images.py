"""Samples of no, one and three images share rows and batches without changing one another.

The reference is each sample alone, which is what the family's own processor and forward pass make
of it (`plain_nll`); in float64, so what is left is no rounding.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.conversations import batcher_of
from tests.support.families import FAMILIES, write
from tests.support.image_conversations import CASES, images_of
from tests.support.more_families import MORE_FAMILIES

from consomme.models.batches import Batcher, map_tensors
from consomme.models.encoded import EncodedChat
from consomme.models.selfcheck import plain_nll
from consomme.models.weights import open_model
from consomme.train.batch_check import PACKED, SINGLE, check_batches, row_layout
from consomme.train.filler import AFTER, OWN_PASS, OWN_ROW, make_filler
from consomme.train.loop import sum_nll

NEW = ("cohere2_vision", "lfm2_vl", "gemma4")
LOOKS_AHEAD = {"paligemma"}
"""Texts attend to what comes after them."""

ONE_IMAGE_ONLY = {"paligemma"}
PACKING = {*FAMILIES, "cohere2_vision"} - {"gemma3", "paligemma"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of the families' tiny models, written once."""

    @functools.cache
    def folder(name: str) -> Path:
        builders = FAMILIES | MORE_FAMILIES
        return write(builders[name], tmp_path_factory.mktemp("models") / name)

    return folder


class Opened:
    """A tiny model of a family in float64, with the cases that it takes."""

    def __init__(self, name: str, folder: Path) -> None:
        self.model, processor = open_model(folder, torch.float64)
        self.chat, self.batcher = batcher_of(self.model, processor)
        with torch.no_grad():
            for parameter_name, parameter in self.model.named_parameters():
                if parameter_name.endswith("_gate"):
                    # Zero in a model that was not trained: it would see no image at all.
                    parameter.fill_(0.7)
        cases = CASES[:2] if name in ONE_IMAGE_ONLY else CASES
        self.rows = [self.chat.encode(case.turns, images_of(case)) for case in cases]

    def run(self, batch: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
        """The loss of a batch, and its gradients by parameter."""
        self.model.zero_grad()
        wide = map_tensors(batch, lambda one: one.double() if one.is_floating_point() else one)
        loss = sum_nll(self.model, wide)
        loss.backward()  # type: ignore[no-untyped-call]
        named = self.model.named_parameters()
        return float(loss), {n: p.grad.clone() for n, p in named if p.grad is not None}

    def alone(self) -> tuple[float, dict[str, torch.Tensor]]:
        """Sums over all samples, one pass each."""
        loss, sums = 0.0, {}
        for row in self.rows:
            one, grads = self.run(self.batcher.collate([row]))
            assert one == pytest.approx(float(plain_nll(self.model, row).sum()), rel=1e-5)
            loss += one
            for name, grad in grads.items():
                sums[name] = sums[name] + grad if name in sums else grad
        return loss, sums


def assert_alike(
    found: tuple[float, dict[str, torch.Tensor]], wanted: tuple[float, dict[str, torch.Tensor]]
) -> None:
    assert found[0] == pytest.approx(wanted[0], rel=1e-5)
    largest = max(float(grad.abs().max()) for grad in wanted[1].values())
    for name, grad in wanted[1].items():
        scale = float(grad.abs().max())
        atol = 1e-5 * scale + 1e-9 * largest
        assert torch.allclose(found[1][name], grad, rtol=0, atol=atol), name


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FAMILIES, *NEW])
def test_packed_and_padded_samples_are_what_they_are_alone(folders: Any, name: str) -> None:
    one = Opened(name, folders(name))
    wanted = one.alone()
    assert_alike(one.run(one.batcher.collate(one.rows)), wanted)
    assert isinstance(one.batcher.packing, str) == (name not in PACKING)
    if name in PACKING:
        assert_alike(one.run(one.batcher.pack(one.rows)), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FAMILIES, *NEW, "minicpmv4_6"])
def test_an_image_for_the_encoder_changes_no_text(folders: Any, name: str) -> None:
    one = Opened(name, folders(name))
    text = one.rows[0]
    assert text.pixels is None
    filler = make_filler(one.chat, one.model.config, OWN_ROW if name in LOOKS_AHEAD else AFTER)
    assert filler is not None
    wanted = one.run(one.batcher.collate([text]))
    found = one.run(one.batcher.collate(filler.added_to([text])))
    assert_alike(found, wanted)
    # Every parameter that an image of a sample passes through has a gradient, and it is zero.
    for row in one.rows[1:3]:
        assert set(one.run(one.batcher.collate([row]))[1]) <= set(found[1])
    for parameter in set(found[1]) - set(wanted[1]):
        assert not found[1][parameter].any(), parameter
    assert set(found[1]) - set(wanted[1])
    if name in PACKING:
        assert_alike(one.run(one.batcher.pack([text, filler.row])), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava", "gemma4", "paligemma", "mllama"])
def test_the_check_finds_how_samples_of_several_images_run(folders: Any, name: str) -> None:
    one = Opened(name, folders(name))
    check = check_batches(one.model, one.chat, one.batcher, packs=True)
    assert check.way == {"llava": PACKED, "mllama": SINGLE}.get(name, "padded rows")
    assert not check.several_alone
    assert check.several_refused is None
    # A text before an image of mllama sees it all the same.
    expected = {"paligemma": OWN_ROW, "mllama": OWN_PASS}
    assert check.filler_way == expected.get(name, AFTER)
    assert row_layout(check, one.batcher, micro_batch=2, pack_tokens=None).has_text_passes == (
        name == "mllama"
    )


def encoder_of_one_image(monkeypatch: pytest.MonkeyPatch, model: Any, *, fails: bool) -> None:
    """A family whose rows of two images are other than alone; or fail."""
    kind = type(model.model)
    inner = kind.forward

    def forward(self: Any, input_ids: Any = None, **more: Any) -> Any:
        num_images = (input_ids == self.config.image_token_id).sum(dim=-1) // 16
        if fails and num_images.max() > 1:
            raise ValueError("one image for each text, please")
        output = inner(self, input_ids=input_ids, **more)
        if len(input_ids) > 1 and num_images.max() > 1:
            output.last_hidden_state = output.last_hidden_state * 1.5
        return output

    monkeypatch.setattr(kind, "forward", forward)


@pytest.mark.parametrize("fails", [False, True])
def test_a_family_whose_batches_of_several_images_differ(
    folders: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fails: bool
) -> None:
    model, processor = open_model(folders("llava"))
    chat, batcher = batcher_of(model, processor)
    encoder_of_one_image(monkeypatch, model, fails=fails)
    check = check_batches(model, chat, batcher, packs=False)
    layout = row_layout(check, batcher, micro_batch=4, pack_tokens=None)
    assert layout.micro_batch == 4
    if fails:
        assert check.several_refused is not None
        assert "two images: found ValueError: one image" in check.several_refused
        return
    assert check.several_alone
    assert layout.is_alone(10, 2)
    assert not layout.is_alone(10, 1)
    assert "samples of several images have a pass of their own" in caplog.text


def test_where_texts_look_ahead_an_image_has_a_row_of_its_own(
    folders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = open_model(folders("llava"))
    chat, batcher = batcher_of(model, processor)
    kind = type(model.model)
    inner = kind.forward

    def forward(self: Any, input_ids: Any = None, **more: Any) -> Any:
        output = inner(self, input_ids=input_ids, **more)
        is_last_BT = (input_ids == self.config.image_token_id).flip(-1).cumsum(-1).flip(-1) > 0
        is_led_BT = (input_ids == self.config.image_token_id).cumsum(-1) > 0
        looks_ahead_BT = (is_last_BT & ~is_led_BT) & (input_ids.ne(0).cumsum(-1) > 8)
        output.last_hidden_state = output.last_hidden_state * (1 + looks_ahead_BT[..., None])
        return output

    monkeypatch.setattr(kind, "forward", forward)
    check = check_batches(model, chat, batcher, packs=False)
    assert check.filler_way == OWN_ROW


def test_a_row_too_long_for_the_image_gets_another_row(folders: Any) -> None:
    model, processor = open_model(folders("llava"))
    chat, _ = batcher_of(model, processor)
    rows = [chat.encode(case.turns) for case in CASES[:1]] * 2
    rows[1] = replace(rows[1], input_ids=rows[1].input_ids[:-1])
    filler = make_filler(chat, model.config)
    assert filler is not None
    changed = filler.added_to(rows)
    assert [row.pixels is None for row in changed] == [True, False]
    assert filler.passes([True, False, False]) == {1, 2}
    short = replace(filler, max_tokens=len(rows[1].input_ids), is_in_every_pass=False)
    assert [len(row.input_ids) for row in short.added_to(rows)][2:] == [len(filler.row.input_ids)]
    assert (short.passes([True, False]), short.passes([False, False])) == (set(), {0})
    with pytest.raises(Exception, match="set max_tokens to"):
        replace(short, has_row=False).added_to(rows)
    assert math.isfinite(filler.max_tokens or math.inf)


def test_a_language_model_needs_no_image() -> None:
    class TextChat:
        has_vision = False

    assert make_filler(TextChat(), None) is None


def test_rows_of_differing_numbers_of_images_are_kept_apart(folders: Any) -> None:
    """Rows that are packed do not see the images of others: each is moved, and keeps its loss."""
    model, processor = open_model(folders("qwen2_vl"))
    chat, batcher = batcher_of(model, processor)
    rows: list[EncodedChat] = [chat.encode(case.turns, images_of(case)) for case in CASES[:5]]
    made: Batcher = batcher
    with torch.no_grad():
        forward = float(sum_nll(model, made.pack(rows)))
        backward = float(sum_nll(model, made.pack(rows[::-1])))
    assert forward == pytest.approx(backward, rel=1e-6)
