"""The recipe of `score`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from consomme.base.bounds import Fraction, NonNegativeInt, PositiveInt
from consomme.base.checked import Checked, raised_problems, rule
from consomme.base.needs import Need
from consomme.base.schema import added, located, runtime
from consomme.curate.caption.prompt_pools import PromptPools
from consomme.curate.caption.prompts import placeholder_problems
from consomme.storage.options import StorageOptions
from consomme.storage.reading import Reading
from consomme.storage.shards import input_problems
from consomme.vision.guidance import Guidance, no_logits_problems


@dataclass(frozen=True, kw_only=True)
class ScoreRecipe(Checked):
    """Image-conditioned and text-only perplexity of every caption."""

    name: str
    """Name of the run."""

    model: str = located()
    """The VLM that scores: a folder, a run, a URL, `org/name[@revision]` on the hub, or
    `package://models/nano`, which is included."""

    inputs: tuple[str, ...] = located(())
    """Shards: files, folders, globs, brace ranges; local, `s3://` or `gs://`."""

    source: str = "data"
    """Name of the data set in `inputs`, used in references and unit ids."""

    sources: dict[str, list[str]] = located({})
    """More data sets: name -> inputs."""

    captions: str | None = located(None)
    """Folder of a finished recaption run over the same inputs: score its texts instead."""

    reading: Reading = added(Reading())
    """How the records of the inputs become samples: names of columns, where images lie, lists of
    captions, expected rejects."""

    root: str = runtime("runs")
    """Where run folders are created: a local path or a URL."""

    storage: StorageOptions = runtime(StorageOptions())
    """How patient the run is with its storage."""

    prompt: str = "describe the image."
    """User turn before the caption; context only, never scored."""

    prompts: dict[str, list[str]] = field(default_factory=dict)
    """Other prompts by type of text, `{ocr: [Transcribe the text.]}`; `pool:describe_en` stands for
    a built-in pool, see consomme/curate/caption/prompt_pools.py. Of several prompts, a sample's id
    selects one."""

    prompt_key: str = "text_type"
    """Key of `meta` that holds a sample's type of text."""

    template: dict[str, bool | int | str] = field(default_factory=dict)
    """Options of the model's chat template, such as `{enable_thinking: true}`; thinking is off if
    it is not named here."""

    labels: tuple[str, ...] = ()
    """Keys of `meta` to copy next to the scores, such as `noise`."""

    unit_rows: PositiveInt = 1024
    """Maximum number of samples per unit, which is what is retried, resumed and committed."""

    max_caption_tokens: PositiveInt = 256
    """Maximum number of caption tokens that are scored."""

    too_long: Literal["reject", "truncate"] = "reject"
    """What to do with longer captions: reject them as `caption_too_long`, or score their first
    tokens and set `is_truncated`."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights; `auto` is bfloat16 on a GPU. Logits are always float32."""

    engine: Literal["transformers", "vllm"] = "transformers"
    """`vllm` is for models too large for one GPU; it computes the same scores less efficiently."""

    tensor_parallel: PositiveInt = runtime(1)
    """GPUs per actor over which the weights are sharded; engine vllm only."""

    formula: Literal["exact", "points_script"] = "exact"
    """`points_script` rounds probabilities to bfloat16 before the logarithm, as the script released
    with POINTS does; see recipes/score/points_script.yaml."""

    guidance: Guidance | None = added(None)
    """Adds `guided_nll` and `guided_gain` (nats per token that guidance by regions saves, CRG,
    arXiv 2403.02325) and `is_guided`, whether a region was masked: how strongly, what is masked and
    where the boxes are from, see consomme/vision/guidance.py. The other columns stay as they are.
    None: no such columns."""

    max_reject_fraction: Fraction = runtime(0.01)
    """The run fails if more than this share of the samples is rejected; finished units are kept."""

    num_actors: PositiveInt | None = runtime(None)
    """Maximum number of scoring actors; None: as many as the GPUs hold, or one per CPU."""

    actors_per_gpu: PositiveInt = runtime(1)
    """Actors that share a GPU, each with the whole model; engine transformers only. Two can help
    with small models, for which an actor prepares images more slowly than the GPU encodes them."""

    min_actors: PositiveInt = runtime(1)
    """Minimum number of actors; the pool scales between the two with the work and the nodes."""

    num_readers: NonNegativeInt | None = runtime(None)
    """Tasks that read units ahead of the actors. More of them hide slow storage, and each holds a
    unit in memory. 0: actors read for themselves. None: 0 without GPUs, else one per actor."""

    token_budget: PositiveInt | None = runtime(None)
    """Padded tokens per micro-batch; None: 1,024 on a CPU and 16,384 on a GPU."""

    def needs(self, num_gpus: float) -> Iterator[Need]:
        """Yield what the run claims at least: the smallest pool of actors."""
        yield Need(
            key=f"min_actors={self.min_actors}",
            count=self.min_actors,
            cpus=0.8,
            gpus=1 / self.actors_per_gpu if num_gpus and self.tensor_parallel == 1 else 0.0,
        )
        if self.tensor_parallel > 1:
            yield Need(
                key=f"tensor_parallel={self.tensor_parallel}, min_actors={self.min_actors}",
                count=self.min_actors,
                gpus=self.tensor_parallel,
            )

    @rule
    def _inputs(self) -> Iterator[str]:
        yield from input_problems(self.inputs, self.source, self.sources)

    @rule
    def _prompts(self) -> Iterator[str]:
        yield from raised_problems(
            lambda: PromptPools.read(self.prompts, self.prompt_key, self.prompt)
        )

    @rule
    def _no_slots(self) -> Iterator[str]:
        yield from placeholder_problems(self.prompt, (), "prompt")
        for kind, texts in self.prompts.items():
            for text in texts:
                yield from placeholder_problems(text, (), f"prompts.{kind}")

    @rule
    def _guided_with_logits(self) -> Iterator[str]:
        yield from no_logits_problems(self.guidance, self.engine, "guidance")

    @rule
    def _vllm_options(self) -> Iterator[str]:
        if self.engine != "vllm":
            return
        defaults = {"formula": "exact", "dtype": "auto", "token_budget": None, "actors_per_gpu": 1}
        for name, default in defaults.items():
            if getattr(self, name) != default:
                yield (
                    f"{name}: found {getattr(self, name)}, but engine vllm decides this itself;"
                    " leave it out, or score with engine: transformers"
                )

    @rule
    def _transformers_options(self) -> Iterator[str]:
        if self.engine == "transformers" and self.tensor_parallel != 1:
            yield (
                f"tensor_parallel: found {self.tensor_parallel}, but engine transformers keeps a"
                " model on one GPU; set engine: vllm"
            )
