"""The recipe of `recaption`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from consomme.base.bounds import Fraction, NonNegativeInt, PositiveFraction, PositiveInt
from consomme.base.checked import Checked, raised_problems, rule
from consomme.base.needs import Need
from consomme.base.schema import added, located, runtime, strategy
from consomme.curate.caption.guards import Guards
from consomme.curate.caption.prompts import OwnPrompt, resolve_prompts
from consomme.engines.generation.requests import Sampling, Temperature
from consomme.storage.options import StorageOptions
from consomme.storage.reading import Reading
from consomme.storage.shards import input_problems
from consomme.vision.guidance import Guidance, no_logits_problems


@dataclass(frozen=True, kw_only=True)
class RecaptionRecipe(Checked):
    """New captions as sidecar columns, with their provenance."""

    name: str
    """Name of the run."""

    model: str = located()
    """Model that writes: a folder, a run, a URL, `org/name[@revision]` on the hub,
    `package://models/nano`; or, for the engine `openai`, the model's name at the endpoint."""

    view: str | None = located(None)
    """Folder of a finished filter run whose samples get new captions."""

    inputs: tuple[str, ...] = located(())
    """Shards to recaption in full, instead of `view`."""

    source: str = "data"
    """Name of the data set in `inputs`, used in references and unit ids."""

    sources: dict[str, list[str]] = located({})
    """More data sets: name -> inputs."""

    captions: str | None = located(None)
    """Folder of an earlier recaption run over the same samples, whose texts are the input of this
    run: to fuse them with the original captions, or to add a specialist's turns to them."""

    reading: Reading = added(Reading())
    """How the records of the inputs become samples: names of columns, where images lie, lists of
    captions, expected rejects."""

    root: str = runtime("runs")
    """Where run folders are created: a local path or a URL."""

    storage: StorageOptions = runtime(StorageOptions())
    """How patient the run is with its storage."""

    engine: dict[str, Any] = strategy(
        "consomme.engines.generation.registry:GENERATION_ENGINES", default={"name": "vllm"}
    )
    """What runs the model: `vllm`, `transformers` or `openai`; see
    consomme/engines/generation/registry.py."""

    prompts: tuple[str | OwnPrompt, ...] = ("plain",)
    """Ids of prompts or of prompt pools, and prompts in your own words, as {text: …}; one is drawn
    for each sample. See consomme/curate/caption/prompts.py."""

    template: dict[str, bool | int | str] = field(default_factory=dict)
    """Options of the model's chat template, such as `{enable_thinking: true}`; thinking is off if
    it is not named here. A server is sent them only if they are named."""

    merge: dict[str, Any] = strategy(
        "consomme.curate.caption.merges:MERGES", default={"name": "replace"}
    )
    """How the new text is merged with the old one; see consomme/curate/caption/merges.py."""

    truth: dict[str, Any] = strategy(
        "consomme.datasets.truth:CAPTION_TRUTHS", default={"name": "none"}
    )
    """What captions are checked against, claim by claim, where the truth about the images is known;
    see consomme/datasets/truth.py."""

    caption_question: str = "describe the image."
    """The question that the caption answers, for merges that add turns."""

    shows_picture: bool = True
    """False prompts with the texts alone, as CapFusion does to fuse two captions."""

    guidance: Guidance | None = added(None)
    """Guides the model by regions of the images, as in CRG (arXiv 2403.02325): how strongly, what
    is masked, and where the boxes are from (what the old caption names, for a detector); see
    consomme/vision/guidance.py. Canaries are written without it. None: not guided."""

    images: Literal["all", "first", "each"] = added("all")
    """What the model is shown of a sample with several images: `all` of them, before the prompt;
    the `first`; or `each` alone, for a text about each. In a document these stand beside their
    images; elsewhere they are joined by line breaks."""

    text_only: Literal["keep", "write"] = added("keep")
    """Samples without an image: `keep` leaves them as they are, and counts them; `write` prompts
    with the text alone."""

    fraction: PositiveFraction = 1.0
    """Share of the samples to recaption, chosen by their ids; the others keep their text."""

    guards: Guards = field(default_factory=Guards)
    """Checks of the new text; a sample whose text fails one keeps its old text."""

    canary_fraction: Fraction = 0.02
    """Share of the samples that are also captioned with a blank image and with another sample's."""

    canary_max_same: Fraction = 0.8
    """The run stops when, with high confidence, more than this share of canaries have the same
    caption whatever image is shown: then the model ignores the images."""

    round: PositiveInt = 1
    """Number of this round of recaptioning, stored in the provenance."""

    max_tokens: PositiveInt = 96
    """Maximum length of a text; a longer one is cut and flagged `model_output_truncated`."""

    temperature: Temperature = 0.0
    """0 is greedy and deterministic; above 0, each sample has its own seed, from its id."""

    top_p: PositiveFraction = 1.0
    """Nucleus sampling: share of the probability mass to sample from; 1 keeps all of it."""

    seed: int = 0
    """Seed that is combined with each sample's id."""

    unit_rows: PositiveInt = 512
    """Maximum number of samples per unit, for `inputs`."""

    max_reject_fraction: Fraction = runtime(0.01)
    """The run fails if more than this share of the samples is rejected; finished units are kept."""

    num_actors: PositiveInt | None = runtime(None)
    """Maximum number of engines; None: one per GPU, or one if there is none."""

    min_actors: PositiveInt = runtime(1)
    """Minimum number of actors; the pool scales between the two with the work and the nodes."""

    num_readers: NonNegativeInt | None = runtime(None)
    """Tasks that read units ahead of the actors. More of them hide slow storage, and each holds a
    unit in memory. 0: actors read for themselves. None: 0 without GPUs, else one per actor."""

    def needs(self, num_gpus: float) -> Iterator[Need]:
        """Yield what the run claims at least: the smallest pool of engines."""
        each = float(self.engine.get("tensor_parallel") or 1)
        is_remote = self.engine.get("name") == "openai"
        yield Need(
            key=f"min_actors={self.min_actors}",
            count=self.min_actors,
            cpus=1.0,
            gpus=1.0 if num_gpus and each == 1 and not is_remote else 0.0,
        )
        if each > 1:
            key = f"engine.tensor_parallel={each:g}, min_actors={self.min_actors}"
            yield Need(key=key, count=self.min_actors, gpus=each)

    @rule
    def _view_or_inputs(self) -> Iterator[str]:
        has_shards = bool(self.inputs or self.sources)
        if (self.view is None) != has_shards:
            yield "expected either view or inputs (or sources): found both, or neither"
        if has_shards:
            yield from input_problems(self.inputs, self.source, self.sources)
        else:
            yield from self.reading.beside_a_view()

    @rule
    def _shows_what_it_names(self) -> Iterator[str]:
        if not self.shows_picture and self.images != "all":
            yield f"images: found {self.images}, but shows_picture is false, so none is shown"

    @rule
    def _guided_with_logits(self) -> Iterator[str]:
        yield from no_logits_problems(self.guidance, str(self.engine.get("name")), "guidance")
        if self.guidance is not None and not self.shows_picture:
            yield "guidance: found one, but shows_picture is false, so there is nothing to mask"

    @rule
    def _known_prompts(self) -> Iterator[str]:
        yield from raised_problems(lambda: resolve_prompts(self.prompts))

    @rule
    def _fusion_needs_captions(self) -> Iterator[str]:
        if self.captions is not None or any(raised_problems(lambda: resolve_prompts(self.prompts))):
            return
        for prompt in resolve_prompts(self.prompts):
            if prompt.needs_written:
                yield (
                    f"prompts: {prompt.prompt_id} is about two captions of one image; name the run"
                    " that wrote the second one, captions: RUN"
                )


def sampling_of(recipe: RecaptionRecipe) -> Sampling:
    """Return how tokens are sampled."""
    return Sampling(
        max_tokens=recipe.max_tokens, temperature=recipe.temperature, top_p=recipe.top_p
    )
