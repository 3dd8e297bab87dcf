"""Fine-tune a VLM on views of the data, under Ray Train, on any number of workers."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from consomme.base.errors import ClusterError, ConsommeError, RecipeError
from consomme.base.manifest import Manifest
from consomme.base.schema import runtime, strategy
from consomme.base.telemetry import MetricsLog, Progress
from consomme.evaluate.cache import model_content_hash
from consomme.pipelines.checkpoints import model_folder
from consomme.pipelines.runs import begin, folders_of
from consomme.pipelines.session import num_cpus, ray_session
from consomme.storage.files import absolute_url
from consomme.storage.ledger import RunFolder
from consomme.storage.shards import expand, find_shards, shards_fingerprint
from consomme.train.parts import FROZEN, FULL, Part, Trainability, TrainableRow, summarise

if TYPE_CHECKING:
    from consomme.pipelines.train_fit import Machine
    from consomme.train.planner import Plan

logger = logging.getLogger(__name__)

CURVE = "curve.json"
"""Loss, seconds and learning rate of every finished step; renewed every few seconds."""

TRAINABLE = "trainable.json"
"""What is trained, part by part and layer by layer; written before the first step."""

PLAN = "plan.json"
"""What the run was expected to take; written before the workers start."""


@dataclass(frozen=True, kw_only=True)
class TrainSource:
    """One part of the training data: a view or shards, and perhaps newer captions for it."""

    view: str | None = None
    """Folder of a finished filter run."""

    inputs: tuple[str, ...] = ()
    """Shards to take whole; instead of `view`."""

    captions: str | None = None
    """Folder of a finished recaption run: samples it has newer text for are trained on that."""

    only_recaptioned: bool = False
    """Leave out samples that `captions` has no newer text for."""

    fraction: float = 1.0
    """Share of the samples to take, in (0, 1]: always the same ones, and with a smaller share some
    of those. By a hash of their ids, so the number is right by chance, not exactly."""

    weight: float | None = None
    """Share of the batches relative to the other sources; None weighs by number of samples."""

    shuffle_turns: bool = False
    """Ask the questions of a sample in another order in every epoch. Only for samples whose
    questions do not lean on each other."""

    def __post_init__(self) -> None:
        """Check the share."""
        if not 0 < self.fraction <= 1:
            raise RecipeError(
                f"fraction: found {self.fraction}, expected a share of the samples in (0, 1]"
            )


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """Fine-tuning from a checkpoint."""

    name: str
    """Name of the run."""

    model: str
    """Where training starts: a Hugging Face folder, a run folder, or `package://models/nano`."""

    data: tuple[TrainSource, ...]
    """What to train on."""

    root: str = runtime("runs")
    """Where run folders are made: a local path or a URL."""

    prompt: str = "describe the image."
    """User turn put before samples that are captions only."""

    layers: dict[str, Any] = strategy(
        "consomme.train.layers:LAYER_SELECTORS", default={"name": "all"}
    )
    """Which layers of the language model are trained; see consomme/train/layers.py."""

    vision_encoder: Part = FROZEN
    """How the vision encoder is trained; `state` is frozen, lora, dora or full."""

    projector: Part = FULL
    """How the projector is trained."""

    language_model: Part = FULL
    """How the selected layers are trained; the others are frozen."""

    embeddings: Part | None = None
    """How input embeddings are trained; null: with the language model, if it is trained in full in
    all its layers, else frozen."""

    head: Part | None = None
    """How the final norm and the output matrix are trained; null as for the embeddings."""

    keeps_adapter: bool = False
    """Also write what `lora` learned as `adapter/`, in PEFT's format, which engines can load beside
    the model that training started from."""

    parallelism: dict[str, Any] = strategy(
        "consomme.train.parallel:PARALLELISMS", default={"name": "ddp"}
    )
    """How the model is spread over the workers; see consomme/train/parallel.py."""

    num_steps: int = 100
    """Optimizer updates."""

    global_batch: int = 32
    """Samples per step over all workers."""

    lr: float = 5e-4
    """Peak learning rate of parts that have none of their own."""

    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after its peak."""

    warmup_fraction: float = 0.1
    """Share of the steps in which the learning rate grows to its peak, along a line."""

    final_lr_fraction: float = 0.1
    """Share of the peak that is left at the end; `constant` stays at the peak."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products; weights, gradients and optimizer stay float32."""

    activation_checkpointing: bool = runtime(False)
    """Work out each layer twice instead of remembering what it did: less memory, for one more
    forward pass."""

    weight_decay: float = 0.0
    """Decay of matrices."""

    max_grad_norm: float = 1.0
    """Gradients whose norm is larger are shortened to it."""

    max_loss_ratio: float | None = None
    """Take a step for diverged whose loss is so many times the median of the 64 before it; None
    takes only those whose loss or gradient is no number. Such a step moves nothing: the run goes
    back to its last checkpoint and on with other samples."""

    max_rollbacks: int = 3
    """Going back more often than this fails the run."""

    seed: int = 0
    """Order of the data, what is varied in it, and what adapters begin with."""

    shuffle_units: int = 8
    """Units, of at most 1,024 samples each, whose samples are shuffled together; a run that goes on
    from a checkpoint reads so many before its first step."""

    max_upscale: float = 1.0
    """Enlarge each picture by a factor between 1 and this, another one in every epoch (Idefics2,
    arXiv 2405.02246)."""

    neftune_alpha: float = 0.0
    """Add noise to the embeddings while training, uniform in ± alpha / sqrt(tokens x width), of
    which 5 to 15 are usual and 0 is none (NEFTune, arXiv 2310.05914)."""

    num_workers: int = 1
    """Ray Train workers; each takes its part of a step's samples. More workers add in another
    order: bits may vary."""

    max_reject_fraction: float = runtime(0.01)
    """More samples than this share that cannot be trained on fail the run."""

    checkpoint_every: int = runtime(50)
    """Steps between checkpoints; a killed run goes on from the last one."""

    micro_batch: int = runtime(32)
    """Samples per forward pass: as many as fit into memory."""

    pack_tokens: int | None = runtime(None)
    """Put as many samples of a step into one row as have so many tokens together, and one row
    through the model at a time, so nothing is padded; the loss stays the same. None gives each
    sample a row of its own, padded to the longest of `micro_batch`."""

    num_readers: int = runtime(2)
    """Tasks that read and check samples ahead, for each source; they claim no CPU."""

    cpus_per_worker: float = runtime(1.0)
    """CPUs a worker claims where there is no GPU."""

    @property
    def trainability(self) -> Trainability:
        """How each part is trained."""
        return Trainability(
            vision_encoder=self.vision_encoder,
            projector=self.projector,
            language_model=self.language_model,
            embeddings=self.embeddings,
            head=self.head,
        )


def run(recipe: TrainRecipe) -> Manifest:
    """Train; an interrupted run goes on from its last checkpoint when started again."""
    if not recipe.data:
        raise RecipeError("data: found no source, expected at least one {view: …} or {inputs: […]}")
    if recipe.global_batch < recipe.num_workers:
        raise RecipeError(
            f"global_batch={recipe.global_batch} is less than num_workers={recipe.num_workers}:"
            " some workers would have no sample in a step; raise it or take fewer workers"
        )
    for key, least in (("shuffle_units", 1), ("max_upscale", 1), ("num_readers", 1)):
        if getattr(recipe, key) < least:
            raise RecipeError(f"{key}: found {getattr(recipe, key)}, expected at least {least}")
    if recipe.pack_tokens is not None and recipe.pack_tokens < 1:
        raise RecipeError(f"pack_tokens: found {recipe.pack_tokens}, expected at least 1, or null")
    if recipe.keeps_adapter:
        _check_adapter(recipe.trainability)
    start = model_folder(recipe.model)
    inputs = {"model": model_content_hash(start)}
    parents, reads = [], [start]
    for number, source in enumerate(recipe.data):
        if (source.view is None) == (not source.inputs):
            raise RecipeError(f"data[{number}]: expected either view or inputs, not both, not none")
        if source.inputs:
            shards = find_shards(source.inputs)
            inputs[f"data {number}"] = shards_fingerprint(shards)
            reads += folders_of(shards)
        parents += [url for url in (source.view, source.captions) if url]
    if tuned := recipe.layers.get("tuned"):
        inputs["tuned"] = model_content_hash(model_folder(tuned))
        reads.append(model_folder(tuned))
    attempt = begin("train", recipe, inputs=inputs, parents=parents, reads=reads)
    if attempt.folder.is_done:
        return attempt.folder.manifest()
    with ray_session():
        result = _fit(recipe, start, attempt.folder)
    counts, peak = result.pop("counts"), result.pop("peak_bytes")
    curve = json.loads(attempt.folder.store.read(CURVE))
    with MetricsLog(attempt.folder.store, resume_step=0) as log:
        for point in curve:
            log.log("train/loss_nats", point["loss"], point["step"])
            log.log("train/step_s", point["seconds"], point["step"])
            log.log("train/grad_norm", point["grad_norm"], point["step"])
            log.log("train/learning_rate", point["lr"], point["step"])
    from consomme.pipelines.train_fit import utilization

    times = sorted(point["seconds"] for point in curve)
    tokens_per_s = sum(p["num_positions"] for p in curve) / sum(times)
    return attempt.finish(
        counts=counts,
        decisions=result,
        metrics={
            "train/first_loss_nats": curve[0]["loss"],
            "train/last_loss_nats": sum(p["loss"] for p in curve[-10:]) / len(curve[-10:]),
            "train/step_s": times[len(times) // 2],
            "train/peak_bytes": peak,
            "train/tokens_per_s": tokens_per_s,
        }
        | utilization(recipe, result["gpu_name"], result["flops_per_token"], tokens_per_s),
        outputs={"model": "model", "curve": CURVE, "rejects": "rejects"}
        | ({"adapter": "adapter"} if recipe.keeps_adapter else {}),
    )


def _check_adapter(parts: Trainability) -> None:
    """See to it that what was learned can be kept apart, before it is learned."""
    states = {
        name: part
        for name, part in parts.resolved(is_whole=False).items()
        if part.state != "frozen"
    }
    others = {name: part.state for name, part in states.items() if part.state != "lora"}
    shapes = {(part.rank, part.alpha) for part in states.values()}
    if not states or others or len(shapes) > 1:
        found = ", ".join(
            f"{name}: {part.state}" + (f" of rank {part.rank}" if part.has_adapters else "")
            for name, part in states.items()
        )
        raise RecipeError(
            f"keeps_adapter: an adapter is all that differs from the start only if every trained"
            f" part is lora, with one rank and alpha; found {found or 'nothing trained'}. Freeze"
            " the others, or take model/, which holds everything"
        )


def _fit(recipe: TrainRecipe, start: str, folder: RunFolder) -> dict[str, Any]:
    """Run the workers and return what rank 0 says of the run."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    from consomme.pipelines.train_fit import machine_of_cluster
    from consomme.pipelines.train_worker import train_worker
    from consomme.pipelines.trainer import Trainer

    gpus = int(ray.cluster_resources().get("GPU", 0))
    use_gpu = gpus >= recipe.num_workers
    if not use_gpu and recipe.num_workers * recipe.cpus_per_worker > num_cpus():
        raise ClusterError(
            f"num_workers={recipe.num_workers} needs {recipe.num_workers * recipe.cpus_per_worker}"
            f" CPUs, the cluster has {num_cpus()}; lower num_workers or cpus_per_worker"
        )
    machine = machine_of_cluster(use_gpu)
    made = _plan(recipe, start, folder, machine)
    trainer = Trainer(
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
        result = _in_thread(trainer.fit)
    summary: dict[str, Any] | ConsommeError = result.return_value
    if isinstance(summary, ConsommeError):
        raise summary
    return summary | {"flops_per_token": made.flops_per_token, "gpu_name": machine.gpu_name}


def _plan(recipe: TrainRecipe, start: str, folder: RunFolder, machine: Machine) -> Plan:
    """Work out what the run takes, tell it, and stop what cannot fit."""
    from consomme.pipelines import train_fit, train_plan

    made = train_plan.plan_of(recipe, start, machine)
    for line in (*train_plan.told(made), *made.notes):
        logger.info("train: %s", line)
    folder.store.write(PLAN, json.dumps(train_plan.as_json(made), indent=1).encode())
    train_fit.check(made, machine, recipe)
    return made


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
        is_told = False
        while True:
            ended = done.wait(2.0)
            if not is_told and folder.store.exists(TRAINABLE):
                is_told = True
                rows = json.loads(folder.store.read(TRAINABLE))
                for line in told(TrainableRow(**row) for row in rows):
                    logger.info("train: %s", line)
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


def told(rows: Iterable[TrainableRow]) -> list[str]:
    """Say what is trained, a line for each part, and one for all of it."""
    lines = summarise(rows)
    trained, every = (sum(getattr(x, k) for x in lines) for k in ("num_trained", "num_parameters"))
    return [
        *(
            f"{one.part}: {one.state}, {one.num_tensors} tensors, {one.num_trained:,} parameters"
            f" {'of' if one.state == 'full' else 'beside'} {one.num_parameters:,}, lr {one.lr:g}"
            if one.lr is not None
            else f"{one.part}: frozen, {one.num_parameters:,} parameters"
            for one in lines
            if one.num_parameters
        ),
        f"in all {trained:,} parameters are trained, {trained / every:.1%} of {every:,}",
    ]


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
    layers = recipe.layers
    if tuned := layers.get("tuned"):
        layers = layers | {"tuned": model_folder(tuned)}
    return dataclasses.replace(recipe, data=tuple(sources), layers=layers)
