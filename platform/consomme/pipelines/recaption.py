"""Let a VLM write new captions for a view or for shards, with vLLM on a pool of actors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from consomme.base.errors import RecipeError
from consomme.base.manifest import Manifest
from consomme.base.schema import runtime
from consomme.datasets.sources import judge_caption
from consomme.evaluate.cache import model_content_hash
from consomme.pipelines.checkpoints import model_folder
from consomme.pipelines.flow import Pool, run_units
from consomme.pipelines.planning import plan_shards, plan_view
from consomme.pipelines.runs import begin, check_rejects, folders_of
from consomme.pipelines.session import ray_session
from consomme.pipelines.stage import Decoded, Outcome, UnitStage
from consomme.storage.shards import find_shards, shards_fingerprint
from consomme.storage.view import View


@dataclass(frozen=True, kw_only=True)
class RecaptionRecipe:
    """New captions as sidecar columns, with their provenance."""

    name: str
    """Name of the run."""

    model: str
    """The VLM that writes: a Hugging Face folder, a run folder, or `package://models/nano`."""

    view: str | None = None
    """Folder of a finished filter run whose samples get new captions."""

    inputs: tuple[str, ...] = ()
    """Shards to recaption whole; instead of `view`."""

    source: str = "data"
    """Name of the data set behind `inputs`, in references and unit ids."""

    sources: dict[str, list[str]] = field(default_factory=dict)
    """More data sets, by name: inputs of each."""

    root: str = runtime("runs")
    """Where run folders are made: a local path or a URL."""

    prompt: str = "plain"
    """Id of the prompt; see consomme/curate/prompts.py."""

    round: int = 1
    """Which round of recaptioning this is; goes into the provenance."""

    max_tokens: int = 96
    """Longest caption; a longer one is cut and flagged `model_output_truncated`."""

    temperature: float = 0.0
    """0 is greedy and repeatable; above, each sample has a seed of its own, from its id."""

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


class CaptionStage(UnitStage):
    """Write one caption per sample and say where it comes from; starts one vLLM per actor."""

    def __init__(self, recipe: RecaptionRecipe, model: str, model_hash: str) -> None:
        """Start the engine."""
        from consomme.curate.prompts import caption_prompt
        from consomme.engines.vllm_captioner import VLLMCaptioner
        from consomme.models.chat import rendered_prompt

        self.recipe, self.model_hash = recipe, model_hash
        self.prompt = caption_prompt(recipe.prompt)
        self.engine = VLLMCaptioner(
            model,
            max_tokens=recipe.max_tokens,
            temperature=recipe.temperature,
            seed=recipe.seed,
        )
        self.rendered = rendered_prompt(model, self.prompt.text)

    def work(self, samples: Sequence[Decoded]) -> Outcome:
        """Caption one unit."""
        from consomme.curate.guards import guard
        from consomme.curate.keep import hash_ids, mix_hash

        ids = [item.sample.sample_id for item in samples]
        seeds = (
            [int(value) % 2**31 for value in mix_hash(hash_ids(ids), self.recipe.seed)]
            if ids
            else []
        )
        written = self.engine.caption(
            [item.image for item in samples], [self.rendered] * len(ids), seeds
        )
        reasons = [guard(g.text, g.finish_reason, prompt=self.prompt.text) for g in written]
        size = len(ids)
        columns: dict[str, Any] = {
            "row": pa.array([item.row for item in samples], pa.int32()),
            "sample_id": pa.array(ids, pa.string()),
            "caption": pa.array([g.text.strip() for g in written], pa.string()),
            "parent_caption": pa.array([item.sample.caption for item in samples], pa.string()),
            "guard": pa.array(reasons, pa.string()),
            "num_tokens": pa.array([g.num_tokens for g in written], pa.int32()),
            "round": pa.array([self.recipe.round] * size, pa.int32()),
            "model_hash": pa.array([self.model_hash] * size, pa.string()),
            "prompt_id": pa.array([self.prompt.prompt_id] * size, pa.string()),
            "prompt_hash": pa.array([self.prompt.text_hash] * size, pa.string()),
            "temperature": pa.array([self.recipe.temperature] * size, pa.float32()),
            "seed": pa.array(seeds, pa.int64()),
            "engine": pa.array([self.engine.version] * size, pa.string()),
        }
        counts = {f"guard/{reason}": reasons.count(reason) for reason in set(reasons) if reason}
        return Outcome(
            table=pa.table(columns),
            rejects=[],
            counts=counts,
            sums={
                "num_tokens": sum(g.num_tokens for g in written),
                **_claims(samples, [g.text for g in written]),
            },
        )


def run(recipe: RecaptionRecipe) -> Manifest:
    """Write a caption for every sample exactly once; running again does what is missing."""
    has_shards = bool(recipe.inputs or recipe.sources)
    if (recipe.view is None) != has_shards:
        raise RecipeError("expected either view or inputs (or sources): found both, or neither")
    model = model_folder(recipe.model)
    model_hash = model_content_hash(model)
    inputs = {"model": model_hash}
    parents = [recipe.view] if recipe.view else []
    shards = find_shards(recipe.inputs, recipe.source, recipe.sources) if has_shards else []
    if shards:
        inputs["data"] = shards_fingerprint(shards)
    reads = [model, *folders_of(shards)]
    attempt = begin("recaption", recipe, inputs=inputs, parents=parents, reads=reads)
    folder = attempt.folder
    if folder.is_done:
        return folder.manifest()
    with ray_session():
        import ray

        gpus = int(ray.cluster_resources().get("GPU", 0))
        run_units(
            plan_view(folder, View.load(recipe.view))
            if recipe.view
            else plan_shards(folder, shards, recipe.unit_rows),
            folder,
            kind="captions",
            stage=CaptionStage,
            stage_options={"recipe": recipe, "model": model, "model_hash": model_hash},
            what="recaption",
            pool=Pool(
                max_actors=recipe.num_actors or max(1, gpus),
                min_actors=recipe.min_actors,
                num_readers=recipe.num_readers,
                gpus=1.0 if gpus else 0.0,
            ),
            max_reject_fraction=recipe.max_reject_fraction,
        )
    counts = attempt.folder.total_counts()
    check_rejects(counts, recipe.max_reject_fraction, attempt.folder.url)
    sums = attempt.folder.total_sums()
    judged = sums.pop("judged", 0.0)
    claims = {
        f"recaption/{key}_claims": value / judged
        for key, value in sums.items()
        if judged and key.startswith(("before_", "after_"))
    }
    return attempt.finish(
        counts=counts, metrics=claims, outputs={"captions": "data", "rejects": "rejects"}
    )


def _claims(samples: Sequence[Decoded], texts: Sequence[str]) -> dict[str, float]:
    """Add up true, false and missing claims before and after, where the truth is known."""
    sums: dict[str, float] = {}
    for item, text in zip(samples, texts, strict=True):
        before = judge_caption(item.sample, item.sample.caption)
        after = judge_caption(item.sample, text)
        if before is None or after is None:
            continue
        sums["judged"] = sums.get("judged", 0.0) + 1
        for when, verdict in (("before", before), ("after", after)):
            for what, number in zip(("true", "false", "missing"), verdict, strict=True):
                sums[f"{when}_{what}"] = sums.get(f"{when}_{what}", 0.0) + number
    return sums
