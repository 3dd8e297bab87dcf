"""The recipe of `train`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from annotated_types import Interval

from consomme.base.bounds import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
)
from consomme.base.checked import Checked, rule
from consomme.base.needs import Need
from consomme.base.schema import added, located, own_modules, registry_of, runtime, strategy
from consomme.base.suggest import did_you_mean
from consomme.evaluate.guards import Guard
from consomme.evaluate.names import benchmark_name
from consomme.storage.options import StorageOptions
from consomme.storage.reading import Reading
from consomme.train.parts import FROZEN, FULL, NAMEABLE_PARTS, Part, Trainability


@dataclass(frozen=True, kw_only=True)
class TrainSource(Checked):
    """One source of training data: a view or shards, optionally with newer captions."""

    view: str | None = located(None)
    """Folder of a finished filter run."""

    inputs: tuple[str, ...] = located(())
    """Shards to use in full, instead of `view`."""

    reading: Reading = added(Reading())
    """How the records of `inputs` become samples: names of columns, where images lie, lists of
    captions, expected rejects."""

    captions: str | None = located(None)
    """Folder of a finished recaption run. Samples that have a new caption there are trained on
    it; the others keep their own text."""

    only_recaptioned: bool = False
    """Leave out samples that have no new caption in `captions`."""

    fraction: PositiveFraction = 1.0
    """Share of the samples to use, in (0, 1]. Samples are chosen by a hash of their ids, so the
    choice is reproducible, a smaller share is part of a larger one, and counts are approximate."""

    weight: PositiveFloat | None = None
    """Share of the training relative to the other sources, of samples or of answers, as `shares`
    of the recipe says; None weighs by number of samples."""

    shuffle_turns: bool = False
    """Shuffle the questions of a sample anew in every epoch. Only for samples whose questions do
    not depend on each other."""

    @rule
    def _view_or_inputs(self) -> Iterator[str]:
        if (self.view is None) == (not self.inputs):
            yield "expected either view or inputs, not both, not none"
        if self.view is not None:
            yield from self.reading.beside_a_view()


@dataclass(frozen=True, kw_only=True)
class Evaluation(Checked):
    """How checkpoints are measured while training continues: loss, a benchmark, and guards."""

    data: tuple[TrainSource, ...] = ()
    """Held-out samples whose loss is measured; none measures no loss."""

    max_samples: PositiveInt = 256
    """Maximum number of samples, the same number from each source; always the same samples."""

    benchmark: dict[str, Any] | None = strategy(
        "consomme.evaluate.benchmarks:BENCHMARKS", default=None, was_added=True
    )
    """Benchmark that checkpoints, as they would be exported, and the model that training starts
    from answer. With `export_checkpoint: best` its main figure chooses, instead of the loss;
    `weighted` takes several."""

    guards: tuple[Guard, ...] = added(())
    """Benchmarks, such as one of texts alone, on which a checkpoint may be only so much worse than
    the model that training starts from; with `export_checkpoint: best` those that lose more are not
    chosen, with `last` the last one is judged."""

    every_steps: PositiveInt | None = added(None)
    """Steps between evaluations, for each of which a checkpoint is saved; None: evaluate each
    checkpoint. The last step is always evaluated."""

    at_steps: tuple[PositiveInt, ...] = added(())
    """Evaluate at these steps, and at the last one, instead of `every_steps`."""

    report: tuple[dict[str, Any], ...] = strategy(
        "consomme.evaluate.benchmarks:BENCHMARKS", default=(), was_added=True
    )
    """Benchmarks that report the exported model and choose nothing; their questions must not be
    among those of `benchmark`."""

    reports_what_it_chose_by: bool = runtime(False)
    """Allow `report` to have questions of `benchmark`."""

    cpus: NonNegativeFloat = 1.0
    """CPUs claimed for evaluation, in addition to those of training."""

    gpus: NonNegativeFloat = 0.0
    """GPUs claimed for evaluation, in addition to those of training."""

    @property
    def is_wanted(self) -> bool:
        """Whether checkpoints are evaluated at all."""
        return bool(self.data or self.asks)

    @property
    def asks(self) -> bool:
        """Whether checkpoints answer benchmarks."""
        return self.benchmark is not None or bool(self.guards)

    @property
    def has_own_steps(self) -> bool:
        """Whether the recipe says at which steps; otherwise every checkpoint is evaluated."""
        return self.every_steps is not None or bool(self.at_steps)

    def is_due(self, step: int, num_steps: int) -> bool:
        """Whether the recipe names a step of a run of `num_steps`."""
        if not self.is_wanted or not self.has_own_steps:
            return False
        is_named = step in self.at_steps or bool(self.every_steps and step % self.every_steps == 0)
        return is_named or step == num_steps

    @rule
    def _steps_of_something(self) -> Iterator[str]:
        if self.every_steps is not None and self.at_steps:
            yield "every_steps, at_steps: found both; choose one"
        if self.has_own_steps and not self.is_wanted:
            yield "every_steps, at_steps: found one, but no data, benchmark or guards to measure"

    @rule
    def _guards_have_names(self) -> Iterator[str]:
        names = [benchmark_name(guard.benchmark) for guard in self.guards]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"guards: two are called {name}; give one a label"


@dataclass(frozen=True, kw_only=True)
class TrainRecipe(Checked):
    """Fine-tuning from a checkpoint."""

    name: str
    """Name of the run."""

    model: str = located()
    """Model to start from: a folder, a run, a URL, `org/name[@revision]` on the hub, or
    `package://models/nano`."""

    data: tuple[TrainSource, ...]
    """What to train on."""

    root: str = runtime("runs")
    """Where run folders are created: a local path or a URL."""

    storage: StorageOptions = runtime(StorageOptions())
    """How patient the run is with its storage."""

    prompt: str = "describe the image."
    """User turn placed before samples that have a caption only."""

    shares: Literal["samples", "answer_tokens"] = added("samples")
    """What the sources' weights share out: `samples` of each step, or `answer_tokens`: labelled
    tokens over the run, so that a source of long answers is drawn from less often."""

    max_tokens: PositiveInt | None = added(None)
    """Longest sample in tokens, images included; None: as many as the model has positions."""

    too_long: Literal["reject", "drop_turns", "cut_document", "shorten"] = added("reject")
    """What becomes of a longer sample: `reject` leaves it out; with `drop_turns` a conversation
    loses its last questions with their answers and images; with `cut_document` a document loses its
    last images, each with the text after it; `shorten` does both. What is too long even then is
    rejected. An image's tokens are never cut."""

    min_pixels: PositiveInt | None = added(None)
    """Enlarge smaller images to this many pixels, before the model's own processor resizes them as
    it does; None enlarges none."""

    max_pixels: PositiveInt | None = added(None)
    """Reduce larger images to this many pixels, before the model's own processor resizes them as it
    does; None reduces none. Fewer pixels are fewer image tokens in families whose images take as
    many as their size asks for."""

    template: dict[str, bool | int | str] = field(default_factory=dict)
    """Options of the model's chat template, such as `{enable_thinking: true}`; thinking is off if
    it is not named here."""

    layers: dict[str, Any] = strategy(
        "consomme.train.layers:LAYER_SELECTORS", default={"name": "all"}
    )
    """Which layers of the language model are trained; see consomme/train/layers.py."""

    vision_encoder: Part = FROZEN
    """How the vision encoder is trained; `state` is frozen, lora, dora or full."""

    projector: Part = FULL
    """How the projector is trained."""

    language_model: Part = FULL
    """How the selected layers are trained; the other layers are frozen."""

    embeddings: Part | None = None
    """How input embeddings are trained. null: in full if the language model is trained in full in
    all its layers, else frozen."""

    head: Part | None = None
    """How the final norm and the output matrix are trained; null as for the embeddings."""

    parts: dict[str, tuple[str, ...] | str] = field(default_factory=dict)
    """Modules of the model by part, where its own code does not show which is which:
    `{vision_encoder: model.vision_tower, projector: [model.merger, model.newline]}`. Parts are
    vision_encoder, projector, embeddings, head, audio_encoder, video_encoder and other; the last
    three stay frozen. Modules that are not named are assigned as without this key."""

    save_adapter: bool = False
    """Also write the LoRA weights as `adapter/`, in PEFT's format, which engines can load on top of
    the model that training started from."""

    parallelism: dict[str, Any] = strategy(
        "consomme.train.parallel.registry:PARALLELISMS", default={"name": "ddp"}
    )
    """How the model is sharded over the workers; see consomme/train/parallel/registry.py."""

    num_steps: PositiveInt = 100
    """Optimizer updates."""

    global_batch: PositiveInt = 32
    """Samples per step over all workers."""

    lr: NonNegativeFloat = 5e-4
    """Peak learning rate of parts that do not set their own."""

    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate decays after its peak."""

    warmup_fraction: Fraction = 0.1
    """Share of the steps over which the learning rate rises linearly to its peak."""

    final_lr_fraction: Fraction = 0.1
    """Final learning rate as a share of the peak; ignored by `constant`."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of matrix products; weights, gradients and optimizer state stay float32."""

    activation_checkpointing: bool = runtime(False)
    """Recompute the activations of each layer in the backward pass: less memory for one more
    forward pass."""

    weight_decay: NonNegativeFloat = 0.0
    """Weight decay of matrices."""

    max_grad_norm: PositiveFloat = 1.0
    """Gradients with a larger norm are scaled down to this norm."""

    max_loss_ratio: PositiveFloat | None = None
    """A step has diverged if its loss exceeds this multiple of the median of the 64 losses before
    it; None counts only a loss or gradient that is not finite. A diverged step changes no weights:
    the run returns to its last checkpoint and continues with other samples."""

    max_rollbacks: NonNegativeInt = 3
    """The run fails if it returns to a checkpoint more often than this."""

    seed: int = 0
    """Seed of the data order, of augmentation, and of the initial adapter weights."""

    shuffle_units: PositiveInt = 8
    """Number of units, of at most 1,024 samples each, whose samples are shuffled together. A run
    that resumes from a checkpoint reads this many units before its first step."""

    max_upscale: Annotated[float, Interval(ge=1)] = 1.0
    """Enlarge each image by a random factor between 1 and this, drawn anew in every epoch
    (Idefics2, arXiv 2405.02246)."""

    split_fraction: Fraction | None = added(None)
    """Share of the samples whose images are split into four and the whole, by a hash of the
    sample's id and the seed: half of them are enough (Idefics2, arXiv 2405.02246). For processors
    that can be told: those with the tiling `split`, and of Idefics2, Idefics3 and SmolVLM. None: as
    the processor's own settings say. What is evaluated is split as the processor does."""

    neftune_alpha: NonNegativeFloat = 0.0
    """Add noise to the embeddings in training, uniform in ± alpha / sqrt(tokens x width). 5 to 15
    are usual, 0 adds none (NEFTune, arXiv 2310.05914)."""

    num_workers: PositiveInt = 1
    """Ray Train workers; each processes its part of a step's samples. The number of workers changes
    the order of summation, so results may differ in the last bits."""

    min_workers: PositiveInt | None = runtime(None)
    """Start, and continue, with fewer workers than `num_workers`, but at least this many, while the
    cluster has no room for more; None waits for all."""

    modules: tuple[str, ...] = own_modules()
    """Python files of yours that register benchmarks or metrics: paths from the current directory,
    or beside the recipe. Their text goes to workers; what they import has to be installed there."""

    evaluation: Evaluation = field(default_factory=Evaluation)
    """Loss on held-out samples at each checkpoint, measured while training continues."""

    export_checkpoint: Literal["last", "best"] = "last"
    """Which checkpoint becomes the model: the last one, or the best one in `evaluation`: the one
    with the highest main figure of its `benchmark`, else the one with the lowest loss."""

    export_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of the exported weights; auto takes that of the model that training starts from.
    Weights stay float32 while they are trained, and evaluated as they would be exported."""

    trackers: tuple[dict[str, Any], ...] = strategy(
        "consomme.pipelines.train.trackers:TRACKERS", default=()
    )
    """Where metrics are sent during training; see consomme/pipelines/train/trackers.py."""

    compile: Literal["inductor", "aot_eager"] | None = runtime(None)
    """Compile each layer of the language model with this backend of torch.compile; inductor needs a
    C++ compiler on CPUs."""

    max_reject_fraction: Fraction = runtime(0.01)
    """The run fails if more than this share of the samples cannot be trained on."""

    checkpoint_every: PositiveInt = runtime(50)
    """Steps between checkpoints; a killed run resumes from the last one."""

    keep_checkpoints: PositiveInt = runtime(2)
    """Number of checkpoints to keep: the last ones or, with `evaluation`, the best and the last."""

    micro_batch: PositiveInt = runtime(32)
    """Samples per forward pass: as many as fit into memory."""

    pack_tokens: PositiveInt | None = runtime(None)
    """Pack samples of a step into rows of at most this many tokens, and run one row at a time
    through the model, without padding; the loss stays the same. None gives each sample a row of its
    own, padded to the longest of `micro_batch`."""

    num_readers: PositiveInt | None = runtime(None)
    """Tasks per source that read and check samples ahead; they claim no CPU. None: one for every
    four CPUs of the cluster, at least one."""

    cpus_per_worker: PositiveFloat = runtime(1.0)
    """CPUs that a worker claims if there is no GPU."""

    def needs(self, num_gpus: float) -> Iterator[Need]:
        """Yield what the run claims at least: the fewest workers, and room for the evaluation."""
        count = self.min_workers or self.num_workers
        name = "min_workers" if self.min_workers else "num_workers"
        if num_gpus >= count:
            yield Need(key=f"{name}={count}", count=count, cpus=1.0, gpus=1.0)
        else:
            key = f"{name}={count}, cpus_per_worker={self.cpus_per_worker:g}"
            yield Need(key=key, count=count, cpus=self.cpus_per_worker)
        if self.evaluation.is_wanted:
            yield Need(
                key=f"evaluation.cpus={self.evaluation.cpus:g},"
                f" evaluation.gpus={self.evaluation.gpus:g}",
                cpus=self.evaluation.cpus,
                gpus=self.evaluation.gpus,
            )

    @property
    def trainability(self) -> Trainability:
        """How each part is trained."""
        return Trainability(
            vision_encoder=self.vision_encoder,
            projector=self.projector,
            language_model=self.language_model,
            embeddings=self.embeddings,
            head=self.head,
            modules={
                part: (paths,) if isinstance(paths, str) else tuple(paths)
                for part, paths in self.parts.items()
            },
        )

    @rule
    def _has_data(self) -> Iterator[str]:
        if not self.data:
            yield "data: found no source, expected at least one {view: …} or {inputs: […]}"

    @rule
    def _weights_of_answers(self) -> Iterator[str]:
        missing = [n for n, source in enumerate(self.data) if source.weight is None]
        if self.shares == "answer_tokens" and len(self.data) > 1 and missing:
            yield (
                f"shares: found answer_tokens, but data[{missing[0]}] has no weight; how many"
                " tokens a source has is not known before it is read, so give each source a weight"
            )

    @rule
    def _pixel_limits(self) -> Iterator[str]:
        low, high = self.min_pixels, self.max_pixels
        if low is not None and high is not None and low > high:
            yield f"min_pixels: found {low}, expected at most max_pixels={high}"

    @rule
    def _known_parts(self) -> Iterator[str]:
        for part in self.parts:
            if part not in NAMEABLE_PARTS:
                yield (
                    f"parts: found {part}, expected {', '.join(NAMEABLE_PARTS)}"
                    f"{did_you_mean(part, NAMEABLE_PARTS)}"
                )

    @rule
    def _batch_for_every_worker(self) -> Iterator[str]:
        if self.global_batch < self.num_workers:
            yield (
                f"global_batch={self.global_batch} is less than num_workers={self.num_workers}:"
                " some workers would have no sample in a step; increase it or use fewer workers"
            )

    @rule
    def _worker_range(self) -> Iterator[str]:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            yield (
                f"min_workers: found {self.min_workers}, expected 1 to num_workers"
                f"={self.num_workers}, or null"
            )

    @rule
    def _best_needs_evaluation(self) -> Iterator[str]:
        can_compare = self.evaluation.data or self.evaluation.benchmark is not None
        if self.export_checkpoint == "best" and not can_compare:
            yield (
                "export_checkpoint: found best, but evaluation has neither data nor a benchmark, so"
                " no checkpoint is better than another; name some, or set export_checkpoint=last"
            )

    @rule
    def _steps_of_the_run(self) -> Iterator[str]:
        late = [step for step in self.evaluation.at_steps if step > self.num_steps]
        if late:
            yield f"evaluation.at_steps: found {late[0]}, but the run has {self.num_steps} steps"

    @rule
    def _rotation(self) -> Iterator[str]:
        selector = self._strategy("layers", self.layers)
        if selector is None or not selector.is_rotating:
            return
        if self.language_model.state != "full":
            yield (
                f"language_model.state is {self.language_model.state}, but rotating layers are"
                " trained in full; set language_model.state=full, or use another layer selector"
            )
        parallelism = self._strategy("parallelism", self.parallelism)
        if parallelism is not None and not parallelism.can_rotate:
            yield (
                f"layers: {self.parallelism['name']} fixes the trained parameters at the start, so"
                " layers cannot rotate; expected parallelism={name: ddp} or {name: fsdp2}"
            )

    def _strategy(self, name: str, node: dict[str, Any]) -> Any:
        """Build the strategy of a field; None if the node is wrong, which is reported elsewhere."""
        (field_,) = (one for one in fields(self) if one.name == name)
        registry = registry_of(field_)
        return registry.parse(node, name)[0] if registry else None

    @rule
    def _adapter_holds_all_changes(self) -> Iterator[str]:
        trained = {
            name: part
            for name, part in self.trainability.resolved(is_whole=False).items()
            if part.state != "frozen"
        }
        shapes = {(part.rank, part.alpha) for part in trained.values()}
        is_one_lora = len(shapes) == 1 and all(part.state == "lora" for part in trained.values())
        if self.save_adapter and not is_one_lora:
            found = ", ".join(
                f"{name}: {part.state}" + (f" of rank {part.rank}" if part.has_adapters else "")
                for name, part in trained.items()
            )
            yield (
                "save_adapter: an adapter holds all changes only if every trained part is lora,"
                f" with one rank and alpha; found {found or 'nothing trained'}. Freeze the others,"
                " or use model/, which holds everything"
            )
