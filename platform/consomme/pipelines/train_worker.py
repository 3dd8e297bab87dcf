"""What one rank of a training run does: read the data, train, keep checkpoints.

One decision is made here: whatever a rank learns of the data (rejects, scores of layers) every rank
works out for itself from the same samples, so no rank waits for another's word.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from consomme.base.errors import ConsommeError, RecipeError
from consomme.pipelines.checkpoints import model_folder
from consomme.pipelines.train import CURVE, TRAINABLE, TrainRecipe
from consomme.pipelines.train_dealer import Dealer, Tables
from consomme.storage.ledger import RunFolder
from consomme.train.layers import ByScore
from consomme.train.parts import Group, Trained

META = "meta.json"
"""In a checkpoint, beside what the parallelism writes: what a run has seen so far."""


@dataclass
class Seen:
    """What a run knows at a checkpoint, apart from weights and optimizer."""

    curve: list[dict[str, float]] = field(default_factory=list)
    """Of all steps done."""

    data: dict[str, Any] | None = None
    """Where in the data the next step begins."""

    layers: list[int] | None = None
    """Which were selected at the start."""

    scores: list[float] | None = None
    """Of the layers, if they were selected by one."""

    unused: list[str] | None = None
    """Parameters that were frozen because the loss does not reach them."""

    @classmethod
    def of(cls, checkpoint: Path | None) -> Seen:
        """Read it from a checkpoint; empty without one."""
        return cls(**json.loads((checkpoint / META).read_text())) if checkpoint else cls()

    def save(self, checkpoint: Path) -> None:
        """Write it into a checkpoint."""
        (checkpoint / META).write_text(json.dumps(dataclasses.asdict(self)))


def train_worker(config: dict[str, Any]) -> dict[str, Any] | ConsommeError:
    """Train one rank of a Ray Train run.

    Every rank reads the same samples and sums the same losses, so a user's error is met by all.

    Returns:
        What rank 0 says of the run; or the error that a user has to mend, not raised, because Ray
        Train would try again what cannot succeed.
    """
    try:
        with contextlib.ExitStack() as opened:
            return _train(config, opened)
    except ConsommeError as error:
        return error


def _train(config: dict[str, Any], opened: contextlib.ExitStack) -> dict[str, Any]:
    import ray.train

    recipe: TrainRecipe = config["recipe"]
    folder = RunFolder.at(config["folder"])
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    checkpoint = opened.enter_context(_opened(ray.train.get_checkpoint()))
    seen = Seen.of(checkpoint)
    # Before anything else is imported or opened: reading begins meanwhile.
    dealer = Dealer(config, seen.data, rank, world)

    import torch
    from ray.train.torch import get_device

    from consomme.models.batches import Batcher
    from consomme.models.prefix_dialogue import dialogue_for
    from consomme.models.weights import open_scorer
    from consomme.train.layers import LAYER_SELECTORS, Rotating
    from consomme.train.loop import Pace, StepReport, fit_in_turns, sum_nll
    from consomme.train.neftune import add_noise
    from consomme.train.parallel import PARALLELISMS, optimizer_bytes, peak_bytes
    from consomme.train.trainable import (
        forget_activations,
        freeze,
        freeze_unused,
        multiply_in_bfloat16,
        set_trainable,
    )

    torch.manual_seed(recipe.seed)
    torch.set_num_threads(max(1, int(recipe.cpus_per_worker)))
    device = get_device()
    model, processor = open_scorer(config["start"])
    dialogue = dialogue_for(model.config, processor)
    num_layers = model.config.get_text_config().num_hidden_layers
    pad_id = dialogue.tokenizer.pad_token_id
    batcher = Batcher(model, dialogue.tokenizer.eos_token_id if pad_id is None else pad_id)
    if recipe.pack_tokens is not None:
        batcher.check_packing()
    tables = Tables(batcher=batcher, dialogue=dialogue, is_packed=recipe.pack_tokens is not None)
    selector = LAYER_SELECTORS.build(recipe.layers, "layers")
    if seen.layers is None:
        if isinstance(selector, ByScore):
            seen.scores = _scores(selector, model, dialogue, tables, dealer)
        seen.layers = list(selector(num_layers, seen.scores))
    selected = tuple(seen.layers)
    rotating = selector if isinstance(selector, Rotating) else None
    if rotating:
        _check_rotation(recipe)

    def layers_at(step: int) -> tuple[int, ...]:
        return rotating.at(step, num_layers) if rotating else selected

    def settle(layers: tuple[int, ...]) -> Trained:
        return set_trainable(
            model, recipe.trainability, layers, lr=recipe.lr, weight_decay=recipe.weight_decay
        )

    def mark(layers: tuple[int, ...]) -> Sequence[Group]:
        groups = settle(layers).groups
        freeze(model, seen.unused or ())
        return groups

    start = len(seen.curve)
    trained = settle(layers_at(max(0, start - 1)))
    if rank == 0:
        table = [dataclasses.asdict(line) for line in trained.rows]
        folder.store.write(TRAINABLE, json.dumps(table, indent=1).encode())
    if recipe.activation_checkpointing:
        forget_activations(model)
    if recipe.precision == "bfloat16":
        multiply_in_bfloat16(model, device.type)
    if seen.unused is None:
        first = tables.join(dealer.peek(1))
        seen.unused = list(freeze_unused(model, lambda bare: sum_nll(bare, first)))
    else:
        freeze(model, seen.unused)
    if recipe.neftune_alpha:
        add_noise(model, recipe.neftune_alpha)
    spread = PARALLELISMS.build(recipe.parallelism, "parallelism")(model, trained.groups, device)
    if checkpoint:
        spread.load(checkpoint)
    opened.close()
    batches = dealer.batches(tables, device, start)

    def of_step(step: int) -> list[dict[str, Any]]:
        # What is drawn in a step, such as dropout, does not depend on the steps before it.
        torch.manual_seed((recipe.seed * recipe.num_steps + step) * world + rank)
        made, seen.data = next(batches)
        return made

    shown = time.monotonic()

    def after_step(done: StepReport) -> None:
        nonlocal shown
        seen.curve.append(dataclasses.asdict(done))
        if rank == 0 and (time.monotonic() - shown > 2 or done.step == recipe.num_steps):
            shown = time.monotonic()
            folder.store.write(CURVE, json.dumps(seen.curve).encode())
        if done.step % recipe.checkpoint_every and done.step != recipe.num_steps:
            return
        with tempfile.TemporaryDirectory() as scratch:
            spread.save(Path(scratch))
            if rank == 0:
                seen.save(Path(scratch))
            kept = None
            if any(Path(scratch).iterdir()):
                kept = ray.train.Checkpoint.from_directory(scratch)
            ray.train.report({"step": done.step, "loss": done.loss}, checkpoint=kept)

    pace = Pace(
        num_steps=recipe.num_steps,
        schedule=recipe.schedule,
        warmup_fraction=recipe.warmup_fraction,
        final_fraction=recipe.final_lr_fraction,
        max_grad_norm=recipe.max_grad_norm,
    )
    fit_in_turns(
        spread,
        of_step,
        pace,
        start=start,
        after_step=after_step,
        layers_at=layers_at,
        mark=mark,
    )
    # Before the finished model is put together, which is no part of training.
    peak = peak_bytes(device)
    state = spread.whole_state()
    counts = dealer.check()
    if rank == 0:
        _export(config, recipe, selected, state, Path(folder.path))
    return {
        "counts": counts,
        "layers": sorted({i for step in range(recipe.num_steps) for i in layers_at(step)}),
        "lowest_layer": trained.lowest_layer,
        "layer_scores": seen.scores,
        "num_layers": num_layers,
        "trainable": [dataclasses.asdict(row) for row in trained.rows],
        "unused": seen.unused,
        "num_trainable": trained.num_trained,
        "num_parameters": trained.num_parameters,
        "world_size": world,
        "resumed_from_step": start,
        "optimizer_bytes": optimizer_bytes(spread.optimizer),
        "peak_bytes": peak,
    }


def _check_rotation(recipe: TrainRecipe) -> None:
    """Refuse what cannot rotate before anything is trained."""
    from consomme.train.parallel import CANNOT_ROTATE

    if recipe.language_model.state != "full":
        raise RecipeError(
            f"language_model.state is {recipe.language_model.state}, but layers that rotate are"
            " trained in full; set language_model.state=full, or take another layer selection"
        )
    if recipe.parallelism["name"] == "deepspeed":
        raise RecipeError(CANNOT_ROTATE)


@contextlib.contextmanager
def _opened(checkpoint: Any) -> Iterator[Path | None]:
    """Bring a checkpoint here, once, for as long as it is read."""
    if checkpoint is None:
        yield None
        return
    with checkpoint.as_directory() as path:
        yield Path(path)


def _scores(
    selector: ByScore, model: Any, dialogue: Any, tables: Tables, dealer: Dealer
) -> list[float]:
    """Measure how much each layer matters."""
    from consomme.models.anatomy import anatomy
    from consomme.models.weights import open_scorer
    from consomme.train import layer_scores

    if selector.tuned is not None:
        tuned, _ = open_scorer(model_folder(selector.tuned))
        function = getattr(layer_scores, selector.measure)
        found: list[float] = function(anatomy(model).layers, anatomy(tuned).layers)
        return found
    probe = layer_scores.LayerProbe(model, dialogue.image_token_id)
    some = dealer.peek(selector.num_samples)
    few = [some[at : at + 8] for at in range(0, len(some), 8)]
    probe.watch(map(tables.join, few), attention=selector.measure == "image_attention")
    by_layer: list[float] = getattr(probe, selector.measure)()
    return by_layer


def _export(
    config: dict[str, Any],
    recipe: TrainRecipe,
    selected: Sequence[int],
    state: dict[str, Any],
    folder: Path,
) -> None:
    """Write the finished model as a plain folder, adapters added to their matrices."""
    from consomme.models.weights import open_scorer, save_vlm
    from consomme.train.trainable import set_trainable

    model, processor = open_scorer(config["start"])
    trained = set_trainable(model, recipe.trainability, selected, lr=recipe.lr)
    model.load_state_dict(state)
    if trained.adapters:
        from consomme.models.lora import merge_lora, save_adapter

        if recipe.keeps_adapter:
            save_adapter(model, folder / "adapter", recipe.model)
        merge_lora(model)
    save_vlm(folder / "model", model, processor)
