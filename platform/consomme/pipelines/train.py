"""Fine-tune a VLM on views of the data, under Ray Train, on any number of workers."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from consomme.base.errors import ClusterError, ConsommeError, DataError, RecipeError
from consomme.base.manifest import Manifest
from consomme.base.sample import Reject, Sample, Turn
from consomme.base.schema import runtime, strategy
from consomme.base.telemetry import MetricsLog, Progress
from consomme.evaluate.cache import model_content_hash
from consomme.pipelines.checkpoints import model_folder
from consomme.pipelines.flow import reject_of
from consomme.pipelines.runs import begin, check_rejects
from consomme.pipelines.session import num_cpus, ray_session
from consomme.storage.files import absolute_url
from consomme.storage.ledger import RunFolder
from consomme.storage.shards import expand, shards_fingerprint
from consomme.storage.sidecar import read_columns
from consomme.storage.units import plan_units, read_unit
from consomme.storage.view import View
from consomme.vision.decode import DecodeProblem, decode

CURVE = "curve.json"
"""Loss, seconds and learning rate of every finished step; renewed every few seconds."""


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
    """Ray Train workers, data-parallel (DDP). More workers add in another order: bits may vary."""

    max_reject_fraction: float = 0.01
    """More samples than this share that cannot be trained on fail the run."""

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
    if recipe.global_batch < recipe.num_workers:
        raise RecipeError(
            f"global_batch={recipe.global_batch} is less than num_workers={recipe.num_workers}:"
            " some workers would have no sample in a step; raise it or take fewer workers"
        )
    start = model_folder(recipe.model)
    inputs = {"model": model_content_hash(start)}
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
    counts = result.pop("counts")
    curve = json.loads(attempt.folder.store.read(CURVE))
    with MetricsLog(attempt.folder.store, resume_step=0) as log:
        for point in curve:
            log.log("train/loss_nats", point["loss"], point["step"])
            log.log("train/step_s", point["seconds"], point["step"])
    times = sorted(point["seconds"] for point in curve)
    return attempt.finish(
        counts=counts,
        decisions=result,
        metrics={
            "train/first_loss_nats": curve[0]["loss"],
            "train/last_loss_nats": sum(p["loss"] for p in curve[-10:]) / len(curve[-10:]),
            "train/step_s": times[len(times) // 2],
        },
        outputs={"model": "model", "curve": CURVE, "rejects": "rejects"},
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
        train_loop_config={
            "recipe": _from_anywhere(recipe),
            "start": start,
            "folder": absolute_url(folder.url),
        },
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
    with Progress(recipe.num_steps, "train", "steps") as progress, _watch(folder, progress):
        try:
            result = _in_thread(trainer.fit)
        except ray.train.TrainingFailedError as error:
            cause = _own_error(error)
            if cause is not None:
                raise cause from error
            raise
    summary: dict[str, Any] = result.return_value
    return summary


def _in_thread(action: Callable[[], Any]) -> Any:
    """Run `action` outside the main thread and wait for it.

    In the main thread Ray Train 2.60 installs a Ctrl-C handler of its own, which ends the process
    with exit code 0 and stays installed after training. Here Ctrl-C interrupts the waiting.
    """
    outcome: Future[Any] = Future()

    def work() -> None:
        try:
            outcome.set_result(action())
        except BaseException as error:  # noqa: BLE001 - raised again by the waiting thread
            outcome.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return outcome.result()


@contextlib.contextmanager
def _watch(folder: RunFolder, progress: Progress) -> Iterator[None]:
    """Advance the progress line by what rank 0 writes into the run folder, wherever it runs."""
    done = threading.Event()

    def look() -> None:
        while True:
            ended = done.wait(2.0)
            if folder.store.exists(CURVE):
                steps = len(json.loads(folder.store.read(CURVE)))
                progress.advance(max(0, steps - progress.done))
            if ended:
                return

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _from_anywhere(recipe: TrainRecipe) -> TrainRecipe:
    """Make the data's paths absolute: Ray Train's workers have another current directory."""
    sources = [
        dataclasses.replace(
            source,
            view=source.view and absolute_url(source.view),
            inputs=tuple(expand(source.inputs)) if source.inputs else (),
            captions=source.captions and absolute_url(source.captions),
        )
        for source in recipe.data
    ]
    return dataclasses.replace(recipe, data=tuple(sources))


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
    """(number of samples, relative weight) of each source, in the order of `samples`."""

    rejects: list[Reject] = field(default_factory=list)


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
            encoded = [chat.encode(turns_of(s, recipe.prompt), has_image=True) for s in part]
            batch = chat.collate(encoded)
            batch["pixel_values"] = chat.pixels([decode(s.image) for s in part])
            yield {key: value.to(device) for key, value in batch.items()}

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
        "num_trainable": table.num_trainable,
        "num_parameters": table.num_parameters,
        "world_size": world,
        "resumed_from_step": start,
        "optimizer_bytes": _optimizer_bytes(optimizer),
    }


def turns_of(sample: Sample, prompt: str) -> tuple[Turn, ...]:
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
