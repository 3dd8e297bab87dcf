"""Run trials on Ray Tune: one ask-and-tell searcher and one trainable for every verb.

A verb says which trials to run (a `TrialSource`) and how to run one (a `TrialRunner`); neither of
them knows Ray Tune. Ray Tune keeps no state for us: a verb resumes from what it has stored itself,
so the searcher and the trainable save nothing.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from consomme.base.errors import ClusterError, ConsommeError
from consomme.base.places import Scratch
from consomme.execution.errors import (
    UnexpectedError,
    find_own,
    pack_error,
    unpack_error,
    without_secrets,
)

logger = logging.getLogger(__name__)

_TUNE_LOGGERS = ("ray.tune.execution.tune_controller", "ray.tune.tune")
"""They write a trial's error with Ray's stack trace, and its number once more."""

MAX_LOST = 2
"""How often a trial is begun again after its process was lost, as in trainings."""

_ERROR, _UNEXPECTED = "consomme_error", "unexpected_error"
"""Keys of a report: what the runner raised, as `pack_error` writes it; and the text of an error
that is not ours. If a trial raised them, it would count as lost, and begin again."""

Config = dict[str, Any]
"""Configuration of one trial; has to be picklable."""


class TrialSource(Protocol):
    """Proposes trials and receives their results, in the process that runs `run_trials`."""

    @property
    def is_finished(self) -> bool:
        """Whether `ask` will return no more trials; read after `ask` returned None."""

    def ask(self) -> Config | None:
        """Return the configuration of the next trial; None if there is none at the moment.

        It may block only while no trial is running: Ray Tune delivers results in between.
        """

    def tell(self, config: Config, result: Mapping[str, Any] | None) -> None:
        """Receive the result of a trial that has ended.

        Args:
            config: As returned by `ask`.
            result: Last report of the trial; None if it raised an error, or if its process was lost
                more than `MAX_LOST` times.
        """


class TrialRunner(Protocol):
    """Runs trials one after the other, in a Ray actor."""

    def start(self, config: Config) -> None:
        """Prepare the next trial; the work begins with the first `step`."""

    def step(self) -> dict[str, Any]:
        """Work until there is something to report; the last report has `done: True`."""

    def stop(self) -> None:
        """End the current trial and free what it holds, also if it is not done."""


def run_trials(
    source: TrialSource,
    first: Config,
    runner: Callable[..., TrialRunner],
    parameters: Mapping[str, Any],
    *,
    resources: Mapping[str, float],
    max_concurrent: int,
    should_continue: Callable[[Config, Mapping[str, Any]], bool] | None = None,
) -> list[Exception]:
    """Run the trials of a source until it is finished.

    Actors are reused: a runner that has loaded a model keeps it for its next trial. A trial whose
    process was lost begins again in another one, up to `MAX_LOST` times.

    Args:
        source: Proposes trials and receives their results.
        first: The first trial, already taken from `source`: a caller asks for it before it starts
            Ray, because there may be none.
        runner: Makes a runner in each actor; picklable.
        parameters: Keyword arguments of `runner`.
        resources: Resources of one actor by Ray's names.
        max_concurrent: Maximum number of trials running at the same time.
        should_continue: Called with the configuration and each report of a trial that is not done;
            False stops the trial early. None never stops one.

    Returns:
        Errors of trials, those of consomme as the runner raised them, and then a `ClusterError` for
        each trial whose process was lost too often.
    """
    from ray import tune

    # Errors are returned: whoever handles them says what has to be said.
    for name in _TUNE_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    trainable = tune.with_resources(
        tune.with_parameters(_trainable(), runner=runner, parameters=dict(parameters)),
        tune.PlacementGroupFactory([dict(resources)]),
    )
    searcher = _searcher(source, first)
    with Scratch() as scratch:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=None if should_continue is None else _scheduler(should_continue),
                num_samples=-1,
                max_concurrent_trials=max_concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                verbose=0,
                storage_path=str(scratch),
                failure_config=tune.FailureConfig(max_failures=MAX_LOST),
                callbacks=[_reporter_of_losses()],
            ),
        )
        lost = tuner.fit().errors
    return [*searcher.raised, *map(_loss, lost)]


def _loss(error: Exception) -> ConsommeError:
    own = find_own(error)
    if own is not None:
        return own
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return ClusterError(
        f"the process of a trial was lost {MAX_LOST + 1} times, the last time with: {reason}; run"
        " the same command again to go on"
    )


def _searcher(source: TrialSource, first: Config) -> Any:
    from ray.tune.search import Searcher

    class AskTellSearcher(Searcher):  # type: ignore[misc]
        """Takes trials from a source and returns their results to it."""

        def __init__(self, source: TrialSource, first: Config) -> None:
            super().__init__()
            self.source = source
            self.first: Config | None = first
            self.running: dict[str, Config] = {}
            self.raised: list[Exception] = []

        def __getstate__(self) -> dict[str, Any]:
            """Pickle nothing: Ray Tune pickles searchers to restore them, which we never do."""
            return {}

        def suggest(self, trial_id: str) -> Any:
            config, self.first = self.first, None
            if config is None:
                config = self.source.ask()
            if config is None:
                return Searcher.FINISHED if self.source.is_finished else None
            self.running[trial_id] = config
            return config

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            config = self.running.pop(trial_id)
            raised = _error_of(result or {})
            if raised is not None:
                self.raised.append(raised)
            has_failed = error or raised is not None
            self.source.tell(config, None if has_failed else result or None)

        def save(self, checkpoint_path: str) -> None:
            Path(checkpoint_path).write_text("{}")

        def restore(self, checkpoint_path: str) -> None:
            Path(checkpoint_path).read_text()

    return AskTellSearcher(source, first)


def _scheduler(should_continue: Callable[[Config, Mapping[str, Any]], bool]) -> Any:
    from ray.tune.schedulers import FIFOScheduler

    class EarlyStopScheduler(FIFOScheduler):  # type: ignore[misc]
        """Stops trials for which `should_continue` is False."""

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            if result.get("done") or should_continue(trial.config, result):
                return str(FIFOScheduler.CONTINUE)
            return str(FIFOScheduler.STOP)

    return EarlyStopScheduler()


def _reporter_of_losses() -> Any:
    from ray import tune

    class LossReporter(tune.Callback):  # type: ignore[misc]
        """Says that a trial begins again."""

        def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            logger.warning(
                "the process of a trial was lost; it begins again (%d of at most %d times)",
                trial.num_failures,
                MAX_LOST,
            )

    return LossReporter()


def _report_of(error: Exception) -> dict[str, Any]:
    own = find_own(error)
    if own is not None:
        return {_ERROR: pack_error(own), "done": True}
    text = "".join(traceback.format_exception(without_secrets(error)))
    return {_UNEXPECTED: text, "done": True}


def _error_of(report: Mapping[str, Any]) -> Exception | None:
    if _ERROR in report:
        return unpack_error(report[_ERROR])
    return UnexpectedError(report[_UNEXPECTED]) if _UNEXPECTED in report else None


def _trainable() -> Any:
    from ray import tune

    class RunnerTrainable(tune.Trainable):  # type: ignore[misc]
        """Runs the trials of one actor with a `TrialRunner`."""

        def setup(self, config: Config, runner: Any = None, parameters: Any = None) -> None:
            self.make_runner: Callable[[], TrialRunner] = partial(runner, **parameters)
            self.runner: TrialRunner | None = None
            self.next_config: Config | None = config

        def step(self) -> dict[str, Any]:
            try:
                if self.runner is None:
                    self.runner = self.make_runner()
                if self.next_config is not None:
                    self.runner.start(self.next_config)
                    self.next_config = None
                return self.runner.step()
            except Exception as error:  # noqa: BLE001 - raised again by whoever runs the trials
                return _report_of(error)

        def reset_config(self, new_config: Config) -> bool:
            if self.runner is not None:
                self.runner.stop()
            self.next_config = new_config
            return True

        def cleanup(self) -> None:
            if self.runner is not None:
                self.runner.stop()

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
            """Save nothing: a trial is defined by its configuration."""
            return {}

        def load_checkpoint(self, checkpoint: Any) -> None:
            """Load nothing: nothing was saved."""

    return RunnerTrainable
