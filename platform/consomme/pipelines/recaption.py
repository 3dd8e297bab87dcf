"""Let a VLM write new captions for a view or for shards, on a pool of engines."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa

from consomme.base.errors import DataError, RecipeError
from consomme.base.manifest import Manifest
from consomme.base.schema import runtime, strategy
from consomme.curate.canary import Look, judge_canaries
from consomme.curate.guards import Guards, mass_identical, squeezed
from consomme.curate.keep import mix_hash
from consomme.curate.prompts import resolve_prompts
from consomme.engines.writing import Sampling
from consomme.evaluate.cache import model_content_hash
from consomme.pipelines.captions import CAPTIONS, check_units, planned_units, reader
from consomme.pipelines.checkpoints import model_folder
from consomme.pipelines.flow import Pool, run_units
from consomme.pipelines.planning import plan_shards, plan_view
from consomme.pipelines.runs import begin, check_rejects, folders_of
from consomme.pipelines.session import ray_session
from consomme.storage.ledger import RunFolder
from consomme.storage.shards import find_shards, shards_fingerprint
from consomme.storage.sidecar import ID_HASH, iter_columns
from consomme.storage.view import View

MOST_COMPARED = 1_000_000
"""Captions among which the most common ones are looked for; of more, that many by hash."""


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

    engine: dict[str, Any] = strategy("consomme.engines.writers:WRITERS", default={"name": "vllm"})
    """What runs the model: `vllm`, `transformers` or `openai`; see consomme/engines/writers.py."""

    prompts: tuple[str, ...] = ("plain",)
    """Ids of prompts, or of pools of them; a sample draws one. See consomme/curate/prompts.py."""

    merge: dict[str, Any] = strategy("consomme.curate.merges:MERGES", default={"name": "replace"})
    """What becomes of the old text; see consomme/curate/merges.py."""

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


def run(recipe: RecaptionRecipe) -> Manifest:
    """Write a caption for every sample exactly once; running again does what is missing."""
    from consomme.engines.writers import WRITERS

    has_shards = bool(recipe.inputs or recipe.sources)
    _check(recipe, has_shards)
    engine = WRITERS.build(recipe.engine, "engine")
    model, inputs = _writer(recipe.model, engine)
    parents = [url for url in (recipe.view, recipe.captions) if url]
    shards = find_shards(recipe.inputs, recipe.source, recipe.sources) if has_shards else []
    if shards:
        inputs["data"] = shards_fingerprint(shards)
    reads = folders_of(shards) if engine.is_remote else [model, *folders_of(shards)]
    attempt = begin("recaption", recipe, inputs=inputs, parents=parents, reads=reads)
    folder = attempt.folder
    if folder.is_done:
        return folder.manifest()
    with ray_session():
        from consomme.pipelines.caption_stage import CaptionStage

        plan = (
            plan_view(folder, View.load(recipe.view))
            if recipe.view
            else plan_shards(folder, shards, recipe.unit_rows)
        )
        check_units(recipe.captions, (u.unit_id for u in planned_units(folder, plan)))
        run_units(
            plan,
            folder,
            kind=CAPTIONS,
            stage=CaptionStage,
            stage_options={"recipe": recipe, "model": model, "model_hash": inputs["model"]},
            what="recaption",
            pool=_pool(recipe, engine),
            max_reject_fraction=recipe.max_reject_fraction,
            read=reader(recipe.captions),
            check=partial(check_canaries, folder.url, recipe.canary_max_same),
        )
    counts = folder.total_counts()
    check_rejects(counts, recipe.max_reject_fraction, folder.url)
    texts = texts_of(folder.url)
    return attempt.finish(
        counts=counts,
        metrics=metrics_of(counts, folder.total_sums(), texts),
        decisions={"most_common": most_common(texts)},
        outputs={CAPTIONS: "data", "rejects": "rejects"},
    )


def _check(recipe: RecaptionRecipe, has_shards: bool) -> None:
    """Refuse what contradicts itself, before Ray starts; all of it at once."""
    problems = []
    if (recipe.view is None) != has_shards:
        problems.append("expected either view or inputs (or sources): found both, or neither")
    for name in ("fraction", "canary_fraction", "canary_max_same"):
        value = getattr(recipe, name)
        if not 0 <= value <= 1:
            problems.append(f"{name}: found {value}, expected 0 to 1")
    if not recipe.fraction:
        problems.append("fraction: found 0, so nothing would be asked; expected more")
    try:
        sampling_of(recipe)
    except ValueError as error:
        problems.append(str(error))
    if problems:
        raise RecipeError.from_problems("recaption", problems)
    for prompt in resolve_prompts(recipe.prompts):
        if prompt.needs_written and recipe.captions is None:
            raise RecipeError(
                f"prompts: {prompt.prompt_id} is about two captions of one picture; name the run"
                " that wrote the second one, captions: RUN"
            )


def sampling_of(recipe: RecaptionRecipe) -> Sampling:
    """How tokens are chosen."""
    return Sampling(
        max_tokens=recipe.max_tokens, temperature=recipe.temperature, top_p=recipe.top_p
    )


def _writer(model: str, engine: Any) -> tuple[str, dict[str, str]]:
    """Find the model an engine runs, and what names its content."""
    if engine.is_remote:
        return model, {"model": f"{model} at {engine.url}"}
    folder = model_folder(model)
    marks = {"model": model_content_hash(folder)}
    if engine.adapter:
        marks["adapter"] = model_content_hash(engine.adapter)
        marks["model"] += "+" + marks["adapter"]
    return folder, marks


def _pool(recipe: RecaptionRecipe, engine: Any) -> Pool:
    """One engine per GPU, or group of GPUs; one where there is none."""
    import ray

    gpus = 0 if engine.is_remote else int(ray.cluster_resources().get("GPU", 0))
    each = engine.num_gpus if gpus else 0
    if gpus and gpus < each:
        raise RecipeError(f"engine.tensor_parallel: found {each}, but the cluster has {gpus} GPUs")
    return Pool(
        max_actors=recipe.num_actors or max(1, gpus // max(1, each)),
        min_actors=recipe.min_actors,
        num_readers=recipe.num_readers,
        gpus=float(each),
    )


def check_canaries(run_url: str, max_same: float, sums: Mapping[str, float]) -> None:
    """Stop a run in which nothing looks at the pictures.

    Both kinds of canary have to say so: pictures that are much alike rightly get the same text.

    Raises:
        DataError: It is certain; says what was seen and what to look at.
    """
    looks: tuple[Look, ...] = ("blank", "swap")
    verdicts = {
        how: judge_canaries(int(sums[f"canary_{how}"]), int(sums[f"canary_{how}_same"]), max_same)
        for how in looks
        if sums.get(f"canary_{how}")
    }
    if verdicts and all(verdict.is_blind for verdict in verdicts.values()):
        how, verdict = next(iter(verdicts.items()))
        raise DataError(f"{run_url}: {verdict.explain(how)}")


def texts_of(run_url: str) -> Counter[str]:
    """Count the texts of a run, without differences of case and white space.

    Args:
        run_url: The run; all its units are committed.
    """
    total = RunFolder.at(run_url).total_counts().get("samples", 0)
    share = min(1.0, MOST_COMPARED / max(total, 1))
    seen: Counter[str] = Counter()
    for _, table in iter_columns(run_url, ["written", ID_HASH], CAPTIONS, with_ids=False):
        among = mix_hash(table[ID_HASH].to_numpy(), 0) / 2.0**64 <= share
        texts = table["written"].filter(pa.array(among)).to_pylist()
        seen.update(squeezed(text) for text in texts if text is not None)
    return seen


def most_common(texts: Counter[str], number: int = 10) -> list[list[Any]]:
    """List the texts that were written more than once, most often first, and the share of each."""
    num = texts.total()
    return [[text, times / num] for text, times in texts.most_common(number) if times > 1]


def metrics_of(
    counts: Mapping[str, int], sums: Mapping[str, float], texts: Counter[str]
) -> dict[str, float]:
    """Say in figures what a run made of the samples it asked about.

    Words and claims are those of the text that stands now: the old one where a guard spoke.
    """
    asked = max(1, counts.get("asked", 0))
    mean = sums.get("words", 0.0) / asked
    variance = max(0.0, sums.get("words_squared", 0.0) / asked - mean**2)
    found = {
        "recaption/new_fraction": counts.get("new", 0) / asked,
        "recaption/words_per_caption": mean,
        "recaption/words_sd": math.sqrt(variance),
        "recaption/words_before": sums.get("words_before", 0.0) / asked,
        "recaption/mass_identical_fraction": sum(texts[text] for text in mass_identical(texts))
        / max(1, texts.total()),
    }
    if sums.get("judged"):
        found |= {
            f"recaption/{key}_claims": value / sums["judged"]
            for key, value in sums.items()
            if key.startswith(("before_", "after_"))
        }
    for how in ("blank", "swap"):
        if sums.get(f"canary_{how}"):
            share = sums[f"canary_{how}_same"] / sums[f"canary_{how}"]
            found[f"recaption/canary_{how}_same_fraction"] = share
    return found
