"""A diverged step is detected before it changes the weights."""

import math
from pathlib import Path

import pytest
import torch
from tests.support.conversations import batches_of
from tests.train.test_loop import open_model, replicated

from consomme.train.divergence import MIN_LOSSES, DivergedError, LossWatch, check_norm
from consomme.train.loop import Batch, ScheduleConfig, fit


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_what_is_no_number_has_diverged(loss: float) -> None:
    with pytest.raises(DivergedError, match=r"step 3: the loss is (nan|inf); lower lr"):
        LossWatch().check(3, loss)
    with pytest.raises(DivergedError, match=r"gradients' norm is (nan|inf)"):
        check_norm(loss)
    assert check_norm(1.5) == 1.5


def test_a_loss_stands_out_against_the_median() -> None:
    watch = LossWatch(3.0)
    for step in range(MIN_LOSSES):
        watch.check(step + 1, 100.0 if step == 0 else 2.0)
    # The outlier of 100 does not change the median.
    watch.check(MIN_LOSSES + 1, 5.9)
    with pytest.raises(
        DivergedError, match=r"step 10: the loss is 6.1, more than .*=3 times the 2 "
    ):
        watch.check(MIN_LOSSES + 2, 6.1)
    LossWatch().check(1, 1e9)
    with pytest.raises(DivergedError, match=r"step 70: the loss is 7, .* times the 2"):
        LossWatch(3.0, [9.0] * 70 + [2.0] * 64).check(70, 7.0)


def test_the_first_losses_may_be_anything() -> None:
    watch = LossWatch(2.0)
    for step in range(MIN_LOSSES):
        watch.check(step + 1, 10.0**step)


@pytest.mark.parametrize("is_gradient", [False, True])
def test_weights_do_not_move_in_a_step_that_diverges(debug_vlm: Path, is_gradient: bool) -> None:
    model, processor, groups = open_model(debug_vlm, lr=1e-3)
    sharded = replicated(model, groups)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    if is_gradient:
        trainable_names = next(p for p in model.parameters() if p.requires_grad)
        trainable_names.register_hook(lambda grad: grad * torch.nan)

    def batches(step: int) -> list[Batch]:
        parts = batches_of(model, processor)(step)
        if not is_gradient:
            parts[0]["pixel_values"].fill_(torch.nan)
        return parts

    with pytest.raises(DivergedError):
        fit(sharded, batches, ScheduleConfig(num_steps=1), start=0, after_step=lambda report: None)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
