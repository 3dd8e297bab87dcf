"""Assemble a VLM into a run's `model/`, and prove that the folder holds what its parts are."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from consomme.assemble.choices import CONNECTORS, FUSIONS
from consomme.base.manifest import Manifest
from consomme.execution.runs import Run, once
from consomme.pipelines.assemble.recipe import AssembleRecipe
from consomme.storage.model_folder import model_folder, model_hash, portable_path
from consomme.storage.output_folder import output_folder

if TYPE_CHECKING:
    from consomme.assemble.build import Assembled

logger = logging.getLogger(__name__)

_PARTS = ("model", "vision_encoder", "ocr_encoder", "language_model", "tokenizer")


@dataclass(frozen=True, kw_only=True)
class PartPaths:
    """Where the parts lie, by the recipe's keys; those with random weights are left out."""

    paths: dict[str, str]


def run(recipe: AssembleRecipe) -> Manifest:
    """Assemble the VLM; it is the `model` of the run."""
    return once(open_run, recipe, _assemble)


def open_run(recipe: AssembleRecipe) -> Run[PartPaths]:
    """Resolve the parts; writes nothing."""
    named = {key: getattr(recipe, key) for key in _PARTS if getattr(recipe, key) is not None}
    paths = {key: portable_path(model) for key, model in named.items()}
    inputs = {key: model_hash(path) for key, path in paths.items()}
    return Run.open(
        "assemble", recipe, PartPaths(paths=paths), inputs=inputs, reads=list(paths.values())
    )


def _assemble(run: Run[PartPaths]) -> Manifest:
    from consomme.assemble.check import check_folder
    from consomme.models.anatomy import anatomy
    from consomme.models.weights import save_vlm

    recipe: AssembleRecipe = run.recipe
    folders = {key: model_folder(path) for key, path in run.resolved.paths.items()}
    made = _made(recipe, folders)
    logger.info("assemble %s: %s", recipe.name, made.line())
    for reason in made.reasons:
        logger.info("assemble %s: no class of transformers: %s", recipe.name, reason)
    found = anatomy(made.model)
    counts = {
        "vision_encoder": sum(p.numel() for p in found.vision_encoder.values()),
        "projector": sum(p.numel() for p in found.projector.values()),
        "language_model": sum(p.numel() for layer in found.layers for p in layer.values()),
        "embeddings_and_head": sum(
            p.numel() for some in (found.embeddings, found.head) for p in some.values()
        ),
    }
    with output_folder(run.folder.store, "model") as output:
        folder = save_vlm(output.folder / "model", made.model, made.processor)
        check_folder(folder, made)
    return run.finish(
        counts={"image_tokens": made.num_tokens, **counts},
        outputs={"model": "model"},
        written=output.written,
        decisions={
            "class": type(made.model).__name__,
            "not_standard_because": list(made.reasons),
            "new_tokens": list(made.new_tokens),
            "rows_of_tokens": made.model.get_input_embeddings().weight.shape[0],
        },
    )


def _made(recipe: AssembleRecipe, folders: dict[str, str]) -> Assembled:
    """Assemble parts, or change the size of a model's images."""
    import torch

    from consomme.assemble.build import AssemblyPlan, assemble
    from consomme.assemble.resolution import change_resolution
    from consomme.models.weights import open_vlm, stored_dtype

    if recipe.model is not None:
        assert recipe.image_px is not None
        dtype = getattr(torch, recipe.dtype) if recipe.dtype else stored_dtype(folders["model"])
        return change_resolution(*open_vlm(folders["model"], dtype), recipe.image_px)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        parts = _open_parts(recipe, folders)
    plan = AssemblyPlan(
        connector=CONNECTORS.build(recipe.connector),
        fusion=FUSIONS.build(recipe.fusion),
        vision_layer=recipe.vision_layer,
        image_px=recipe.image_px,
        is_split=recipe.split,
        multiple=recipe.pad_tokens_to,
        tiling=recipe.tiling,
        general_weight=recipe.general_weight,
    )
    return assemble(plan, **parts, seed=recipe.seed)


def _open_parts(recipe: AssembleRecipe, folders: dict[str, str]) -> dict[str, Any]:
    import torch

    from consomme.assemble import parts
    from consomme.models.weights import open_processor

    dtype = getattr(torch, recipe.dtype) if recipe.dtype else None
    if recipe.language_shape is not None:
        _, processor = open_processor(folders["tokenizer"])
        tokenizer = getattr(processor, "tokenizer", processor)
        language = parts.random_language(recipe.language_shape, tokenizer, dtype or torch.float32)
    else:
        language = parts.open_language(folders["language_model"], dtype)
    dtype = language.model.dtype
    if recipe.vision_shape is not None:
        vision = parts.random_vision(recipe.vision_shape, dtype)
    else:
        vision = parts.open_vision(folders["vision_encoder"], dtype)
    ocr = parts.open_vision(folders["ocr_encoder"], dtype) if recipe.ocr_encoder else None
    return {"vision": vision, "language": language, "ocr": ocr}
