"""What a recipe of `score` may say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from consomme.base.schema import runtime


@dataclass(frozen=True, kw_only=True)
class ScoreRecipe:
    """Image-conditioned and text-only perplexity of every caption."""

    name: str
    """Name of the run."""

    model: str
    """The VLM that scores: a Hugging Face folder; `package://models/nano` is the one shipped."""

    inputs: tuple[str, ...] = ()
    """Shards: files, folders, globs, brace ranges; local, `s3://` or `gs://`."""

    source: str = "data"
    """Name of the data set behind `inputs`, in references and unit ids."""

    sources: dict[str, list[str]] = field(default_factory=dict)
    """More data sets, by name: inputs of each."""

    captions: str | None = None
    """Folder of a finished recaption run over the same inputs: score the texts it left instead."""

    root: str = runtime("runs")
    """Where run folders are made: a local path or a URL."""

    prompt: str = "describe the image."
    """What the user turn asks for; context only, never scored."""

    prompts: dict[str, list[str]] = field(default_factory=dict)
    """Other prompts by type of text, `{ocr: [Transcribe the text.]}`; `pool:describe_en` stands for
    a pool that ships, see curate/prompt_pools.py. Of several, a sample's id draws one."""

    prompt_key: str = "text_type"
    """Key of `meta` that says a sample's type of text."""

    labels: tuple[str, ...] = ()
    """Keys of `meta` to copy beside the scores, such as `noise`."""

    unit_rows: int = 1024
    """Most samples per unit: what is retried, resumed and committed."""

    max_caption_tokens: int = 256
    """How many tokens of the assistant's are scored at most."""

    too_long: Literal["reject", "truncate"] = "reject"
    """What happens to longer ones: a reject, `caption_too_long`, or a score of the first tokens,
    marked `is_truncated`."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the weights; `auto` is bfloat16 on a GPU. Logits are float32 always."""

    engine: Literal["transformers", "vllm"] = "transformers"
    """`vllm` is for models that are too large for one GPU: the same scores for more work."""

    tensor_parallel: int = runtime(1)
    """GPUs per actor that the weights are spread over; engine vllm only."""

    formula: Literal["exact", "points_script"] = "exact"
    """`points_script` rounds probabilities to bfloat16 before the logarithm, as the script that
    POINTS released does; see recipes/score/points_script.yaml."""

    max_reject_fraction: float = runtime(0.01)
    """More rejects than this share fail the run; nothing of it is lost."""

    num_actors: int | None = runtime(None)
    """Most scoring actors; None takes as many as the GPUs hold, or one per CPU."""

    actors_per_gpu: int = runtime(1)
    """Actors that share a GPU, each with the whole model; engine transformers only. Two may help
    small models, whose pictures take an actor longer to prepare than the GPU to look at."""

    min_actors: int = runtime(1)
    """Fewest; between the two the pool follows the work and the nodes there are."""

    num_readers: int | None = runtime(None)
    """Tasks that read units ahead of the actors; more hide slow storage, each costs a unit of
    memory. 0 lets actors read for themselves. None: 0 without GPUs, else one per actor."""

    token_budget: int | None = runtime(None)
    """Padded tokens per micro-batch; None takes 1,024 on a CPU and 16,384 on a GPU."""
