"""Score captions by perplexity and image gain, on a pool of actors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from consomme.base.errors import RecipeError
from consomme.base.manifest import Manifest
from consomme.curate.caption.prompt_pools import PromptPools
from consomme.curate.caption.prompts import prompt_id_of
from consomme.execution.driver import run_job
from consomme.execution.job import ActorPool, Job
from consomme.execution.planning import plan_shards
from consomme.execution.rejects import check_rejects
from consomme.execution.runs import Run, folders_of, once
from consomme.execution.session import num_cpus, ray_session
from consomme.pipelines.score.recipe import ScoreRecipe
from consomme.pipelines.score.stage import TEXT_ONLY, PerplexityStage
from consomme.storage.captions import check_units, planned_units, unit_reader
from consomme.storage.identity import data_fingerprints, find_data
from consomme.storage.model_folder import model_hash, portable_path
from consomme.storage.shards import Shard
from consomme.vision.guidance import guidance_inputs, with_portable_models


@dataclass(frozen=True, kw_only=True)
class ScoreInputs:
    """The resolved inputs of a score recipe."""

    shards: Sequence[Shard]
    model: str
    """Where any node finds the model; see `portable_path`."""

    model_hash: str


def run(recipe: ScoreRecipe) -> Manifest:
    """Score every sample of the inputs exactly once; running again does what is missing."""
    return once(open_run, recipe, _score)


def open_run(recipe: ScoreRecipe) -> Run[ScoreInputs]:
    """Resolve the inputs of a recipe; writes nothing."""
    shards = find_data(recipe.inputs, recipe.source, recipe.sources)
    model = portable_path(recipe.model)
    data = data_fingerprints(shards, recipe.root, image_root=recipe.reading.image_root)
    marks = {**data, "model": model_hash(model), **guidance_inputs(recipe.guidance, "guidance")}
    return Run.open(
        "score",
        recipe,
        ScoreInputs(shards=shards, model=model, model_hash=marks["model"]),
        inputs=marks,
        runs={"captions": recipe.captions},
        data_of=[recipe.captions],
        reads=[*folders_of(shards), model],
    )


def _score(run: Run[ScoreInputs]) -> Manifest:
    recipe = run.recipe
    with ray_session():
        plan = plan_shards(
            run.folder, run.resolved.shards, recipe.unit_rows, reading=recipe.reading
        )
        check_units(recipe.captions, (u.unit_id for u in planned_units(run.folder, plan)))
        job = Job(
            name="score",
            plan=plan,
            folder=run.folder,
            kind="scores",
            stage=partial(
                PerplexityStage,
                replace(recipe, guidance=with_portable_models(recipe.guidance)),
                run.resolved.model,
                model_hash=run.resolved.model_hash,
                folder=run.folder,
            ),
            pool=_pool(recipe),
            max_reject_fraction=recipe.max_reject_fraction,
            reading=recipe.reading,
            read=unit_reader(recipe.captions),
        )
        run_job(job)
    counts = run.folder.total_counts()
    check_rejects(
        counts, recipe.max_reject_fraction, run.folder.url, recipe.reading, len(run.resolved.shards)
    )
    sums = run.folder.total_sums()
    tokens = max(sums.get("num_tokens", 0.0), 1.0)
    # Of samples with images; those without have no gain.
    nll = sums["nll"] - sums.get(f"{TEXT_ONLY}/nll", 0.0)
    seen = tokens - sums.get(f"{TEXT_ONLY}/num_tokens", 0.0)
    return run.finish(
        counts=counts,
        metrics={
            "score/perplexity_per_token": math.exp(sums["nll"] / tokens),
            "score/image_gain_nats": (sums["nll_text"] - nll) / max(seen, 1.0),
            **_guided_metrics(sums, counts),
        },
        decisions={"prompts": _prompts(recipe)},
        outputs={"scores": "data", "rejects": "rejects"},
    )


def _guided_metrics(sums: Mapping[str, float], counts: Mapping[str, int]) -> dict[str, float]:
    """Return what guidance saves, of the samples with a region, and how many these are."""
    if "guided/samples" not in sums:
        return {}
    saved = sums["guided/plain_nll"] - sums["guided/nll"]
    return {
        "score/guided_fraction": sums["guided/samples"] / max(1, counts["samples"]),
        "score/guided_gain_nats": saved / max(1.0, sums["guided/num_tokens"]),
    }


def _prompts(recipe: ScoreRecipe) -> dict[str, str]:
    """Return all prompts of a recipe by id: a name, or one that is made from the text."""
    pools = PromptPools.read(recipe.prompts, recipe.prompt_key, recipe.prompt).pools
    return {prompt_id_of(text): text for texts in pools.values() for text in texts}


def _pool(recipe: ScoreRecipe) -> ActorPool:
    """As many actors as fit on the GPUs, if there are GPUs; else one per CPU, with room to read."""
    import ray

    gpus = int(ray.cluster_resources().get("GPU", 0))
    if gpus and gpus < recipe.tensor_parallel:
        raise RecipeError(
            f"tensor_parallel: found {recipe.tensor_parallel}, but the cluster has {gpus} GPUs"
        )
    held = gpus * recipe.actors_per_gpu // recipe.tensor_parallel
    return ActorPool(
        max_actors=recipe.num_actors or held or num_cpus(),
        min_actors=recipe.min_actors,
        num_readers=recipe.num_readers,
        cpus=0.8,
        gpus=recipe.tensor_parallel / recipe.actors_per_gpu if gpus else 0.0,
    )
