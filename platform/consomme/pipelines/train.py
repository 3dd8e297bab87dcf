"""Fine-tune a VLM on views of the data, under Ray Train, on any number of workers."""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from consomme.base.errors import ClusterError, ConsommeError, DataError, RecipeError
from consomme.base.manifest import Manifest
from consomme.base.sample import Sample, Turn
from consomme.base.schema import runtime, strategy
from consomme.base.telemetry import MetricsLog, Progress
from consomme.pipelines.checkpoints import model_fingerprint, model_folder
from consomme.pipelines.runs import begin
from consomme.pipelines.session import num_cpus, ray_session
from consomme.storage.files import absolute_url
from consomme.storage.ledger import RunFolder
from consomme.storage.shards import expand, shards_fingerprint
from consomme.storage.sidecar import read_columns
from consomme.storage.units import plan_units, read_unit
from consomme.storage.view import View


@dataclass(frozen=True, kw_only=True)
class TrainSource:
    """One part of the training data: a view or shards, and perhaps newer captions for it."""

    view: str | None = None
    """Folder of a finished filter run."""

    inputs: tuple[str, ...] = ()
    """Shards to take whole; instead of `view`."""

    captions: str | None = None
    """Folder of a finished recaption run; its captions replace those of the samples it has."""

    only_recaptioned: bool = False
    """Leave out samples that `captions` does not have."""

    weight: float | None = None
    """Share of the batches relative to the other sources; None weighs by number of samples."""


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """Fine-tuning from a checkpoint."""

    name: str
    """Name of the run."""

    model: str
    """Where training starts: a Hugging Face folder, a run folder, or `package://models/nano`."""

    data: tuple[TrainSource, ...]
    """What to train on."""

    root: str = "runs"
    """Where run folders are made: a local path or a URL."""

    prompt: str = "describe the image."
    """User turn put before samples that are captions only."""

    layers: dict[str, Any] = strategy(
        "consomme.train.layers:LAYER_SELECTORS", default={"name": "all"}
    )
    """Which layers of the language model are trained; see consomme/train/layers.py."""

    vision_encoder: Literal["full", "frozen"] = "frozen"
    """Whether the vision encoder is trained."""

    projector: Literal["full", "frozen"] = "full"
    """Whether the projector is trained."""

    num_steps: int = 100
    """Optimizer updates."""

    global_batch: int = 32
    """Samples per step over all workers."""

    lr: float = 5e-4
    """Peak learning rate; linear warm-up over a tenth of the steps, then cosine to a tenth."""

    weight_decay: float = 0.0
    """Decay of matrices."""

    seed: int = 0
    """Order of the data."""

    num_workers: int = 1
    """Ray Train workers, data-parallel (DDP). More workers add in another order: bits may differ."""

    max_reject_fraction: float = 0.01
    """More unreadable pictures than this share fail the run."""

    checkpoint_every: int = runtime(50)
    """Steps between checkpoints; a killed run goes on from the last one."""

    micro_batch: int = runtime(32)
    """Samples per forward pass: as many as fit into memory."""

    cpus_per_worker: float = runtime(1.0)
    """CPUs a worker claims where there is no GPU."""


def run(recipe: TrainRecipe) -> Manifest:
    """Train; an interrupted run goes on from its last checkpoint when started again."""
    if not recipe.data:
        raise RecipeError("data: found no source, expected at least one {view: …} or {inputs: […]}")
    start = model_folder(recipe.model)
    inputs = {"model": model_fingerprint(start)}
    parents, reads = [], [start]
    for number, source in enumerate(recipe.data):
        if (source.view is None) == (not source.inputs):
            raise RecipeError(f"data[{number}]: expected either view or inputs, not both, not none")
        if source.inputs:
            shards = expand(source.inputs)
            inputs[f"data {number}"] = shards_fingerprint(shards)
            reads += shards
        parents += [url for url in (source.view, source.captions) if url]
    attempt = begin("train", recipe, inputs=inputs, parents=parents, reads=reads)
    if attempt.folder.is_done:
        return attempt.folder.manifest()
    with ray_session():
        result = _fit(recipe, start, attempt.folder)
    samples, rejected = result.pop("num_samples"), result.pop("num_rejected")
    curve = json.loads(attempt.folder.store.read("curve.json"))
    with MetricsLog(attempt.folder.store, resume_step=0) as log:
        for point in curve:
            log.log("train/loss_nats", point["loss"], point["step"])
            log.log("train/step_s", point["seconds"], point["step"])
    times = sorted(point["seconds"] for point in curve)
    return attempt.finish(
        counts={"samples": samples, "rejected": rejected},
        decisions=result,
        metrics={
            "train/first_loss_nats": curve[0]["loss"],
            "train/last_loss_nats": sum(p["loss"] for p in curve[-10:]) / len(curve[-10:]),
            "train/step_s": times[len(times) // 2],
        },
        outputs={"model": "model", "curve": "curve.json"},
    )


def _fit(recipe: TrainRecipe, start: str, folder: RunFolder) -> dict[str, Any]:
    """Run the workers and return what rank 0 says of the run."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpus = int(ray.cluster_resources().get("GPU", 0))
    use_gpu = gpus >= recipe.num_workers
    if not use_gpu and recipe.num_workers * recipe.cpus_per_worker > num_cpus():
        raise ClusterError(
            f"num_workers={recipe.num_workers} needs {recipe.num_workers * recipe.cpus_per_worker}"
            f" CPUs, the cluster has {num_cpus()}; lower num_workers or cpus_per_worker"
        )
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"recipe": recipe, "start": start, "folder": absolute_url(folder.url)},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=recipe.num_workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": 1.0 if use_gpu else recipe.cpus_per_worker}
            | ({"GPU": 1.0} if use_gpu else {}),
        ),
        run_config=RunConfig(
            name="checkpoints",
            storage_path=absolute_url(folder.url),
            failure_config=FailureConfig(max_failures=2),
        ),
    )
    with Progress(recipe.num_steps, "train", "steps") as progress:
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            cause = _own_error(error)
            if cause is not None:
                raise cause from error
            raise
        progress.advance(recipe.num_steps)
    summary: dict[str, Any] = result.return_value
    return summary


def _own_error(error: BaseException) -> ConsommeError | None:
    """Find consomme's own error inside what Ray wrapped around it."""
    failures = getattr(error, "worker_failures", None) or {}
    for failure in failures.values():
        current: BaseException | None = failure
        while current is not None:
            if isinstance(current, ConsommeError):
                return current
            current = getattr(current, "cause", None) or current.__cause__
    return None


@dataclass
class TrainSet:
    """What a worker trains on."""

    samples: list[Sample] = field(default_factory=list)
    weights: list[tuple[int, float]] = field(default_factory=list)


def load_samples(sources: Sequence[TrainSource]) -> TrainSet:
    """Read all samples of the sources, with their newest captions, in unit order."""
    found = TrainSet()
    for source in sources:
        samples = list(_read(source))
        if source.captions:
            texts = _new_captions(source.captions)
            samples = [
                s.with_caption(texts[s.sample_id]) if s.sample_id in texts else s
                for s in samples
                if s.sample_id in texts or not source.only_recaptioned
            ]
        if not samples:
            raise DataError(f"data: {source} holds no samples")
        weight = float(len(samples)) if source.weight is None else source.weight
        found.samples += samples
        found.weights.append((len(samples), weight))
    return found


def _new_captions(url: str) -> dict[str, str]:
    """Captions of a recaption run that passed its guards, by sample id."""
    table = read_columns(url, ["caption", "guard"], kind="captions")
    rows = zip(*(table[c].to_pylist() for c in ("sample_id", "caption", "guard")), strict=True)
    return {sample_id: caption for sample_id, caption, reason in rows if reason is None}


def _read(source: TrainSource) -> Iterator[Sample]:
    if source.view:
        for unit, rows in View.load(source.view).rows():
            wanted = set(rows)
            if wanted:
                yield from (sample for row, sample in read_unit(unit)[0] if row in wanted)
        return
    for unit in plan_units(source.inputs, "data"):
        yield from (sample for _, sample in read_unit(unit)[0])


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """One rank of a Ray Train run."""
    import ray.train
    import torch
    from ray.train.torch import get_device, prepare_model

    from consomme.models.chat import Chat
    from consomme.models.weights import open_vlm, save_vlm
    from consomme.train.layers import LAYER_SELECTORS
    from consomme.train.loop import Pace, StepReport, fit, make_optimizer
    from consomme.train.order import BatchOrder
    from consomme.train.trainable import set_trainable
    from consomme.vision.decode import DecodeProblem, decode

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
    data = load_samples(recipe.data)
    readable = [not isinstance(decode(s.image), DecodeProblem) for s in data.samples]
    num_rejected = readable.count(False)
    if num_rejected / len(readable) > recipe.max_reject_fraction:
        raise DataError(
            f"{num_rejected} of {len(readable)} pictures cannot be decoded, more than"
            f" max_reject_fraction={recipe.max_reject_fraction}; score and filter the data first"
        )
    weights, at = [], 0
    for size, weight in data.weights:
        weights.append((sum(readable[at : at + size]), weight))
        at += size
    samples = [s for s, ok in zip(data.samples, readable, strict=True) if ok]
    order = BatchOrder(weights, recipe.global_batch, recipe.seed)
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
            encoded = [chat.encode(_turns(s, recipe.prompt), has_image=True) for s in part]
            batch = chat.collate(encoded)
            batch["pixel_values"] = chat.pixels([decode(s.image) for s in part])
            yield {key: value.to(device) for key, value in batch.items()}

    def after_step(done: StepReport) -> None:
        curve.append(dataclasses.asdict(done))
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

    fit(wrapped, optimizer, batches, pace, start=start, after_step=after_step)
    if rank == 0:
        folder = RunFolder.at(config["folder"])
        save_vlm(Path(folder.path) / "model", model, processor)
        folder.store.write("curve.json", json.dumps(curve).encode())
    return {
        "num_samples": len(samples),
        "num_rejected": num_rejected,
        "layers": list(selected),
        "num_layers": model.config.text_config.num_hidden_layers,
        "trainable": [list(row) for row in table.rows],
        "num_trainable": table.num_trainable,
        "num_parameters": table.num_parameters,
        "world_size": world,
        "resumed_from_step": start,
        "optimizer_bytes": _optimizer_bytes(optimizer),
    }


def _turns(sample: Sample, prompt: str) -> tuple[Turn, ...]:
    """Put the prompt before a sample that is nothing but a caption."""
    if sample.turns and sample.turns[0].role == "assistant":
        return (Turn(role="user", content=prompt), *sample.turns)
    return sample.turns


def _optimizer_bytes(optimizer: Any) -> int:
    return sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in state.values()
        if hasattr(value, "numel") and math.prod(value.shape) > 1
    )
