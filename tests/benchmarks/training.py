"""Overhead of the training loop against a hand-written one, and the savings of layer selections.

Everything runs in one process, in turn, round by round; figures are medians. Models have random
weights, because time and memory do not depend on them.
"""

from __future__ import annotations

import gc
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from consomme.models.batches import IGNORE_INDEX
from consomme.models.imports import import_transformers
from consomme.train.activations import saved_activations
from consomme.train.cost import SampleShape, StepCost, peak_flops, step_cost
from consomme.train.layers import LAYER_SELECTORS
from consomme.train.loop import ScheduleConfig, fit
from consomme.train.parallel.ddp_fsdp2 import Ddp
from consomme.train.parallel.memory import OPTIMIZER, WEIGHTS
from consomme.train.parallel.strategy import BETAS, optimizer_bytes
from consomme.train.parts import FROZEN, Trainability
from consomme.train.planner import make_plan, tensors_of
from consomme.train.trainable import disable_kv_cache, enable_autocast, set_trainable

hf = import_transformers()

ROUNDS = 7
GB = 1e9

TOP: dict[str, Any] = {"name": "consecutive", "where": "top"}
SPARSE: dict[str, Any] = {"name": "sparse_uniform"}
CHOICES: dict[str, tuple[Trainability, dict[str, Any] | None]] = {
    "all": (Trainability(), {"name": "all"}),
    "sparse25": (Trainability(), SPARSE),
    "top25_frozen_projector": (Trainability(projector=FROZEN), TOP),
    "projector_only": (Trainability(language_model=FROZEN), None),
}
"""Name in the keys -> trained parts, and the layer selection."""

LABELS = {
    "sparse25": "25 % of the layers, sparse_uniform, and the projector",
    "top25_frozen_projector": "the top 25 % of the layers, projector frozen",
    "projector_only": "the projector alone",
}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a VLM and of its batch."""

    text: dict[str, Any]
    vision_width: int
    vision_layers: int
    image_px: int
    patch_px: int = 16
    batch: int = 2
    num_tokens: int = 256

    @property
    def num_image_tokens(self) -> int:
        """Number of image tokens of one picture."""
        return int((self.image_px // self.patch_px) ** 2)

    @property
    def lengths(self) -> SampleShape:
        """Return the planner's sample shape: half of the text tokens are labelled."""
        return SampleShape(
            num_tokens=self.num_tokens,
            num_labelled=(self.num_tokens - self.num_image_tokens) // 2,
            num_image_tokens=self.num_image_tokens,
            num_pixel_values=3 * self.image_px**2,
        )


SMOLLM2_135M = Shape(
    text={
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    vision_width=384,
    vision_layers=6,
    image_px=128,
)
SMALL = Shape(
    text={
        "vocab_size": 4096,
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
    },
    vision_width=192,
    vision_layers=3,
    image_px=64,
    num_tokens=192,
)
LLAMA_1B = Shape(
    text={
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    vision_width=1024,
    vision_layers=24,
    image_px=384,
    batch=4,
    num_tokens=2048,
)
"""Llama 3.2 1B with an encoder as large as CLIP's."""


def vision_config(shape: Shape) -> Any:
    """Return the configuration of a CLIP encoder of this shape."""
    return hf.CLIPVisionConfig(
        hidden_size=shape.vision_width,
        intermediate_size=4 * shape.vision_width,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=shape.vision_width // 64,
        image_size=shape.image_px,
        patch_size=shape.patch_px,
    )


def build(shape: Shape) -> Any:
    """Build a LLaVA of this shape on the current device."""
    text = hf.LlamaConfig(max_position_embeddings=4096, **shape.text)
    config = hf.LlavaConfig(
        vision_config=vision_config(shape),
        text_config=text,
        image_token_index=shape.text["vocab_size"] - 1,
        image_seq_length=shape.num_image_tokens,
        vision_feature_layer=-1,
        tie_word_embeddings=shape.text.get("tie_word_embeddings", False),
    )
    return hf.LlavaForConditionalGeneration(config)


def make_batch(shape: Shape, device: torch.device) -> dict[str, Tensor]:
    """Make a batch of random pixels and tokens."""
    torch.manual_seed(0)
    ids = torch.randint(0, shape.text["vocab_size"] - 1, (shape.batch, shape.num_tokens))
    ids[:, : shape.num_image_tokens] = shape.text["vocab_size"] - 1
    labels = ids.clone()
    labels[:, : -int(shape.lengths.num_labelled)] = IGNORE_INDEX
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(shape.batch, 3, shape.image_px, shape.image_px),
        "labels": labels,
    }
    return {name: value.to(device) for name, value in batch.items()}


def now(device: torch.device) -> float:
    """Read the clock after all queued GPU work is done; on a CPU read this process's CPU time.

    On a CPU one thread computes, so other load on the machine is not counted.
    """
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


class Timed:
    """A `ShardedModel` that records the time of forward, backward and optimizer."""

    def __init__(self, inner: Any, device: torch.device) -> None:
        self.inner, self.device = inner, device
        self.model, self.optimizer = inner.model, inner.optimizer
        self.parts: dict[str, float] = {}
        self._since = 0.0

    def start_micro_batch(self, *, is_last: bool) -> None:
        """Start the clock of the forward pass."""
        self.inner.start_micro_batch(is_last=is_last)
        self._since = now(self.device)

    def backward(self, loss: Tensor) -> None:
        """Time the forward pass so far and the backward pass."""
        began = now(self.device)
        self.inner.backward(loss)
        self.parts |= {"forward": began - self._since, "backward": now(self.device) - began}

    def step(self, max_norm: float) -> float:
        """Time the optimizer step."""
        began = now(self.device)
        norm: float = self.inner.step(max_norm)
        self.parts["optimizer"] = now(self.device) - began
        return norm


def apply_choice(model: Any, name: str) -> Any:
    """Set `requires_grad` for a choice of `CHOICES`."""
    choice, node = CHOICES[name]
    num_layers = model.config.get_text_config().num_hidden_layers
    layers = LAYER_SELECTORS.build(node)(num_layers, None) if node else ()
    return set_trainable(model, choice, layers, lr=1e-5)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Measurements and plan of one choice."""

    seconds: float
    parts: dict[str, float]
    optimizer: int
    peak: int
    """Weights, optimizer state and peak of a step's tensors, in bytes."""

    planned_optimizer: int
    planned_peak: int
    cost: StepCost
    num_trained: int


def selections(shape: Shape, device: torch.device, precision: Any) -> dict[str, Measured]:
    """Train all choices in turn, one step each per round."""
    torch.manual_seed(0)
    model = build(shape).to(device)
    disable_kv_cache(model)
    if precision == "bfloat16":
        enable_autocast(model, device.type)
    batch = make_batch(shape, device)
    models: dict[str, Timed] = {}
    for name in CHOICES:
        models[name] = Timed(Ddp()(model, apply_choice(model, name).groups, device), device)
    seconds: dict[str, list[float]] = {name: [] for name in CHOICES}
    parts: dict[str, list[dict[str, float]]] = {name: [] for name in CHOICES}
    for number in range(ROUNDS + 1):
        for name, sharded in models.items():
            apply_choice(model, name)
            began = now(device)
            one_step(sharded, batch)
            took = now(device) - began
            if number:  # The first round allocates the optimizer states.
                seconds[name].append(took)
                parts[name].append(dict(sharded.parts))
    found = {}
    for name, sharded in models.items():
        trained = apply_choice(model, name)
        plan = planned(shape, name, device.type, precision)
        held = optimizer_bytes(sharded.optimizer)
        found[name] = Measured(
            seconds=statistics.median(seconds[name]),
            parts={
                part: statistics.median(one[part] for one in parts[name])
                for part in ("forward", "backward", "optimizer")
            },
            optimizer=held,
            peak=plan.kinds[WEIGHTS].total + held + peak_of_step(sharded, batch, device),
            planned_optimizer=plan.kinds[OPTIMIZER].total,
            planned_peak=plan.step.total,
            cost=plan.cost,
            num_trained=trained.num_trained,
        )
        gc.collect()
    return found


def planned(shape: Shape, name: str, device: str, precision: Any) -> Any:
    """Plan one choice with the planner."""
    with torch.device("meta"):
        model = build(shape)
        trained = apply_choice(model, name)
    cost = step_cost(
        model, trained.lowest_layer, shape.lengths, num_samples=shape.batch, device=device
    )
    return make_plan(
        Ddp(),
        tensors_of(model, trained),
        num_parameters=trained.num_parameters,
        world=1,
        num_micro_batches=1,
        device=device,
        activations=saved_activations(
            model,
            trained.lowest_layer,
            shape.lengths,
            num_samples=shape.batch,
            precision=precision,
        ),
        checkpointing=False,
        cost=cost,
        cost_of_all=cost,
        flops_per_token=cost.needed / (shape.batch * shape.num_tokens),
    )


def one_step(sharded: Any, batch: dict[str, Tensor]) -> None:
    """Run one step of the training loop."""
    schedule = ScheduleConfig(num_steps=1, schedule="constant")
    fit(sharded, lambda _: [batch], schedule, start=0, after_step=lambda _: None)


def peak_of_step(sharded: Timed, batch: dict[str, Tensor], device: torch.device) -> int:
    """Return the peak number of bytes that a step allocates beyond those held before it."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        one_step(sharded, batch)
        return torch.cuda.max_memory_allocated(device) - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        one_step(sharded, batch)
    assert profiler.profiler is not None
    events: Any = profiler.profiler.kineto_results
    changes = sorted(
        (one.start_ns(), one.nbytes()) for one in events.events() if one.name() == "[memory]"
    )
    held = most = 0
    for _, change in changes:
        held += change
        most = max(most, held)
    return most


def bare_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor]
) -> float:
    """Run a hand-written training step."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs).logits[:, :-1]
    targets = batch["labels"][:, 1:]
    chosen = targets != IGNORE_INDEX
    loss = cross_entropy(logits[chosen].float(), targets[chosen], reduction="sum") / chosen.sum()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def overhead() -> list[dict[str, Any]]:
    """Compare the loop with a hand-written one, on the same model and batch."""
    device = torch.device("cpu")
    torch.manual_seed(0)
    model = build(SMALL)
    batch = make_batch(SMALL, device)
    trained = apply_choice(model, "all")
    sharded = Ddp()(model, trained.groups, device)
    by_hand = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-5, betas=BETAS
    )
    model.train()
    times: dict[str, list[float]] = {"loop": [], "bare": []}
    for number in range(8 * ROUNDS):
        for name in ("loop", "bare") if number % 2 else ("bare", "loop"):
            began = now(device)
            if name == "loop":
                one_step(sharded, batch)
            else:
                bare_step(model, by_hand, batch)
            if number >= 4:
                times[name].append(now(device) - began)
    middle = {name: statistics.median(found) for name, found in times.items()}
    how = (
        "12 layers of width 384, 2 x 192 tokens, one process and one thread, milliseconds of CPU a"
        f" step: ours {1e3 * middle['loop']:.0f}, by hand {1e3 * middle['bare']:.0f}; medians of"
        f" {len(times['loop'])} steps each, in turn"
    )
    ratio = middle["loop"] / middle["bare"]
    return [row("train.overhead", ratio, "a loop written by hand, same step", how)]


def through_ray() -> list[dict[str, Any]]:
    """Compare `consomme train` with one worker with a hand-written loop over the same samples."""
    from consomme.execution.session import shared_ray
    from consomme.pipelines.train import run as train
    from consomme.pipelines.train.recipe import TrainRecipe, TrainSource
    from consomme.storage.model_folder import model_folder

    num_steps, rounds = 24, 3
    times: dict[str, list[float]] = {"ray": [], "bare": []}
    with tempfile.TemporaryDirectory() as scratch, shared_ray():
        shard = write_shard(Path(scratch))
        for number in range(rounds):
            recipe = TrainRecipe(
                name=f"overhead-{number}",
                root=scratch,
                model="package://models/nano",
                data=(TrainSource(inputs=(str(shard),)),),
                num_steps=num_steps,
                checkpoint_every=num_steps,
                seed=number,
            )
            folder = Path(train.run(recipe).url)
            curve = json.loads((folder / "curve.json").read_text())
            times["ray"] += [point["seconds"] for point in curve[2:-1]]
            times["bare"] += list(bare_epoch(recipe, model_folder(recipe.model)))[2:-1]
    middle = {name: statistics.median(found) for name, found in times.items()}
    how = (
        f"nano VLM, 32 emoji a step: `consomme train` with one worker {1e3 * middle['ray']:.0f} ms"
        f" a step, by hand {1e3 * middle['bare']:.0f} ms, both with decoding and encoding;"
        f" medians of {len(times['ray'])} steps each, in {rounds} rounds"
    )
    ratio = middle["ray"] / middle["bare"]
    return [row("train.overhead_ray", ratio, "a loop written by hand in one process", how)]


def write_shard(folder: Path) -> Path:
    """Write a few hundred emoji as a tar."""
    from consomme.pipelines.prepare import run as prepare
    from consomme.pipelines.prepare.recipe import PrepareRecipe

    made = prepare.run(
        PrepareRecipe(name="emoji", root=str(folder), source={"name": "emoji", "every": 4})
    )
    return next(Path(made.url).rglob("*.tar"))


def bare_epoch(recipe: Any, start: str) -> Iterator[float]:
    """Run the hand-written loop on random batches of the samples; yield seconds per step."""
    import random

    from consomme.models.batches import Batcher
    from consomme.models.chat_prefix import chat_encoder_for
    from consomme.models.weights import open_model
    from consomme.pipelines.train.samples import Preparer, encode, plan_source

    model, processor = open_model(start)
    chat = chat_encoder_for(model.config, processor)
    batcher = Batcher(model, chat.tokenizer)
    set_trainable(model, recipe.trainability, range(12), lr=1e-5)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    preparer = Preparer(recipe, chat, 512)
    (source,) = recipe.data
    contents = preparer.read(source, plan_source(source, "data").works[0], 0, 0)
    model.train()
    draw = random.Random(recipe.seed)
    for _ in range(recipe.num_steps):
        some = draw.sample(contents.samples, recipe.global_batch)
        began = time.perf_counter()
        batch = batcher.collate([encode(chat, one) for one in some])
        bare_step(model, optimizer, batch)
        yield time.perf_counter() - began


def row(key: str, value: float, baseline: str, how: str, unit: str = "ratio") -> dict[str, Any]:
    """Return one figure."""
    return {"key": key, "value": round(value, 4), "unit": unit, "baseline": baseline, "how": how}


def describe(one: Measured) -> str:
    """Describe the measurements and the plan of one choice."""
    parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in one.parts.items())
    return (
        f"{one.seconds:.2f} s a step ({parts}), AdamW {one.optimizer / GB:.2f} GB (planned"
        f" {one.planned_optimizer / GB:.2f}), peak {one.peak / GB:.2f} GB (planned"
        f" {one.planned_peak / GB:.2f})"
    )


def selection_rows(found: dict[str, Measured], where: str, prefix: str) -> list[dict[str, Any]]:
    """Return the figures of all choices against training all layers."""
    every = found["all"]
    rows = [
        row(
            f"{prefix}all_step_s",
            every.seconds,
            "",
            f"{where}; all layers and the projector: {describe(every)}",
            "s",
        )
    ]
    for name, label in LABELS.items():
        one = found[name]
        predicted = one.cost.total / every.cost.total
        floor = (one.cost.forward + one.cost.backward_activations) / every.cost.total
        how = (
            f"{label}: {describe(one)}; the planner said {predicted:.2f}, and {floor:.2f} if"
            " gradients"
            " of weights and the optimizer took no time"
        )
        rows.append(row(f"{prefix}{name}_step_ratio", one.seconds / every.seconds, "all", how))
        rows.append(
            row(
                f"{prefix}{name}_optimizer_ratio",
                one.optimizer / every.optimizer,
                "all",
                f"bytes of AdamW's state, {label}; planned"
                f" {one.planned_optimizer / every.planned_optimizer:.4f}",
            )
        )
        rows.append(
            row(
                f"{prefix}{name}_peak_ratio",
                one.peak / every.peak,
                "all",
                f"weights, optimizer and a step's tensors at their most, {label}; planned"
                f" {one.planned_peak / every.planned_peak:.2f}",
            )
        )
    return rows


def gpu_rows() -> list[dict[str, Any]]:
    """Measure a model of a billion parameters in bfloat16 on a GPU, and its utilization."""
    device = torch.device("cuda")
    name = torch.cuda.get_device_name(device)
    found = selections(LLAMA_1B, device, "bfloat16")
    where = (
        f"{name}, Llama 3.2 1B's shape, {LLAMA_1B.batch} x {LLAMA_1B.num_tokens} tokens, bfloat16"
        " products"
    )
    rows = selection_rows(found, where, "train.gpu_")
    peak = peak_flops(name, "bfloat16")
    if peak:
        rows += [
            row(
                f"train.gpu_{choice}_mfu",
                one.cost.needed / one.seconds / peak,
                f"{peak / 1e12:,.0f} Tflop/s",
                f"{where}; {choice}: {one.cost.needed / 1e12:.1f} Tflop a step",
                "fraction",
            )
            for choice, one in found.items()
        ]
    return rows


def measure() -> list[dict[str, Any]]:
    """Measure everything that needs no GPU."""
    torch.set_num_threads(1)
    found = selections(SMOLLM2_135M, torch.device("cpu"), "float32")
    where = (
        "SmolLM2-135M's shape with a vision encoder of 6 x 384, 2 x 256 tokens, one thread, seconds"
        " of CPU"
    )
    return [*overhead(), *through_ray(), *selection_rows(found, where, "train.")]
