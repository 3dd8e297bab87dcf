"""What a recipe of `recaption` may say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from consomme.base.schema import runtime, strategy
from consomme.curate.caption.guards import Guards
from consomme.engines.generation.requests import Sampling


@dataclass(frozen=True, kw_only=True)
class RecaptionRecipe:
    """New captions as sidecar columns, with their provenance."""

    name: str
    """Name of the run."""

    model: str
    """What writes: a Hugging Face folder, a run folder, `package://models/nano`; or, for the engine
    `openai`, the model's name at the endpoint."""

    view: str | None = None
    """Folder of a finished filter run whose samples get new captions."""

    inputs: tuple[str, ...] = ()
    """Shards to recaption whole; instead of `view`."""

    source: str = "data"
    """Name of the data set behind `inputs`, in references and unit ids."""

    sources: dict[str, list[str]] = field(default_factory=dict)
    """More data sets, by name: inputs of each."""

    captions: str | None = None
    """Folder of an earlier recaption run over the same samples, whose texts this one starts from:
    to fuse them with the original ones, or to add a specialist's turns to them."""

    root: str = runtime("runs")
    """Where run folders are made: a local path or a URL."""

    engine: dict[str, Any] = strategy(
        "consomme.engines.generation.registry:GENERATION_ENGINES", default={"name": "vllm"}
    )
    """What runs the model: `vllm`, `transformers` or `openai`; see
    consomme/engines/generation/registry.py."""

    prompts: tuple[str, ...] = ("plain",)
    """Ids of prompts, or of pools of them; a sample draws one. See
    consomme/curate/caption/prompts.py."""

    merge: dict[str, Any] = strategy(
        "consomme.curate.caption.merges:MERGES", default={"name": "replace"}
    )
    """What becomes of the old text; see consomme/curate/caption/merges.py."""

    caption_question: str = "describe the image."
    """What a caption answers, where turns are added to it."""

    shows_picture: bool = True
    """False asks about the texts alone, as CapFusion does when it fuses two captions."""

    fraction: float = 1.0
    """Share of the samples that are asked, drawn by their ids; the others keep their text."""

    guards: Guards = field(default_factory=Guards)
    """When a text is not believed; the sample then keeps the one it had."""

    canary_fraction: float = 0.02
    """Share of the samples that are also captioned with a blank picture and with another one's."""

    canary_max_same: float = 0.8
    """The run stops when it is certain that more than this share of canaries say the same whatever
    they are shown: then nothing looks at the pictures."""

    round: int = 1
    """Which round of recaptioning this is; goes into the provenance."""

    max_tokens: int = 96
    """Longest text; a longer one is cut and flagged `model_output_truncated`."""

    temperature: float = 0.0
    """0 is greedy and repeatable; above, each sample has a seed of its own, from its id."""

    top_p: float = 1.0
    """Nucleus of the sampled distribution; 1 keeps all of it."""

    seed: int = 0
    """Seed that is mixed with each sample's id."""

    unit_rows: int = 512
    """Most samples per unit, for `inputs`."""

    max_reject_fraction: float = runtime(0.01)
    """More rejects than this share fail the run; nothing of it is lost."""

    num_actors: int | None = runtime(None)
    """Most engines; None takes one per GPU, or one where there is none."""

    min_actors: int = runtime(1)
    """Fewest; between the two the pool follows the work and the nodes there are."""

    num_readers: int | None = runtime(None)
    """Tasks that read units ahead of the actors; more hide slow storage, each costs a unit of
    memory. 0 lets actors read for themselves. None: 0 without GPUs, else one per actor."""


def sampling_of(recipe: RecaptionRecipe) -> Sampling:
    """How tokens are chosen."""
    return Sampling(
        max_tokens=recipe.max_tokens, temperature=recipe.temperature, top_p=recipe.top_p
    )
