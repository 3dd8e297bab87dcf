"""What one rank of a training run does: read the data, train, keep checkpoints.

One decision is made here: a rank holds its samples in memory and decodes pictures as it needs them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from consomme.base.errors import ConsommeError, DataError
from consomme.base.sample import Reject, Sample, turns_of
from consomme.pipelines.captions import check_units, reader, units_of
from consomme.pipelines.runs import check_rejects
from consomme.pipelines.stage import reject_of
from consomme.pipelines.train import CURVE, TrainRecipe, TrainSource
from consomme.storage.ledger import RunFolder
from consomme.storage.units import plan_units
from consomme.storage.view import View
from consomme.vision.decode import DecodeProblem, decode


def train_worker(config: dict[str, Any]) -> dict[str, Any] | ConsommeError:
    """Train one rank of a Ray Train run.

    Every rank reads the same samples and sums the same losses, so a user's error is met by all.

    Returns:
        What rank 0 says of the run; or the error that a user has to mend, not raised, because Ray
        Train would try again what cannot succeed.
    """
    try:
        return _train(config)
    except ConsommeError as error:
        return error


@dataclass
class TrainSet:
    """What a worker trains on."""

    samples: list[Sample] = field(default_factory=list)
    weights: list[tuple[int, float]] = field(default_factory=list)
    """(number of samples, relative weight) of each source, in the order of `samples`."""

    rejects: list[Reject] = field(default_factory=list)


def load_samples(sources: Sequence[TrainSource]) -> TrainSet:
    """Read all samples of the sources, with their newest captions, in unit order."""
    found = TrainSet()
    for source in sources:
        samples = list(_read(source))
        if not samples:
            raise DataError(f"data: {source} holds no samples")
        weight = float(len(samples)) if source.weight is None else source.weight
        found.samples += samples
        found.weights.append((len(samples), weight))
    return found


def usable_samples(data: TrainSet, chat: Any, prompt: str, max_tokens: int) -> TrainSet:
    """Leave out what cannot be trained on, so that no step finds out half-way.

    Args:
        data: Samples as they were read.
        chat: The model's `Chat`.
        prompt: User turn put before samples that are captions only.
        max_tokens: Positions the language model has.
    """
    found = TrainSet()
    position = 0
    for size, weight in data.weights:
        good = []
        for sample in data.samples[position : position + size]:
            problem = _problem(sample, chat, prompt, max_tokens)
            if problem:
                found.rejects.append(reject_of(sample, *problem))
            else:
                good.append(sample)
        found.samples += good
        found.weights.append((len(good), weight))
        position += size
    return found


def _problem(sample: Sample, chat: Any, prompt: str, max_tokens: int) -> tuple[str, str] | None:
    image = decode(sample.image)
    if isinstance(image, DecodeProblem):
        return image.reason, image.detail
    try:
        num_tokens = len(chat.encode(turns_of(sample, prompt), has_image=True).input_ids)
    except DataError as error:
        return "text_not_encodable", str(error)
    if num_tokens > max_tokens:
        return "sequence_too_long", f"{num_tokens} tokens, the model has {max_tokens} positions"
    return None


def _read(source: TrainSource) -> Iterator[Sample]:
    """Yield a source's samples, with the captions of its recaption run."""
    read = reader(source.captions, only_new=source.only_recaptioned)
    if source.view:
        view = View.load(source.view)
        check_units(source.captions, (unit.unit_id for unit in view.units))
        for unit, rows in view.rows():
            wanted = set(rows)
            if wanted:
                yield from (sample for row, sample in read(unit)[0] if row in wanted)
        return
    units = plan_units(source.inputs, "data")
    if source.captions:
        units = units_of(source.captions, sorted({unit.shard for unit in units}))
    for unit in units:
        yield from (sample for _, sample in read(unit)[0])


def _train(config: dict[str, Any]) -> dict[str, Any]:
    import ray.train
    import torch
    from ray.train.torch import get_device, prepare_model

    from consomme.models.chat import Chat
    from consomme.models.weights import open_vlm, save_vlm
    from consomme.train.layers import LAYER_SELECTORS
    from consomme.train.loop import Pace, StepReport, fit, make_optimizer, sum_nll
    from consomme.train.order import BatchOrder
    from consomme.train.trainable import freeze_unused, set_trainable

    recipe: TrainRecipe = config["recipe"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(max(1, int(recipe.cpus_per_worker)))
    model, processor = open_vlm(config["start"])
    chat = Chat(model, processor)
    selected = LAYER_SELECTORS.build(recipe.layers, "layers")(
        model.config.text_config.num_hidden_layers
    )
    table = set_trainable(
        model, layers=selected, vision_encoder=recipe.vision_encoder, projector=recipe.projector
    )
    limit = model.config.text_config.max_position_embeddings
    data = usable_samples(load_samples(recipe.data), chat, recipe.prompt, limit)
    samples = data.samples
    counts: dict[str, int] = {"samples": len(samples), "rejected": len(data.rejects)}
    for reject in data.rejects:
        key = f"rejected/{reject.reason}"
        counts[key] = counts.get(key, 0) + 1
    check_rejects(counts, recipe.max_reject_fraction, config["folder"])
    order = BatchOrder(data.weights, recipe.global_batch, recipe.seed)

    def collate(part: Sequence[Sample]) -> dict[str, Any]:
        batch = chat.collate(
            [chat.encode(turns_of(s, recipe.prompt), has_image=True) for s in part]
        )
        batch["pixel_values"] = chat.pixels([decode(s.image) for s in part])
        return batch

    unused = freeze_unused(model, lambda bare: sum_nll(bare, collate(samples[:1])))
    wrapped = prepare_model(model)
    device = get_device()
    pace = Pace(num_steps=recipe.num_steps, lr=recipe.lr, weight_decay=recipe.weight_decay)
    optimizer = make_optimizer(wrapped, pace)
    curve: list[dict[str, float]] = []
    start = 0
    checkpoint = ray.train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as path:
            saved = torch.load(Path(path) / "state.pt", weights_only=True, map_location="cpu")
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        start, curve = saved["step"], saved["curve"]

    def batches(step: int) -> Iterator[dict[str, Any]]:
        mine = order.rank(step, rank, world)
        for at in range(0, len(mine), recipe.micro_batch):
            part = [samples[index] for index in mine[at : at + recipe.micro_batch]]
            yield {key: value.to(device) for key, value in collate(part).items()}

    shown = time.monotonic()

    def after_step(done: StepReport) -> None:
        nonlocal shown
        curve.append(dataclasses.asdict(done))
        if rank == 0 and (time.monotonic() - shown > 2 or done.step == recipe.num_steps):
            shown = time.monotonic()
            folder.store.write(CURVE, json.dumps(curve).encode())
        if done.step % recipe.checkpoint_every and done.step != recipe.num_steps:
            return
        with tempfile.TemporaryDirectory() as scratch:
            kept = None
            if rank == 0:
                state = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": done.step,
                    "curve": curve,
                }
                torch.save(state, Path(scratch) / "state.pt")
                kept = ray.train.Checkpoint.from_directory(scratch)
            ray.train.report({"step": done.step, "loss": done.loss}, checkpoint=kept)

    folder = RunFolder.at(config["folder"])
    fit(wrapped, optimizer, batches, pace, start=start, after_step=after_step)
    if rank == 0:
        save_vlm(Path(folder.path) / "model", model, processor)
        lines = [json.dumps(dataclasses.asdict(r), sort_keys=True) + "\n" for r in data.rejects]
        folder.store.write("rejects/train.jsonl", "".join(lines).encode())
    return {
        "counts": counts,
        "layers": list(selected),
        "num_layers": model.config.text_config.num_hidden_layers,
        "trainable": [list(row) for row in table.rows],
        "unused": list(unused),
        "num_trainable": table.num_trainable,
        "num_parameters": table.num_parameters,
        "world_size": world,
        "resumed_from_step": start,
        "optimizer_bytes": _optimizer_bytes(optimizer),
    }


def _optimizer_bytes(optimizer: Any) -> int:
    return sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in state.values()
        if hasattr(value, "numel") and math.prod(value.shape) > 1
    )
