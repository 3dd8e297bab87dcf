"""Evaluate checkpoints while training continues: the loss on samples that are not trained on.

A Ray task of its own evaluates each checkpoint, on CPUs or GPUs that training does not hold, so
training does not wait for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from consomme.pipelines.train.batches import Collator
from consomme.pipelines.train.checkpoint import WEIGHTS, TrainState
from consomme.pipelines.train.context import TrainContext
from consomme.pipelines.train.export import export_dtype, open_trained
from consomme.pipelines.train.outputs import EVAL_LOSS, EVALUATIONS
from consomme.pipelines.train.recipe import TrainRecipe
from consomme.pipelines.train.samples import PreparedSample, Preparer, plan_source
from consomme.storage.ledger.run_folder import SELF_CHECK


def evaluate_checkpoint(checkpoint: Any, *, context: TrainContext) -> dict[str, float]:
    """Measure the loss of a checkpoint, and write it into the run folder.

    Args:
        checkpoint: Ray Train's, with `WEIGHTS`.
        context: The run's.

    Returns:
        `eval_loss_nats`: mean nats per labelled token.
    """
    import torch
    from safetensors.torch import load_file

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
    with checkpoint.as_directory() as path:
        state = TrainState.load(Path(path))
        weights = load_file(Path(path) / WEIGHTS)
    model, processor, has_adapters = open_trained(context, state.layers or (), weights)
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
        for sample in _samples(recipe, Preparer(recipe, chat, max_positions(model.config)))
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
    loss = nll / num_tokens
    found = {"step": state.step, "loss": loss, "samples": len(samples)}
    context.folder.store.write(f"{EVALUATIONS}/{state.step:08d}.json", json.dumps(found).encode())
    return {EVAL_LOSS: loss}


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
