"""The result of the loop depends on the batch, not on how it is split, resumed or sharded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.conversations import batches_of
from torch import nn

from consomme.models.batches import IGNORE_INDEX
from consomme.models.weights import open_vlm
from consomme.train.loop import Batch, ScheduleConfig, StepReport, fit, lr_factor
from consomme.train.parallel.ddp_fsdp2 import Ddp
from consomme.train.parallel.strategy import ShardedModel, make_optimizer
from consomme.train.parts import ParamGroup, Trainability
from consomme.train.trainable import enable_autocast, set_trainable


class KilledError(Exception):
    pass


def open_model(folder: Path, lr: float = 1e-4) -> tuple[Any, Any, tuple[ParamGroup, ...]]:
    model, processor = open_vlm(folder)
    trained = set_trainable(model, Trainability(), (0, 4, 8), lr=lr, weight_decay=0.01)
    return model, processor, trained.groups


def replicated(model: Any, groups: tuple[ParamGroup, ...]) -> ShardedModel:
    return Ddp()(model, groups, torch.device("cpu"))


def train(
    sharded: ShardedModel,
    batches: Callable[[int], list[Batch]],
    num_steps: int,
    *,
    start: int = 0,
    after: Callable[[StepReport], None] | None = None,
) -> list[StepReport]:
    reports: list[StepReport] = []

    def after_step(report: StepReport) -> None:
        reports.append(report)
        if after:
            after(report)

    fit(sharded, batches, ScheduleConfig(num_steps=num_steps), start=start, after_step=after_step)
    return reports


def test_micro_batches_do_not_matter(debug_vlm: Path) -> None:
    start, moved, losses = None, [], []
    for num_micro_batches in (1, 2, 4):
        model, processor, groups = open_model(debug_vlm)
        batches = batches_of(model, processor, num_micro_batches)
        trained = [p for p in model.parameters() if p.requires_grad]
        start = start if start is not None else nn.utils.parameters_to_vector(trained).detach()
        reports = train(replicated(model, groups), batches, 3)
        losses.append([report.loss for report in reports])
        moved.append(nn.utils.parameters_to_vector(trained).detach() - start)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)
    for other in moved[1:]:
        assert float((other - moved[0]).norm() / moved[0].norm()) < 1e-3


def test_the_loss_is_the_mean_over_tokens_not_over_samples(debug_vlm: Path) -> None:
    model, processor, groups = open_model(debug_vlm)
    batch = batches_of(model, processor)(0)[0]
    with torch.no_grad():
        expected = float(model(**batch).loss)
    report = train(replicated(model, groups), lambda step: [batch], 1)[0]
    assert report.loss == pytest.approx(expected, rel=1e-5)
    assert report.num_tokens == int((batch["labels"] != IGNORE_INDEX).sum())
    assert report.step == 1


def test_training_learns(debug_vlm: Path) -> None:
    model, processor, groups = open_model(debug_vlm, lr=3e-3)
    batches = batches_of(model, processor)
    reports = train(replicated(model, groups), batches, 40)
    assert reports[-1].loss < 0.5 * reports[0].loss
    assert [report.step for report in reports] == list(range(1, 41))


def test_a_resumed_run_equals_an_undisturbed_one_bit_for_bit(
    debug_vlm: Path, tmp_path: Path
) -> None:
    undisturbed, processor, groups = open_model(debug_vlm, lr=1e-3)
    batches = batches_of(undisturbed, processor, 2)
    reports = train(replicated(undisturbed, groups), batches, 6)

    model, _, groups = open_model(debug_vlm, lr=1e-3)
    sharded = replicated(model, groups)

    def save_then_die(report: StepReport) -> None:
        if report.step == 3:
            sharded.save(tmp_path)
        if report.step == 4:
            raise KilledError

    with pytest.raises(KilledError):
        train(sharded, batches, 6, after=save_then_die)

    resumed, _, groups = open_model(debug_vlm, lr=1e-3)
    sharded = replicated(resumed, groups)
    sharded.load(tmp_path)
    rest = train(sharded, batches, 6, start=3)

    assert [(r.step, r.loss, r.lr) for r in rest] == [(r.step, r.loss, r.lr) for r in reports[3:]]
    for (name, a), (_, b) in zip(
        undisturbed.named_parameters(), resumed.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name


def test_the_learning_rate_warms_up_and_falls_to_a_tenth() -> None:
    schedule = ScheduleConfig(num_steps=100, warmup_fraction=0.1)
    rates = [lr_factor(step, schedule) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (k + 1) for k in range(10)])
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.1 + 0.9 * 0.5)  # half-way down the cosine
    assert 0.1 < rates[-1] < 0.101
    assert lr_factor(0, ScheduleConfig(num_steps=1)) == 1.0


def test_other_schedules() -> None:
    linear = ScheduleConfig(num_steps=100, schedule="linear", final_fraction=0.0)
    rates = [lr_factor(step, linear) for step in range(100)]
    assert rates[55] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(1 / 90)
    constant = ScheduleConfig(num_steps=100, schedule="constant", warmup_fraction=0.03)
    rates = [lr_factor(step, constant) for step in range(100)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert set(rates[3:]) == {1.0}


def test_bfloat16_is_for_products_only(debug_vlm: Path) -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        model, processor, groups = open_model(debug_vlm, lr=1e-3)
        frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
        if precision == "bfloat16":
            enable_autocast(model, "cpu")
        batches = batches_of(model, processor)
        reports: list[StepReport] = []
        fit(
            replicated(model, groups),
            batches,
            ScheduleConfig(num_steps=5),
            start=0,
            after_step=reports.append,
        )
        losses[precision] = [report.loss for report in reports]
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert all(torch.equal(frozen[n], p) for n, p in model.named_parameters() if n in frozen)
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)


def test_tokens_are_counted_without_padding(debug_vlm: Path) -> None:
    model, processor, groups = open_model(debug_vlm)
    (batch,) = batches_of(model, processor)(0)
    (report,) = train(replicated(model, groups), lambda step: [batch, batch], 1)
    assert report.num_positions == 2 * int(batch["attention_mask"].sum())
    assert report.num_positions < 2 * batch["input_ids"].numel()
    assert report.grad_norm > 0


def test_each_part_moves_at_its_own_pace() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))
    model[2].requires_grad_(False)
    optimizer = make_optimizer(
        model,
        [
            ParamGroup(names=("0.weight",), lr=1.0, weight_decay=0.3),
            ParamGroup(names=("0.bias", "1.weight", "1.bias"), lr=0.5, weight_decay=0.0),
            ParamGroup(names=("2.weight",), lr=0.5, weight_decay=0.0),
        ],
    )
    assert [
        (g["lr"], g["weight_decay"], [p.ndim for p in g["params"]]) for g in optimizer.param_groups
    ] == [(1.0, 0.3, [2]), (0.5, 0.0, [1, 1, 1])]
