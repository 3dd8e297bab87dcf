"""Drive the trials of a sweep without Ray Tune's search: in order, each once."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, replace

from consomme.base.manifest import Manifest
from consomme.execution.runs import RunNotDoneError, looking
from consomme.pipelines.evaluate import run as evaluate
from consomme.pipelines.sweep.plan import SweepPlan
from consomme.pipelines.sweep.trial import Trial, checkpoint_losses
from consomme.pipelines.train import run as train
from consomme.pipelines.train.outputs import CURVE
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.stores.store import Store
from consomme.sweep.stoppers import Asha

logger = logging.getLogger(__name__)


class Walk:
    """The trials of a sweep, as far as they were asked for."""

    def __init__(self, plan: SweepPlan, store: Store) -> None:
        """Take up what earlier attempts wrote down."""
        self.plan, self.store = plan, store
        self.search = plan.searcher.begin(plan.space, plan.mode)
        self.trials: list[Trial] = []
        self._again: list[int] = []
        self._running: dict[str, list[Trial]] = {}
        self._stopper = plan.stopper if isinstance(plan.stopper, Asha) else None
        while store.exists(_path(len(self.trials))):
            trial = Trial(**json.loads(store.read(_path(len(self.trials)))))
            self.search.recall(trial.keys)
            self.trials.append(trial)
            if trial.state == "stopped":
                self.search.tell(trial.number, None)
            elif trial.state == "done" and self._look(trial):
                self.search.tell(trial.number, trial.value)
            else:
                # Failures are tried again: what was wrong may have been mended.
                self._again.append(trial.number)

    @property
    def num_ended(self) -> int:
        """Trials that something came of."""
        return sum(trial.state != "asked" for trial in self.trials)

    def next(self) -> Trial | None:
        """The next trial that is to be begun, written down; None if there is none left.

        One that makes the same run as another that goes on ends with it.
        """
        while (trial := self._ask()) is not None:
            done = self._look(trial)
            if done is not None:
                logger.info("sweep: trial %s is done already", done.name)
                self.end(done)
                continue
            twins = self._running.setdefault(self.plan.mark(trial.keys), [])
            twins.append(trial)
            if len(twins) == 1:
                return trial
        return None

    def _ask(self) -> Trial | None:
        if self._again:
            return self.trials[self._again.pop(0)]
        keys = self.search.ask()
        if keys is None:
            return None
        trial = Trial(number=len(self.trials), keys=keys)
        self.trials.append(trial)
        self._write(trial)
        return trial

    def _look(self, trial: Trial) -> Trial | None:
        """Find a trial done, by whomever."""
        try:
            with looking():
                trained = train.run(self.plan.train_recipe(trial.keys))
                judge = self.plan.evaluate_recipe(trained.name, trained.url)
                judged = evaluate.run(judge) if judge else None
        except RunNotDoneError:
            return None
        return self.finished(trial, trained, judged)

    def finished(self, trial: Trial, trained: Manifest, judged: Manifest | None) -> Trial:
        """Gather what a trial's runs say."""
        metrics = {**trained.metrics, **(judged.metrics if judged else {})}
        metrics |= {
            name: float(trained.decisions[name]) for name in ("optimizer_bytes", "num_trainable")
        }
        return replace(
            trial,
            state="done",
            reason="",
            train=trained.url,
            evaluate=judged.url if judged else "",
            value=metrics[self.plan.metric],
            rungs=self._rungs(trained.url) or trial.rungs,
            metrics=metrics,
        )

    def _rungs(self, url: str) -> dict[str, float]:
        """What a stopper would have seen of a training."""
        if self._stopper is None:
            return {}
        folder = RunFolder.at(url)
        curve = json.loads(folder.store.read(CURVE))
        every = int(folder.manifest().recipe["checkpoint_every"])
        losses = checkpoint_losses(curve, every)
        return {
            str(step): losses[step // every - 1]
            for step in self._stopper.rungs(len(curve))
            if step % every == 0
        }

    def goes_on(self, number: int, step: int, loss: float) -> bool:
        """Whether a trial that has come this far is worth going on with; writes it down."""
        assert self._stopper is not None
        own = self.trials[number]
        if step not in self._stopper.rungs(step + 1):
            return True
        self.trials[number] = replace(own, rungs={**own.rungs, str(step): loss})
        self._write(self.trials[number])
        reached = [t.rungs[str(step)] for t in self.trials if str(step) in t.rungs]
        return self._stopper.goes_on(loss, reached)

    def end(self, trial: Trial) -> None:
        """Take what came of a trial."""
        twins = self._running.pop(self.plan.mark(trial.keys), [trial])
        for twin in twins:
            ended = replace(trial, number=twin.number, keys=twin.keys)
            self.trials[twin.number] = ended
            self._write(ended)
            self.search.tell(twin.number, ended.value)

    def _write(self, trial: Trial) -> None:
        self.store.write(_path(trial.number), json.dumps(asdict(trial), indent=1).encode())


def _path(number: int) -> str:
    return f"trials/{number:05d}.json"
