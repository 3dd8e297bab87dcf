"""What one rank of a training run does: read the data, train, keep checkpoints.

Two decisions are made here. Whatever a rank learns of the data (rejects, scores of layers) every
rank works out for itself from the same samples, so no rank waits for another's word. And a run that
diverges goes back to its last checkpoint and on with other samples.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from consomme.base.errors import ConsommeError, RecipeError
from consomme.pipelines.train.batches import Collator, RankDataLoader
from consomme.pipelines.train.checkpoint import WEIGHTS, TrainState, opened
from consomme.pipelines.train.export import export
from consomme.pipelines.train.outputs import CURVE, TRAINABLE
from consomme.pipelines.train.recipe import TrainRecipe
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.model_folder import model_folder
from consomme.train.layers import LAYER_SELECTORS, ByScore, Rotating
from consomme.train.parts import ParamGroup, Trained

logger = logging.getLogger(__name__)

STEPS_BETWEEN_LOOKS = 5
"""On a cluster: steps between questions whether a node will be taken away; all ranks have to wait
for each other to agree on the answer."""


def train_worker(config: dict[str, Any]) -> dict[str, Any] | ConsommeError:
    """Train one rank of a Ray Train run.

    Every rank reads the same samples and sums the same losses, so a user's error is met by all.

    Returns:
        What rank 0 says of the run; or the error that a user has to mend, not raised, because Ray
        Train would try again what cannot succeed.
    """
    try:
        return _Rank(config).train()
    except ConsommeError as error:
        return error


class _Rank:
    """One rank: a model, its part of the data, and what was seen so far."""

    def __init__(self, config: dict[str, Any]) -> None:
        import ray.train

        self.config = config
        self.recipe: TrainRecipe = config["recipe"]
        self.folder = RunFolder.at(config["folder"])
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        with opened(ray.train.get_checkpoint()) as checkpoint:
            self.state = TrainState.of(checkpoint)
            self.resumed = self.state.step
            # Before anything else is imported or opened: reading begins meanwhile.
            self.loader = RankDataLoader(config, self.state.data, self.rank, self.world)
            self._open_model()
            self._choose_layers()
            self._shard(checkpoint)
        self._shown = time.monotonic()
        self._preempted: int | None = -1
        """Deadline of the notice that the last checkpoint out of turn was for."""

    def _open_model(self) -> None:
        import torch
        from ray.train.torch import get_device

        from consomme.models.batches import Batcher
        from consomme.models.chat_prefix import chat_encoder_for
        from consomme.models.weights import open_scorer
        from consomme.train.trainable import disable_kv_cache

        torch.manual_seed(self.recipe.seed)
        torch.set_num_threads(max(1, int(self.recipe.cpus_per_worker)))
        self.device = get_device()
        self.model, processor = open_scorer(model_folder(self.config["start"]))
        disable_kv_cache(self.model)
        self.chat = chat_encoder_for(self.model.config, processor)
        self.num_layers: int = self.model.config.get_text_config().num_hidden_layers
        batcher = Batcher(self.model, self.chat.tokenizer)
        is_packed = self.recipe.pack_tokens is not None
        if is_packed:
            batcher.check_packing()
        self.collator = Collator(batcher=batcher, chat=self.chat, is_packed=is_packed)

    def _choose_layers(self) -> None:
        selector = LAYER_SELECTORS.build(self.recipe.layers, "layers")
        if self.state.layers is None:
            if isinstance(selector, ByScore):
                self.state.scores = _scores(
                    selector, self.model, self.chat, self.collator, self.loader
                )
            self.state.layers = list(selector(self.num_layers, self.state.scores))
        self.selected = tuple(self.state.layers)
        self.rotating = selector if isinstance(selector, Rotating) else None
        if self.rotating:
            _check_rotation(self.recipe)
        steps = range(self.recipe.num_steps)
        self.every_layer = sorted({index for step in steps for index in self._layers_at(step)})

    def _layers_at(self, step: int) -> tuple[int, ...]:
        return self.rotating.at(step, self.num_layers) if self.rotating else self.selected

    def _set_trainable(self, layers: tuple[int, ...]) -> Trained:
        from consomme.train.trainable import set_trainable

        recipe = self.recipe
        return set_trainable(
            self.model, recipe.trainability, layers, lr=recipe.lr, weight_decay=recipe.weight_decay
        )

    def _apply_trainability(self, layers: tuple[int, ...]) -> Sequence[ParamGroup]:
        from consomme.train.trainable import freeze

        groups = self._set_trainable(layers).groups
        freeze(self.model, self.state.unused or ())
        return groups

    def _shard(self, checkpoint: Path | None) -> None:
        """Mark what moves, prepare the model for it, and shard it over the ranks."""
        from consomme.train.loop import sum_nll
        from consomme.train.neftune import add_noise
        from consomme.train.parallel.registry import PARALLELISMS
        from consomme.train.trainable import (
            compile_layers,
            enable_activation_checkpointing,
            enable_autocast,
            freeze,
            freeze_unused,
        )

        recipe, model = self.recipe, self.model
        trainable_names = None
        if self.rotating:
            whole = self._set_trainable(tuple(self.every_layer))
            trainable_names = {name for group in whole.groups for name in group.names}
        self.trained = self._set_trainable(self._layers_at(max(0, self.state.step - 1)))
        if self.rank == 0:
            table = [dataclasses.asdict(line) for line in self.trained.rows]
            self.folder.store.write(TRAINABLE, json.dumps(table, indent=1).encode())
        if recipe.activation_checkpointing:
            enable_activation_checkpointing(model)
        if recipe.precision == "bfloat16":
            enable_autocast(model, self.device.type)
        if self.state.unused is None:
            first = self.collator.join(self.loader.peek(1))
            self.state.unused = list(freeze_unused(model, lambda bare: sum_nll(bare, first)))
        else:
            freeze(model, self.state.unused)
        if recipe.neftune_alpha:
            add_noise(model, recipe.neftune_alpha)
        if recipe.compile:
            compile_layers(model, recipe.compile)
        build = PARALLELISMS.build(recipe.parallelism, "parallelism")
        self.sharded = build(model, self.trained.groups, self.device, trainable_names)
        if checkpoint:
            self.sharded.load(checkpoint)

    def train(self) -> dict[str, Any]:
        """Train to the end; what rank 0 says of it."""
        from consomme.train.divergence import DivergedError, LossWatch
        from consomme.train.loop import ScheduleConfig, fit_with_rotation
        from consomme.train.parallel.strategy import optimizer_bytes, peak_bytes

        recipe = self.recipe
        schedule = ScheduleConfig(
            num_steps=recipe.num_steps,
            schedule=recipe.schedule,
            warmup_fraction=recipe.warmup_fraction,
            final_fraction=recipe.final_lr_fraction,
            max_grad_norm=recipe.max_grad_norm,
        )
        self.loader.deal(self.collator, self.device, recipe.num_steps - self.state.step)
        while self.state.step < recipe.num_steps:
            try:
                fit_with_rotation(
                    self.sharded,
                    self._batches,
                    schedule,
                    start=self.state.step,
                    after_step=self._after_step,
                    layers_at=self._layers_at,
                    apply_trainability=self._apply_trainability,
                    watch=LossWatch(
                        recipe.max_loss_ratio, [point["loss"] for point in self.state.curve]
                    ),
                )
            except DivergedError as error:
                self._go_back(error)
        # Before the finished model is put together, which is no part of training.
        peak = peak_bytes(self.device)
        counts = self.loader.check()
        state = self.sharded.trainable_state_dict()
        if self.rank == 0 and recipe.export_checkpoint == "last":
            export(recipe, self.config["start"], self.selected, state, self.folder.url)
        return {
            "counts": counts,
            "layers": self.every_layer,
            "lowest_layer": self.trained.lowest_layer,
            "layer_scores": self.state.scores,
            "num_layers": self.num_layers,
            "trainable": [dataclasses.asdict(row) for row in self.trained.rows],
            "unused": self.state.unused,
            "num_trainable": self.trained.num_trained,
            "num_parameters": self.trained.num_parameters,
            "world_size": self.world,
            "resumed_from_step": self.resumed,
            "rollbacks": self.state.rollbacks,
            "optimizer_bytes": optimizer_bytes(self.sharded.optimizer),
            "peak_bytes": peak,
        }

    def _batches(self, step: int) -> list[dict[str, Any]]:
        import torch

        # What is drawn in a step, such as dropout, does not depend on the steps before it.
        torch.manual_seed(
            (self.recipe.seed * self.recipe.num_steps + step) * self.world + self.rank
        )
        made, self.state.data = self.loader.next()
        return made

    def _after_step(self, done: Any) -> None:
        """Write down a finished step, and keep a checkpoint if it is time."""
        import ray.train
        from safetensors.torch import save_file

        self.state.curve.append(dataclasses.asdict(done))
        is_last = done.step == self.recipe.num_steps
        # It is written whole: so the longer it is, the more seldom.
        pause = max(2.0, done.step / 1000)
        if self.rank == 0 and (time.monotonic() - self._shown > pause or is_last):
            self._shown = time.monotonic()
            self.folder.store.write(CURVE, json.dumps(self.state.curve).encode())
        if (
            done.step % self.recipe.checkpoint_every
            and not is_last
            and not self._is_preempted(done)
        ):
            return
        # It is sent to storage in the background, and deleted when it is there.
        scratch = Path(tempfile.mkdtemp(prefix="consomme-checkpoint-"))
        self.sharded.save(scratch)
        is_evaluated = bool(self.recipe.evaluation.data)
        if is_evaluated:
            moved = self.sharded.trainable_state_dict()
            if self.rank == 0:
                save_file({k: v.contiguous() for k, v in moved.items()}, scratch / WEIGHTS)
        if self.rank == 0:
            self.state.save(scratch)
        kept = None
        if any(scratch.iterdir()):
            kept = ray.train.Checkpoint.from_directory(str(scratch))
        else:
            scratch.rmdir()
        ray.train.report(
            {"step": done.step, "loss": done.loss},
            checkpoint=kept,
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
            validation=is_evaluated,
        )

    def _is_preempted(self, done: Any) -> bool:
        """Whether a node is about to be taken away; all ranks say the same."""
        import ray.train

        if done.step % STEPS_BETWEEN_LOOKS or self.config["is_private"]:
            return False
        info = ray.train.get_preemption_info()
        if info is None or info.deadline_ms == self._preempted:
            return False
        self._preempted = info.deadline_ms
        return True

    def _go_back(self, error: ConsommeError) -> None:
        """Take weights and optimizer from the last checkpoint; the data goes on from here.

        Every rank meets the same losses, so all of them come here together.

        Raises:
            ConsommeError: There is no checkpoint, or the run went back too often.
        """
        from ray.train import CheckpointConsistencyMode, get_all_reported_checkpoints

        rollbacks = [*self.state.rollbacks, str(error)]
        # Waits until the last one is whole: all ranks have to go back to the same.
        kept = get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)
        if not kept or len(rollbacks) > self.recipe.max_rollbacks:
            raise error
        last = max(kept, key=lambda one: one.metrics["step"]).checkpoint
        done = self.state.step
        data = self.state.data
        with opened(last) as checkpoint:
            self.state = TrainState.of(checkpoint)
            self.state.data, self.state.rollbacks = data, rollbacks
            if self.rotating:
                # The optimizer has to have the groups that it had then.
                self.sharded.set_param_groups(
                    self._apply_trainability(self._layers_at(max(0, self.state.step - 1)))
                )
            self.sharded.load(checkpoint)
        self.loader.extend(done + 1 - self.state.step)
        logger.warning(
            "%s; going on from step %d with other samples (%d of at most %d times)",
            error,
            self.state.step,
            len(rollbacks),
            self.recipe.max_rollbacks,
        )


def _check_rotation(recipe: TrainRecipe) -> None:
    """Refuse what cannot rotate before anything is trained."""
    from consomme.train.parallel.deepspeed import CANNOT_ROTATE

    if recipe.language_model.state != "full":
        raise RecipeError(
            f"language_model.state is {recipe.language_model.state}, but layers that rotate are"
            " trained in full; set language_model.state=full, or take another layer selection"
        )
    if recipe.parallelism["name"] == "deepspeed":
        raise RecipeError(CANNOT_ROTATE)


def _scores(
    selector: ByScore, model: Any, chat: Any, tables: Collator, loader: RankDataLoader
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
    probe = layer_scores.LayerProbe(model, chat.image_token_id)
    some = loader.peek(selector.num_samples)
    few = [some[at : at + 8] for at in range(0, len(some), 8)]
    probe.watch(map(tables.join, few), attention=selector.measure == "image_attention")
    by_layer: list[float] = getattr(probe, selector.measure)()
    return by_layer
