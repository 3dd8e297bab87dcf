"""Let a VLM write new captions for a view or for shards, on a pool of engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from consomme.base.errors import RecipeError
from consomme.base.manifest import Manifest
from consomme.curate.caption.prompts import own_prompts
from consomme.execution.driver import run_job
from consomme.execution.job import ActorPool, Job
from consomme.execution.planning import plan_shards, plan_view
from consomme.execution.rejects import check_rejects
from consomme.execution.runs import Run, folders_of, once
from consomme.execution.session import ray_session
from consomme.pipelines.recaption.metrics import check_canaries, metrics_of, most_common, texts_of
from consomme.pipelines.recaption.recipe import RecaptionRecipe
from consomme.storage.captions import CAPTIONS, check_units, planned_units, unit_reader
from consomme.storage.identity import data_fingerprints, find_data
from consomme.storage.shards import Shard
from consomme.storage.view import View
from consomme.vision.guidance import guidance_inputs, with_portable_models

if TYPE_CHECKING:
    from consomme.engines.generation.models import EngineModel


@dataclass(frozen=True, kw_only=True)
class RecaptionInputs:
    """The resolved inputs of a recaption recipe."""

    shards: Sequence[Shard]
    """Empty if a view says which samples are recaptioned."""

    model: EngineModel
    """What the engine runs."""


def run(recipe: RecaptionRecipe) -> Manifest:
    """Write a caption for every sample exactly once; running again does what is missing."""
    return once(open_run, recipe, _recaption)


def open_run(recipe: RecaptionRecipe) -> Run[RecaptionInputs]:
    """Check the recipe and resolve its inputs; writes nothing."""
    from consomme.engines.generation.models import find_model
    from consomme.engines.generation.registry import GENERATION_ENGINES

    has_shards = bool(recipe.inputs or recipe.sources)
    engine = GENERATION_ENGINES.build(recipe.engine, "engine")
    model = find_model(recipe.model, engine)
    inputs = {**model.marks, **guidance_inputs(recipe.guidance, "guidance")}
    runs = {"view": recipe.view, "captions": recipe.captions}
    shards = find_data(recipe.inputs, recipe.source, recipe.sources) if has_shards else []
    if shards:
        inputs |= data_fingerprints(shards, recipe.root, image_root=recipe.reading.image_root)
    reads = folders_of(shards) if engine.is_remote else [model.model, *folders_of(shards)]
    resolved = RecaptionInputs(shards=shards, model=model)
    return Run.open(
        "recaption",
        recipe,
        resolved,
        inputs=inputs,
        runs=runs,
        reads=reads,
        data_of=list(runs.values()),
    )


def _recaption(run: Run[RecaptionInputs]) -> Manifest:
    from consomme.engines.generation.registry import GENERATION_ENGINES

    recipe, folder, inputs = run.recipe, run.folder, run.resolved
    engine = GENERATION_ENGINES.build(recipe.engine, "engine")
    with ray_session():
        from consomme.pipelines.recaption.stage import CaptionStage

        plan = (
            plan_view(folder, View.load(recipe.view))
            if recipe.view
            else plan_shards(folder, inputs.shards, recipe.unit_rows, reading=recipe.reading)
        )
        check_units(recipe.captions, (u.unit_id for u in planned_units(folder, plan)))
        portable = replace(recipe, guidance=with_portable_models(recipe.guidance))
        job = Job(
            name="recaption",
            plan=plan,
            folder=folder,
            kind=CAPTIONS,
            stage=partial(CaptionStage, portable, inputs.model, folder=folder),
            pool=_pool(recipe, engine),
            max_reject_fraction=recipe.max_reject_fraction,
            reading=recipe.reading,
            read=unit_reader(recipe.captions),
            check=partial(check_canaries, folder.url, recipe.canary_max_same),
        )
        run_job(job)
    counts = folder.total_counts()
    check_rejects(
        counts, recipe.max_reject_fraction, folder.url, recipe.reading, len(inputs.shards)
    )
    texts = texts_of(folder.url)
    return run.finish(
        counts=counts,
        metrics=metrics_of(counts, folder.total_sums(), texts),
        decisions={
            "most_common": most_common(texts),
            **({"prompts": own} if (own := own_prompts(recipe.prompts)) else {}),
        },
        outputs={CAPTIONS: "data", "rejects": "rejects"},
    )


def _pool(recipe: RecaptionRecipe, engine: Any) -> ActorPool:
    """One engine per GPU or group of GPUs; one engine if there is no GPU."""
    import ray

    gpus = 0 if engine.is_remote else int(ray.cluster_resources().get("GPU", 0))
    each = engine.num_gpus if gpus else 0
    if gpus and gpus < each:
        raise RecipeError(f"engine.tensor_parallel: found {each}, but the cluster has {gpus} GPUs")
    return ActorPool(
        max_actors=recipe.num_actors or max(1, gpus // max(1, each)),
        min_actors=recipe.min_actors,
        num_readers=recipe.num_readers,
        gpus=float(each),
    )
