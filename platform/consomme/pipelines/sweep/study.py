"""The trials of a sweep, stored in its run folder: proposed, deduplicated, resumed, compared.

Each trial is written when it is proposed and again when it ends. A sweep that was interrupted
resumes with the same trials, and its searcher knows their results. Nothing here uses Ray.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace

from consomme.base.manifest import Manifest
from consomme.base.secrets import redact
from consomme.evaluate.guards import GuardFinding
from consomme.pipelines.evaluate import run as evaluate
from consomme.pipelines.sweep.evaluations import guard_findings
from consomme.pipelines.sweep.plan import SweepPlan
from consomme.pipelines.sweep.trial import Trial, checkpoint_losses
from consomme.pipelines.train import run as train
from consomme.pipelines.train.outputs import CURVE
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.stores.store import Store
from consomme.sweep.stoppers import Asha

logger = logging.getLogger(__name__)


class SweepStudy:
    """All trials that were proposed so far, and the search that proposes more."""

    def __init__(self, plan: SweepPlan, store: Store) -> None:
        """Load the trials of earlier attempts and replay them to the search.

        Args:
            plan: The checked sweep.
            store: Its run folder.
        """
        self.plan, self.store = plan, store
        self.search = plan.searcher.start(plan.space, plan.mode)
        self.trials: list[Trial] = []
        self._retries: list[int] = []
        self._running: dict[str, list[Trial]] = {}
        """Fingerprint of a training -> trials that share it."""

        self._stopper = plan.stopper if isinstance(plan.stopper, Asha) else None
        while store.exists(_path(len(self.trials))):
            trial = Trial(**json.loads(store.read(_path(len(self.trials)))))
            self.search.replay(trial.keys)
            self.trials.append(trial)
            if trial.state == "stopped":
                self.search.tell(trial.number, None)
            elif trial.state == "done" and self._find_done(trial):
                self.search.tell(trial.number, self.trials[trial.number].told_value)
            else:
                # Failed trials are retried: the cause may be gone.
                self._retries.append(trial.number)

    @property
    def num_ended(self) -> int:
        """Number of trials that are done, stopped or failed."""
        return sum(trial.state != "asked" for trial in self.trials)

    @property
    def is_waiting(self) -> bool:
        """Whether the next trial depends on the result of one that is running."""
        return self.search.is_waiting

    def ask(self) -> Trial | None:
        """Return the next trial that has to run, after writing it; None if there is none left.

        A trial whose runs are done already ends at once. A trial that has the same train run as one
        that is running is not returned; it ends with that one.
        """
        while (trial := self._next()) is not None:
            done = self._find_done(trial)
            if done is not None:
                logger.info("sweep: trial %s is done already", done.name)
                self.tell(done)
                continue
            same_run = self._running.setdefault(self.plan.fingerprint(trial.keys), [])
            same_run.append(trial)
            if len(same_run) == 1:
                return trial
        return None

    def _next(self) -> Trial | None:
        if self._retries:
            return self.trials[self._retries.pop(0)]
        keys = self.search.ask()
        if keys is None:
            return None
        trial = Trial(number=len(self.trials), keys=keys)
        self.trials.append(trial)
        self._write(trial)
        return trial

    def _find_done(self, trial: Trial) -> Trial | None:
        """Return the trial with its results if its runs are done, whoever made them."""
        train_recipe = self.plan.train_recipe(trial.keys)
        training = train.open_run(train_recipe)
        if not training.is_done:
            return None
        trained = training.folder.manifest()
        found = []
        for recipe in self.plan.evaluations_of(train_recipe, trained.url):
            evaluation = evaluate.open_run(recipe)
            if not evaluation.is_done:
                return None
            found.append(evaluation.folder.manifest())
        return self.with_results(trial, trained, found)

    def with_results(self, trial: Trial, trained: Manifest, evaluated: Sequence[Manifest]) -> Trial:
        """Return a trial as done, with the metrics of its runs.

        Args:
            trial: The trial.
            trained: Its training.
            evaluated: Its evaluations, in the order of `SweepPlan.evaluations_of`.
        """
        recipe = self.plan.recipe
        urls = [manifest.url for manifest in evaluated]
        measured = evaluated[0] if recipe.benchmarks else None
        guarded = evaluated[-1] if recipe.guards else None
        metrics = {**trained.metrics, **(measured.metrics if measured else {})}
        metrics |= {
            name: float(trained.decisions[name]) for name in ("optimizer_bytes", "num_trainable")
        }
        findings = guard_findings(recipe.guards, guarded) if guarded else []
        for finding in findings:
            metrics[f"guards/{finding.benchmark}/difference"] = finding.difference
        return replace(
            trial,
            state="done",
            reason="" if all(one.passes for one in findings) else _lost(findings),
            train=trained.url,
            evaluate=urls[0] if measured else "",
            guards=urls[-1] if guarded else "",
            findings=[finding.plain() for finding in findings],
            value=metrics[self.plan.metric],
            rungs=self._losses_at_rungs(trained.url) or trial.rungs,
            metrics=metrics,
        )

    def _losses_at_rungs(self, url: str) -> dict[str, float]:
        """Read from a finished training the losses that the stopper compares; step -> loss."""
        if self._stopper is None:
            return {}
        folder = RunFolder.at(url)
        curve = json.loads(folder.store.read(CURVE))
        every = int(folder.manifest().recipe["checkpoint_every"])
        losses = checkpoint_losses(curve, every)
        return {
            str(step): losses[step // every - 1]
            for step in self._stopper.rung_steps(len(curve))
            if step % every == 0
        }

    def should_continue(self, number: int, step: int, loss: float) -> bool:
        """Record the loss of a trial at a checkpoint, and say whether the trial continues.

        Args:
            number: Of the trial.
            step: Steps done.
            loss: Mean training loss since the previous checkpoint.
        """
        assert self._stopper is not None
        trial = self.trials[number]
        if step not in self._stopper.rung_steps(step + 1):
            return True
        self.trials[number] = replace(trial, rungs={**trial.rungs, str(step): loss})
        self._write(self.trials[number])
        losses = [t.rungs[str(step)] for t in self.trials if str(step) in t.rungs]
        return self._stopper.should_continue(loss, losses)

    def tell(self, trial: Trial) -> None:
        """Store the result of a trial, for all trials with the same train run."""
        same_run = self._running.pop(self.plan.fingerprint(trial.keys), [trial])
        for other in same_run:
            ended = replace(trial, number=other.number, keys=other.keys)
            self.trials[other.number] = ended
            self._write(ended)
            self.search.tell(other.number, ended.told_value)

    def _write(self, trial: Trial) -> None:
        content = {**asdict(trial), "reason": redact(trial.reason)}
        self.store.write(_path(trial.number), json.dumps(content, indent=1).encode())


def _lost(findings: Sequence[GuardFinding]) -> str:
    return "; ".join(f"lost more than allowed: {one.line}" for one in findings if not one.passes)


def _path(number: int) -> str:
    return f"trials/{number:05d}.json"
