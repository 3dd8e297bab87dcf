"""The loop: its result depends on the batch, not on how it is cut, interrupted or shared out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from consomme.base.sample import Turn
from consomme.models.chat import IGNORE_INDEX, Chat
from consomme.models.weights import open_vlm
from consomme.train.loop import Batch, Pace, StepReport, fit, learning_rate, make_optimizer
from consomme.train.trainable import set_trainable

TEXTS = ("a red circle", "a large blue square at the top left.", "star", "a green star, left of it")


class KilledError(Exception):
    pass


def open_model(folder: Path) -> tuple[Any, Chat]:
    model, processor = open_vlm(folder)
    set_trainable(model, layers=(0, 4, 8), vision_encoder="frozen", projector="full")
    return model, Chat(model, processor)


def batches_of(chat: Chat, num_parts: int) -> Callable[[int], list[Batch]]:
    """Four samples per step, other pictures in every step, cut into micro-batches."""

    def batches(step: int) -> list[Batch]:
        generator = torch.Generator().manual_seed(step)
        pixels = torch.randn(len(TEXTS), 3, 32, 32, generator=generator)
        prompt = Turn(role="user", content=f"describe the image {step}.")
        rows = [
            chat.encode((prompt, Turn(role="assistant", content=text)), has_image=True)
            for text in TEXTS
        ]
        size = len(TEXTS) // num_parts
        return [
            {**chat.collate(rows[at : at + size]), "pixel_values": pixels[at : at + size]}
            for at in range(0, len(TEXTS), size)
        ]

    return batches


def train(
    model: Any,
    batches: Callable[[int], list[Batch]],
    pace: Pace,
    *,
    start: int = 0,
    optimizer: torch.optim.Optimizer | None = None,
    after: Callable[[StepReport], None] | None = None,
) -> list[StepReport]:
    reports: list[StepReport] = []

    def after_step(report: StepReport) -> None:
        reports.append(report)
        if after:
            after(report)

    optimizer = optimizer or make_optimizer(model, pace)
    fit(model, optimizer, batches, pace, start=start, after_step=after_step)
    return reports


def test_micro_batches_do_not_matter(debug_vlm: Path) -> None:
    pace = Pace(num_steps=3, lr=1e-4)
    start, moved, losses = None, [], []
    for num_parts in (1, 2, 4):
        model, chat = open_model(debug_vlm)
        trained = [p for p in model.parameters() if p.requires_grad]
        start = start if start is not None else nn.utils.parameters_to_vector(trained).detach()
        losses.append([r.loss for r in train(model, batches_of(chat, num_parts), pace)])
        moved.append(nn.utils.parameters_to_vector(trained).detach() - start)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)
    for other in moved[1:]:
        assert float((other - moved[0]).norm() / moved[0].norm()) < 1e-3


def test_the_loss_is_the_mean_over_tokens_not_over_samples(debug_vlm: Path) -> None:
    model, chat = open_model(debug_vlm)
    batch = batches_of(chat, 1)(0)[0]
    with torch.no_grad():
        expected = float(model(**batch).loss)
    report = train(model, lambda step: [batch], Pace(num_steps=1, lr=1e-4))[0]
    assert report.loss == pytest.approx(expected, rel=1e-5)
    assert report.num_tokens == int((batch["labels"] != IGNORE_INDEX).sum())
    assert report.step == 1


def test_training_learns(debug_vlm: Path) -> None:
    model, chat = open_model(debug_vlm)
    reports = train(model, batches_of(chat, 1), Pace(num_steps=40, lr=3e-3))
    assert reports[-1].loss < 0.5 * reports[0].loss
    assert [report.step for report in reports] == list(range(1, 41))


def test_a_resumed_run_equals_an_undisturbed_one_bit_for_bit(
    debug_vlm: Path, tmp_path: Path
) -> None:
    pace = Pace(num_steps=6, lr=1e-3, weight_decay=0.01)
    undisturbed, chat = open_model(debug_vlm)
    reports = train(undisturbed, batches_of(chat, 2), pace)

    model, chat = open_model(debug_vlm)
    optimizer = make_optimizer(model, pace)

    def save_then_die(report: StepReport) -> None:
        if report.step == 3:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state, tmp_path / "state.pt")
        if report.step == 4:
            raise KilledError

    with pytest.raises(KilledError):
        train(model, batches_of(chat, 2), pace, optimizer=optimizer, after=save_then_die)

    resumed, chat = open_model(debug_vlm)
    optimizer = make_optimizer(resumed, pace)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    rest = train(resumed, batches_of(chat, 2), pace, start=3, optimizer=optimizer)

    assert [(r.step, r.loss, r.lr) for r in rest] == [(r.step, r.loss, r.lr) for r in reports[3:]]
    for (name, a), (_, b) in zip(
        undisturbed.named_parameters(), resumed.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name


def test_the_learning_rate_warms_up_and_falls_to_a_tenth() -> None:
    pace = Pace(num_steps=100, lr=2.0, warmup_fraction=0.1)
    rates = [learning_rate(step, pace) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (k + 1) for k in range(10)])
    assert max(rates) == rates[9] == rates[10] == 2.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))  # half-way down the cosine
    assert 0.2 < rates[-1] < 0.202
    assert learning_rate(0, Pace(num_steps=1, lr=1.0)) == 1.0


def test_vectors_do_not_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))
    model[2].requires_grad_(False)
    groups = make_optimizer(model, Pace(num_steps=1, lr=1.0, weight_decay=0.3)).param_groups
    assert [(g["weight_decay"], [p.ndim for p in g["params"]]) for g in groups] == [
        (0.3, [2]),
        (0.0, [1, 1, 1]),
    ]
