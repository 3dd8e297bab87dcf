"""Evaluate checkpoints while training continues: loss, a benchmark, guards.

A Ray task of its own evaluates each checkpoint, on CPUs or GPUs that training does not hold, so
training does not wait for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from consomme.base.errors import ClusterError, ConsommeError
from consomme.pipelines.train.asking import ask_trained
from consomme.pipelines.train.batches import Collator
from consomme.pipelines.train.checkpoint import WEIGHTS, TrainState
from consomme.pipelines.train.context import TrainContext
from consomme.pipelines.train.export import export_dtype, open_trained
from consomme.pipelines.train.outputs import CHOICE, EVAL_LOSS, EVALUATIONS, LOST
from consomme.pipelines.train.recipe import TrainRecipe
from consomme.pipelines.train.samples import PreparedSample, Preparer, plan_source
from consomme.storage.ledger.run_folder import SELF_CHECK


def evaluate_checkpoint(checkpoint: Any, *, context: TrainContext) -> dict[str, float]:
    """Measure a checkpoint, and write what was found into the run folder.

    Args:
        checkpoint: Ray Train's, with `WEIGHTS`.
        context: The run's.

    Returns:
        What checkpoints are compared by: `eval_loss_nats`, mean nats per labelled token, or
        `CHOICE`.
    """
    from safetensors.torch import load_file

    evaluation = context.recipe.evaluation
    with checkpoint.as_directory() as path:
        state = TrainState.load(Path(path))
        weights = load_file(Path(path) / WEIGHTS)
    found: dict[str, Any] = {"step": state.step}
    try:
        if evaluation.data:
            found |= _loss(context, state.layers or (), weights)
        if evaluation.asks:
            found |= ask_trained(context, state.layers or (), weights)
    except ClusterError:
        raise
    except ConsommeError as error:
        # Ray Train would only log it; the driver raises it at the end of training.
        found |= {"error": str(error)}
    name = f"{EVALUATIONS}/{state.step:08d}.json"
    context.folder.store.write(name, json.dumps(found).encode())
    return compared_by(found)


def compared_by(found: Mapping[str, Any]) -> dict[str, float]:
    """Return what a checkpoint is compared by, as Ray Train's metrics; see `CHOICE`.

    Args:
        found: What its evaluation wrote.
    """
    if "error" in found:
        return {}
    loss = {EVAL_LOSS: float(found["loss"])} if "loss" in found else {}
    if "score" not in found and "guards" not in found:
        return loss
    value = found["score"] if "score" in found else -found.get("loss", 0.0)
    is_kept = all(guard["passes"] for guard in found.get("guards", ()))
    return {**loss, CHOICE: float(value) - (0.0 if is_kept else LOST)}


def _loss(
    context: TrainContext, layers: Sequence[int], weights: Mapping[str, Any]
) -> dict[str, Any]:
    """Measure the loss on held-out samples."""
    import torch

    from consomme.models.attention import max_positions
    from consomme.models.batches import IGNORE_INDEX, Batcher
    from consomme.models.chat_prefix import chat_encoder_for
    from consomme.models.lora import merge_lora
    from consomme.models.selfcheck import SelfCheck
    from consomme.models.weights import cast_weights
    from consomme.train.batch_check import row_layout
    from consomme.train.loop import sum_nll

    recipe = context.recipe
    # A task that claims no GPU may still see those that training holds.
    device = torch.device("cuda" if recipe.evaluation.gpus else "cpu")
    torch.set_num_threads(max(1, int(recipe.evaluation.cpus)))
    model, processor, has_adapters = open_trained(context, layers, weights)
    if has_adapters:
        merge_lora(model)
    # What is evaluated is the model that would be exported.
    cast_weights(model, export_dtype(context))
    cast_weights(model, torch.float32)
    model.eval().to(device)
    chat = chat_encoder_for(model.config, processor, recipe.template)
    batcher = Batcher(model, chat.tokenizer)
    # As in training, but not packed.
    check = SelfCheck.from_json(context.folder.store.read(SELF_CHECK))
    layout = row_layout(check, batcher, micro_batch=recipe.micro_batch, pack_tokens=None)
    collator = Collator(batcher=batcher, chat=chat, layout=layout)
    samples = [
        sample
        for sample in _samples(
            recipe, Preparer(recipe, chat, max_positions(model.config), splits_some=False)
        )
        if sample.num_images <= 1 or check.several_refused is None
    ]
    nll, num_tokens = 0.0, 0
    with torch.inference_mode():
        for indices in layout.batches(
            [sample.num_tokens for sample in samples], [sample.num_images for sample in samples]
        ):
            batch = collator.collate([samples[k] for k in indices])
            num_tokens += int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
            nll += float(sum_nll(model, {k: v.to(device) for k, v in batch.items()}))
    return {"loss": nll / num_tokens, "samples": len(samples)}


def _samples(recipe: TrainRecipe, preparer: Preparer) -> Iterator[PreparedSample]:
    """Yield the first samples of each source, the same number of each, without augmentation."""
    num_sources = len(recipe.evaluation.data)
    for number, source in enumerate(recipe.evaluation.data):
        num_left = recipe.evaluation.max_samples // num_sources
        for work in plan_source(source, f"evaluation.data[{number}]").works:
            samples = preparer.read(source, work, number, 0).samples[:num_left]
            yield from samples
            num_left -= len(samples)
            if not num_left:
                break
