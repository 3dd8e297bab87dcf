"""Look at checkpoints while training goes on: the loss on samples it never sees.

One decision is made here: a checkpoint is looked at by a Ray task of its own, on CPUs or GPUs that
training does not hold, so training never waits for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from consomme.pipelines.train.batches import Collator
from consomme.pipelines.train.checkpoint import WEIGHTS, TrainState
from consomme.pipelines.train.export import open_trained
from consomme.pipelines.train.outputs import EVAL_LOSS, EVALUATIONS
from consomme.pipelines.train.recipe import TrainRecipe
from consomme.pipelines.train.samples import PreparedSample, Preparer, plan_source
from consomme.storage.ledger.run_folder import RunFolder


def evaluate_checkpoint(
    checkpoint: Any, *, recipe: TrainRecipe, start: str, folder: str
) -> dict[str, float]:
    """Measure the loss of a checkpoint.

    Args:
        checkpoint: Ray Train's, with `moved.safetensors`.
        recipe: Of the run, with absolute paths.
        start: Folder of the model that it started from.
        folder: The run folder.

    Returns:
        `eval_loss_nats`: mean nats per labelled token.
    """
    import torch
    from safetensors.torch import load_file

    from consomme.models.batches import IGNORE_INDEX, Batcher
    from consomme.models.chat_prefix import chat_encoder_for
    from consomme.train.loop import sum_nll

    # A task without a GPU of its own may still see those that training holds.
    device = torch.device("cuda" if recipe.evaluation.gpus else "cpu")
    torch.set_num_threads(max(1, int(recipe.evaluation.cpus)))
    with checkpoint.as_directory() as path:
        seen = TrainState.of(Path(path))
        moved = load_file(Path(path) / WEIGHTS)
    model, processor, _ = open_trained(recipe, start, seen.layers or (), moved)
    model.eval().to(device)
    chat = chat_encoder_for(model.config, processor)
    batcher = Batcher(model, chat.tokenizer)
    tables = Collator(batcher=batcher, chat=chat, is_packed=False)
    max_tokens = model.config.get_text_config().max_position_embeddings
    samples = list(_samples(recipe, Preparer(recipe, chat, max_tokens)))
    total, tokens = 0.0, 0
    with torch.inference_mode():
        for at in range(0, len(samples), recipe.micro_batch):
            batch = tables.join(samples[at : at + recipe.micro_batch])
            tokens += int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
            total += float(sum_nll(model, {k: v.to(device) for k, v in batch.items()}))
    found = {"step": seen.step, "loss": total / tokens, "samples": len(samples)}
    store = RunFolder.at(folder).store
    store.write(f"{EVALUATIONS}/{seen.step:08d}.json", json.dumps(found).encode())
    return {EVAL_LOSS: total / tokens}


def _samples(recipe: TrainRecipe, preparer: Preparer) -> Iterator[PreparedSample]:
    """Yield the first samples of each source, equally many, as they are."""
    num_sources = len(recipe.evaluation.data)
    for number, source in enumerate(recipe.evaluation.data):
        left = recipe.evaluation.max_samples // num_sources
        for work in plan_source(source, f"evaluation.data[{number}]").works:
            found = preparer.read(source, work, number, 0).samples[:left]
            yield from found
            left -= len(found)
            if not left:
                break
