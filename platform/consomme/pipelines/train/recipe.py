"""What a recipe of `train` may say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from consomme.base.errors import RecipeError
from consomme.base.schema import runtime, strategy
from consomme.train.parts import FROZEN, FULL, Part, Trainability


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
class Evaluation:
    """What checkpoints are measured on, while training goes on."""

    data: tuple[TrainSource, ...] = ()
    """Samples that are not trained on; none measures nothing."""

    max_samples: int = 256
    """How many of them, equally many of each source, always the same."""

    cpus: float = 1.0
    """CPUs that it claims beside training."""

    gpus: float = 0.0
    """GPUs that it claims beside training."""


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

    save_adapter: bool = False
    """Also write what `lora` learned as `adapter/`, in PEFT's format, which engines can load beside
    the model that training started from."""

    parallelism: dict[str, Any] = strategy(
        "consomme.train.parallel.registry:PARALLELISMS", default={"name": "ddp"}
    )
    """How the model is sharded over the workers; see consomme/train/parallel/registry.py."""

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

    min_workers: int | None = runtime(None)
    """Start, and go on, with fewer workers than `num_workers` while the cluster has room for no
    more; None waits for all."""

    evaluation: Evaluation = field(default_factory=Evaluation)
    """The loss on other samples at each checkpoint, measured beside training."""

    export_checkpoint: Literal["last", "best"] = "last"
    """Which checkpoint becomes the model: the last one, or the one with the least loss in
    `evaluation`."""

    trackers: tuple[dict[str, Any], ...] = strategy(
        "consomme.pipelines.train.trackers:TRACKERS", default=()
    )
    """Where figures go while training goes on; see consomme/pipelines/train/trackers.py."""

    compile: Literal["inductor", "aot_eager"] | None = runtime(None)
    """Compile each layer of the language model with this backend of torch.compile; inductor needs a
    C++ compiler on CPUs."""

    max_reject_fraction: float = runtime(0.01)
    """More samples than this share that cannot be trained on fail the run."""

    checkpoint_every: int = runtime(50)
    """Steps between checkpoints; a killed run goes on from the last one."""

    keep_checkpoints: int = runtime(2)
    """Checkpoints that are kept: the last ones, or if they are evaluated the best and the last."""

    micro_batch: int = runtime(32)
    """Samples per forward pass: as many as fit into memory."""

    pack_tokens: int | None = runtime(None)
    """Put as many samples of a step into one row as have so many tokens together, and one row
    through the model at a time, so nothing is padded; the loss stays the same. None gives each
    sample a row of its own, padded to the longest of `micro_batch`."""

    num_readers: int | None = runtime(None)
    """Tasks that read and check samples ahead, for each source; they claim no CPU. None takes one
    for every four CPUs of the cluster, and one at least."""

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
