"""One rank of a training run: load the data, train, report steps, save checkpoints.

What a rank derives from the data (rejects, scores of layers) every rank computes by itself from the
same samples, without communication. A run that diverges goes back to its last checkpoint and
continues from there with other samples.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consomme.base.errors import ClusterError, ConsommeError, SupersededError
from consomme.base.manifest import FileSum
from consomme.base.places import process_scratch
from consomme.pipelines.train.batches import Collator, RankDataLoader
from consomme.pipelines.train.checkpoint import WEIGHTS, TrainState, opened, upload
from consomme.pipelines.train.context import TrainContext, TrainResult
from consomme.pipelines.train.curve import STEPS, StepBatch
from consomme.pipelines.train.export import export
from consomme.pipelines.train.outputs import TRAINABLE
from consomme.storage.ledger.run_folder import SELF_CHECK
from consomme.storage.model_folder import model_folder
from consomme.train.layers import LAYER_SELECTORS, ScoringInputs
from consomme.train.parts import ParamGroup, Trained

if TYPE_CHECKING:
    from consomme.models.batches import Batcher
    from consomme.models.selfcheck import SelfCheck
    from consomme.train.loop import StepReport

logger = logging.getLogger(__name__)

PREEMPTION_CHECK_STEPS = 5
"""Steps between checks, on a cluster, whether a node is about to be preempted; the check is a
barrier for all ranks."""

SCORING_BATCH = 8
"""Samples per forward pass when layers are scored."""

MAX_REPORT_GROWTH = 4
"""A report holds at most this many times the steps of the one before."""


def train_worker(config: dict[str, Any]) -> TrainResult | ConsommeError:
    """Train one rank of a Ray Train run.

    Every rank reads the same samples and sums the same losses, so all ranks meet a user's error.

    Args:
        config: `context`, a `TrainContext`; Ray Train wants a dict.

    Returns:
        The result, of which rank 0's counts; or the error that a user has to fix, not raised,
        because Ray Train would retry what cannot succeed.

    Raises:
        ClusterError: Storage or machine failed; Ray Train continues from the last checkpoint.
    """
    try:
        return TrainWorker(config["context"]).train()
    except ClusterError:
        raise
    except ConsommeError as error:
        return error


class TrainWorker:
    """One rank: its model, its data loader, and the state of the run."""

    def __init__(self, context: TrainContext) -> None:
        """Open the model and the data, and continue from the last checkpoint if there is one."""
        import ray.train

        self.context, self.recipe, self.folder = context, context.recipe, context.folder
        ranks = ray.train.get_context()
        self.rank, self.world = ranks.get_world_rank(), ranks.get_world_size()
        with opened(ray.train.get_checkpoint()) as checkpoint:
            self.state = TrainState.load(checkpoint)
            self.resumed_from_step = self.state.step
            # First of all, because reading starts in the background.
            self.loader = RankDataLoader(context, self.state.data, self.rank, self.world)
            self._open_model()
            self._choose_layers()
            self._shard(checkpoint)
        self._preemption_deadline: int | None = -1
        """Deadline of the last preemption that a checkpoint was saved for."""

    def _open_model(self) -> None:
        import torch
        from ray.train.torch import get_device

        from consomme.models.batches import Batcher
        from consomme.models.chat_prefix import chat_encoder_for
        from consomme.models.weights import open_model
        from consomme.train.batch_check import SINGLE, row_layout
        from consomme.train.filler import make_filler
        from consomme.train.trainable import disable_kv_cache

        torch.manual_seed(self.recipe.seed)
        torch.set_num_threads(max(1, int(self.recipe.cpus_per_worker)))
        self.device = get_device()
        self.model, processor = open_model(model_folder(self.context.start))
        disable_kv_cache(self.model)
        self.chat = chat_encoder_for(self.model.config, processor, self.recipe.template)
        self.num_layers: int = self.model.config.get_text_config().num_hidden_layers
        batcher = Batcher(self.model, self.chat.tokenizer)
        self.check = self._check_batches(batcher)
        layout = row_layout(
            self.check,
            batcher,
            micro_batch=self.recipe.micro_batch,
            pack_tokens=self.recipe.pack_tokens,
        )
        self.filler = make_filler(
            self.chat,
            self.model.config,
            self.check.filler_way,
            is_in_every_pass=self.world > 1,
            has_row=self.check.way != SINGLE,
        )
        if self.check.several_refused is not None:
            self.loader.refuse_several_images(self.check.several_refused)
        self.collator = Collator(batcher=batcher, chat=self.chat, layout=layout, filler=self.filler)

    def _check_batches(self, batcher: Batcher) -> SelfCheck:
        """Find out on rank 0 how samples can be put into rows; the same answer on all ranks.

        Raises:
            ConsommeError: The model cannot be trained; raised on all ranks.
        """
        import ray.train.collective

        outcome: SelfCheck | ConsommeError | None = None
        if self.rank == 0:
            try:
                outcome = self._checked_batches(batcher)
            except ConsommeError as error:
                outcome = error
        outcome = ray.train.collective.broadcast_from_rank_zero(outcome)
        if isinstance(outcome, ConsommeError):
            raise outcome
        assert outcome is not None
        return outcome

    def _checked_batches(self, batcher: Batcher) -> SelfCheck:
        from consomme.train.batch_check import check_batches, on_device

        with on_device(self.model, self.device):
            check = check_batches(
                self.model,
                self.chat,
                batcher,
                packs=self.recipe.pack_tokens is not None,
                model_hash=self.context.model_hash,
            )
        logger.info("train: %s", check.line())
        self.folder.store.write(SELF_CHECK, check.to_json())
        return check

    def _choose_layers(self) -> None:
        self.selector = LAYER_SELECTORS.build(self.recipe.layers, "layers")
        if self.state.layers is None:
            self.state.scores = self.selector.score(
                ScoringInputs(model=self.model, chat=self.chat, batches=self._scoring_batches)
            )
            self.state.layers = list(self.selector(self.num_layers, self.state.scores))
        self.selected = tuple(self.state.layers)
        steps = range(self.recipe.num_steps)
        self.every_layer = sorted({index for step in steps for index in self._layers_at(step)})

    def _layers_at(self, step: int) -> tuple[int, ...]:
        return self.selector.layers_at(step, self.selected, self.num_layers)

    def _scoring_batches(self, num_samples: int) -> Iterator[dict[str, Any]]:
        from consomme.train.batch_check import row_layout

        samples = self.loader.first_samples(num_samples)
        layout = row_layout(
            self.check, self.collator.batcher, micro_batch=SCORING_BATCH, pack_tokens=None
        )
        for indices in layout.batches(
            [sample.num_tokens for sample in samples], [sample.num_images for sample in samples]
        ):
            yield self.collator.collate([samples[k] for k in indices])

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
        """Mark what is trained, prepare the model, and shard it over the ranks."""
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
        if self.selector.is_rotating:
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
            first = self.collator.collate(self.loader.first_samples(1))
            image = None
            if self.filler is not None:
                # The first sample may have no image, and others have some.
                image = self.collator.batcher.collate([self.filler.row])

            def loss_of(bare: Any) -> Any:
                loss = sum_nll(bare, first)
                return loss if image is None else loss + sum_nll(bare, image)

            self.state.unused = list(freeze_unused(model, loss_of))
        else:
            freeze(model, self.state.unused)
        if recipe.neftune_alpha:
            add_noise(model, recipe.neftune_alpha)
        if recipe.compile:
            compile_layers(model, recipe.compile)
        shard = PARALLELISMS.build(recipe.parallelism, "parallelism")
        self.sharded = shard(model, self.trained.groups, self.device, trainable_names)
        if checkpoint:
            self.sharded.load(checkpoint)

    def train(self) -> TrainResult:
        """Train to the end; rank 0 exports the model."""
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
        self.loader.start(self.collator, self.device, recipe.num_steps - self.state.step)
        self._start_report(self.state.step + 1)
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
                    watch=LossWatch(recipe.max_loss_ratio, self.state.losses),
                )
            except DivergedError as error:
                self._roll_back(error)
        # Before the export, whose memory is not that of training.
        peak = peak_bytes(self.device)
        counts = self.loader.check()
        weights = self.sharded.trainable_state_dict()
        written: dict[str, FileSum] = {}
        if self.rank == 0 and recipe.export_checkpoint == "last":
            written = export(self.context, self.selected, weights)
        return TrainResult(
            counts=counts,
            layers=self.every_layer,
            lowest_layer=self.trained.lowest_layer,
            layer_scores=self.state.scores,
            num_layers=self.num_layers,
            trainable=[dataclasses.asdict(row) for row in self.trained.rows],
            unused=self.state.unused,
            num_trainable=self.trained.num_trained,
            num_parameters=self.trained.num_parameters,
            world_size=self.world,
            resumed_from_step=self.resumed_from_step,
            rows=self.check.way,
            rollbacks=self.state.rollbacks,
            optimizer_bytes=optimizer_bytes(self.sharded.optimizer),
            peak_bytes=peak,
            written=written,
        )

    def _batches(self, step: int) -> list[dict[str, Any]]:
        import torch

        # Random numbers of a step, such as dropout, do not depend on the steps before it.
        torch.manual_seed(
            (self.recipe.seed * self.recipe.num_steps + step) * self.world + self.rank
        )
        batches, self.state.data = self.loader.next()
        return batches

    def _after_step(self, report: StepReport) -> None:
        """Record a finished step; report steps and save a checkpoint when they are due."""
        self.state.record(dataclasses.asdict(report))
        is_saved = (
            report.step % self.recipe.checkpoint_every == 0
            or report.step == self.recipe.num_steps
            or self.recipe.evaluation.is_due(report.step, self.recipe.num_steps)
            or self._is_preempted(report.step)
        )
        if is_saved or report.step >= self._next_report:
            self._report_steps()
        if is_saved:
            self._save_checkpoint(report)

    def _start_report(self, next_report: int) -> None:
        """Collect steps for a report after step `next_report`."""
        self._reported_step, self._reported_at = self.state.step, time.monotonic()
        self._next_report = next_report

    def _report_steps(self) -> None:
        """Report the steps since the last report, and agree on the step of the next one.

        Checkpoints are saved after a report, so an attempt that was overtaken saves none.

        A report is a barrier, so all ranks have to report after the same step, while clocks differ:
        rank 0 decides. Reports and checkpoints arrive in the order in which they are made, so
        while a large checkpoint is uploaded in the background, steps wait behind it.

        Raises:
            SupersededError: The run was started again elsewhere; raised on all ranks.
        """
        import ray.train
        import ray.train.collective

        ray.train.report(
            {STEPS: StepBatch(self.state.unreported)} if self.rank == 0 else {},
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
        )
        self.state.unreported = []
        num_steps = self.state.step - self._reported_step
        seconds = time.monotonic() - self._reported_at
        # The receiver rewrites the whole curve, so a long one is reported less often.
        interval_s = max(self.context.report_every_s, self.state.step / 1000)
        num_next = min(round(num_steps * interval_s / seconds), MAX_REPORT_GROWTH * num_steps)
        overtaken = self._overtaken() if self.rank == 0 else None
        num_next, overtaken = ray.train.collective.broadcast_from_rank_zero(
            (max(1, num_next), overtaken)
        )
        if overtaken is not None:
            raise SupersededError(overtaken)
        self._start_report(self.state.step + num_next)

    def _overtaken(self) -> str | None:
        """Return why this attempt has to stop; None if it is the last one."""
        try:
            self.context.check_current()
        except SupersededError as error:
            return str(error)
        return None

    def _save_checkpoint(self, report: StepReport) -> None:
        import ray.train
        from safetensors.torch import save_file

        # Ray Train uploads the folder in the background, and deletes it afterwards.
        scratch = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=process_scratch()))
        self.sharded.save(scratch)
        evaluation = self.recipe.evaluation
        is_evaluated = evaluation.is_wanted and (
            not evaluation.has_own_steps or evaluation.is_due(report.step, self.recipe.num_steps)
        )
        if is_evaluated:
            weights = self.sharded.trainable_state_dict()
            if self.rank == 0:
                save_file({k: v.contiguous() for k, v in weights.items()}, scratch / WEIGHTS)
        if self.rank == 0:
            self.state.save(scratch)
        checkpoint = None
        if any(scratch.iterdir()):
            checkpoint = ray.train.Checkpoint.from_directory(str(scratch))
        else:
            scratch.rmdir()
        ray.train.report(
            {"step": report.step, "loss": report.loss},
            checkpoint=checkpoint,
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=partial(upload, self.context.folder_url, self.rank),
            validation=is_evaluated,
        )

    def _is_preempted(self, step: int) -> bool:
        """Whether a node is about to be preempted; the same answer on all ranks."""
        import ray.train

        if step % PREEMPTION_CHECK_STEPS or self.context.is_private:
            return False
        info = ray.train.get_preemption_info()
        if info is None or info.deadline_ms == self._preemption_deadline:
            return False
        self._preemption_deadline = info.deadline_ms
        return True

    def _roll_back(self, error: ConsommeError) -> None:
        """Load weights and optimizer of the last checkpoint; the data continues from here.

        Every rank has the same losses, so all of them call this together.

        Raises:
            ConsommeError: There is no checkpoint, or the run was rolled back too often.
        """
        from ray.train import CheckpointConsistencyMode, get_all_reported_checkpoints

        rollbacks = [*self.state.rollbacks, str(error)]
        # Waits for uploads: all ranks have to load the same checkpoint.
        checkpoints = get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)
        if not checkpoints or len(rollbacks) > self.recipe.max_rollbacks:
            raise error
        last = max(checkpoints, key=lambda one: one.metrics["step"]).checkpoint
        diverged_step = self.state.step + 1
        data = self.state.data
        with opened(last) as checkpoint:
            self.state = TrainState.load(checkpoint)
            self.state.data, self.state.rollbacks = data, rollbacks
            if self.selector.is_rotating:
                # The optimizer needs the parameter groups that it had at the checkpoint.
                self.sharded.set_param_groups(
                    self._apply_trainability(self._layers_at(max(0, self.state.step - 1)))
                )
            self.sharded.load(checkpoint)
        self._start_report(self.state.step + 1)
        self.loader.add_steps(diverged_step - self.state.step)
        logger.warning(
            "%s; continuing from step %d with other samples (rollback %d of at most %d)",
            error,
            self.state.step,
            len(rollbacks),
            self.recipe.max_rollbacks,
        )
