"""Planned GPU memory matches what a GPU allocates."""

from pathlib import Path

import torch

from consomme.models.weights import build_from_config, open_vlm
from consomme.train.activations import saved_activations
from consomme.train.cost import SampleShape, step_cost
from consomme.train.loop import ScheduleConfig, fit
from consomme.train.parallel.ddp_fsdp2 import Ddp
from consomme.train.parallel.memory import OPTIMIZER
from consomme.train.parallel.strategy import optimizer_bytes
from consomme.train.parts import Trainability
from consomme.train.planner import make_plan, tensors_of
from consomme.train.trainable import disable_kv_cache, enable_autocast, set_trainable


def test_a_step_takes_what_was_planned(tmp_path: Path) -> None:
    from consomme.models.debug import make_debug_vlm

    folder = make_debug_vlm(tmp_path / "vlm", width=512)
    device = torch.device("cuda")
    with torch.device("meta"):
        shapes = build_from_config(folder)
        trained = set_trainable(shapes, Trainability(), range(12), lr=1e-3)
    model, _ = open_vlm(folder)
    disable_kv_cache(model)
    set_trainable(model, Trainability(), range(12), lr=1e-3)
    enable_autocast(model, "cuda")
    num_image = model.config.image_seq_length
    input_ids = torch.randint(10, 300, (8, 256))
    input_ids[:, :num_image] = model.config.image_token_id
    labels = input_ids.clone()
    labels[:, :num_image] = -100
    batch = {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "pixel_values": torch.randn(8, 3, 32, 32),
        "labels": labels,
    }
    on_gpu = {name: value.to(device) for name, value in batch.items()}
    sharded = Ddp()(model, trained.groups, device)
    torch.cuda.reset_peak_memory_stats(device)
    fit(
        sharded, lambda _: [on_gpu], ScheduleConfig(num_steps=3), start=0, after_step=lambda _: None
    )
    shape = SampleShape(
        num_tokens=256,
        num_labelled=256 - num_image,
        num_image_tokens=num_image,
        num_pixel_values=3 * 32 * 32,
    )
    cost = step_cost(shapes, None, shape, num_samples=8, device="cuda")
    plan = make_plan(
        Ddp(),
        tensors_of(shapes, trained),
        num_parameters=trained.num_parameters,
        world=1,
        num_micro_batches=1,
        device="cuda",
        activations=saved_activations(shapes, None, shape, num_samples=8, precision="bfloat16"),
        checkpointing=False,
        cost=cost,
        cost_of_all=cost,
        flops_per_token=cost.needed / (8 * 256),
    )
    assert plan.kinds[OPTIMIZER].device == optimizer_bytes(sharded.optimizer)
    # Not measured yet; on a CPU the estimate is within a seventh.
    assert 0.7 < plan.step.device / torch.cuda.max_memory_allocated(device) < 1.4
