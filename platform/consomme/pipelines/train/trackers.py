"""Hand a run's figures on while it goes: TensorBoard, MLflow, Weights & Biases.

One decision is made here: the command that started the run hands them on, not the workers, from
what is in the run folder. So credentials stay with the user, and a run that goes on hands on only
what is new.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from consomme.base.errors import RecipeError
from consomme.base.registry import Registry


class MetricsWriter(Protocol):
    """An open sink."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Hand on the figures of one step."""

    def close(self) -> None:
        """Send what is left."""


class Tracker(Protocol):
    """Somewhere that figures go."""

    def __call__(
        self, folder: str, name: str, mark: str, recipe: Mapping[str, Any]
    ) -> MetricsWriter:
        """Open it, or open it again.

        Args:
            folder: The run folder.
            name: Of the run.
            mark: The run's fingerprint: the same run goes on under it.
            recipe: As plain values.

        Raises:
            RecipeError: Its package is not installed.
        """


TRACKERS: Registry[Tracker] = Registry("sink", "consomme/pipelines/train/trackers.py")


@TRACKERS.register("tensorboard")
@dataclass(frozen=True, kw_only=True)
class TensorBoard:
    """Event files for `tensorboard --logdir`."""

    folder: str | None = None
    """Where they are written; None puts them into the run folder, as `tensorboard/`."""

    def __call__(
        self, folder: str, name: str, mark: str, recipe: Mapping[str, Any]
    ) -> MetricsWriter:
        """Open a file of events; a run that goes on adds another file."""
        from tensorboardX import SummaryWriter

        place = f"{folder}/tensorboard" if self.folder is None else f"{self.folder}/{name}-{mark}"
        # By itself a file is named after the second it is opened in, and the next takes its place.
        return _TensorBoard(SummaryWriter(place, filename_suffix=f".{time.time_ns()}"))


class _TensorBoard:
    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


@TRACKERS.register("mlflow")
@dataclass(frozen=True, kw_only=True)
class MLflow:
    """A run of an MLflow experiment."""

    uri: str | None = None
    """Of the tracking server; None takes MLFLOW_TRACKING_URI."""

    experiment: str = "consomme"
    """Its name; made if there is none."""

    def __call__(
        self, folder: str, name: str, mark: str, recipe: Mapping[str, Any]
    ) -> MetricsWriter:
        """Open the run with this fingerprint, or a new one."""
        mlflow = _needed("mlflow", "mlflow-skinny")
        client = mlflow.MlflowClient(self.uri)
        found = client.get_experiment_by_name(self.experiment)
        experiment = found.experiment_id if found else client.create_experiment(self.experiment)
        runs = client.search_runs([experiment], f"tags.`consomme.run` = '{mark}'")
        if runs:
            run = runs[0].info.run_id
            client.update_run(run, status="RUNNING")
        else:
            tags = {"consomme.run": mark, "mlflow.runName": name}
            run = client.create_run(experiment, tags=tags).info.run_id
            for key, value in recipe.items():
                # A parameter of MLflow has at most 6,000 characters.
                client.log_param(run, key, str(value)[:6000])
        return _MLflow(client, run)


class _MLflow:
    def __init__(self, client: Any, run: str) -> None:
        self.client, self.run = client, run

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self.client.log_metric(self.run, name, value, step=step)

    def close(self) -> None:
        self.client.set_terminated(self.run)


@TRACKERS.register("wandb")
@dataclass(frozen=True, kw_only=True)
class WeightsAndBiases:
    """A run of a Weights & Biases project."""

    project: str = "consomme"
    """Its name."""

    entity: str | None = None
    """User or team; None takes the user's own."""

    mode: Literal["online", "offline"] = "online"
    """`offline` writes into the run folder, for `wandb sync` later."""

    def __call__(
        self, folder: str, name: str, mark: str, recipe: Mapping[str, Any]
    ) -> MetricsWriter:
        """Open the run with this fingerprint, or a new one."""
        wandb = _needed("wandb", "wandb")
        return _WeightsAndBiases(
            wandb.init(
                project=self.project,
                entity=self.entity,
                mode=self.mode,
                id=mark,
                name=name,
                resume="allow",
                config=dict(recipe),
                dir=None if "://" in folder else folder,
                settings=wandb.Settings(silent=True, console="off"),
            )
        )


class _WeightsAndBiases:
    def __init__(self, run: Any) -> None:
        self.run = run

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.run.log(dict(metrics), step=step)

    def close(self) -> None:
        self.run.finish()


def _needed(module: str, package: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RecipeError(
            f"trackers: {module} is not installed ({error}); run `pip install {package}`, or take"
            " this sink out of the recipe"
        ) from error


@contextmanager
def opened(
    nodes: tuple[dict[str, Any], ...], folder: str, name: str, mark: str, recipe: Mapping[str, Any]
) -> Iterator[list[MetricsWriter]]:
    """Open the sinks of a recipe, and close them in any case.

    Args:
        nodes: Each with the `name` of a sink and its options.
        folder: The run folder.
        name: Of the run.
        mark: The run's fingerprint.
        recipe: As plain values.

    Raises:
        RecipeError: The package of a sink is not installed.
    """
    with ExitStack() as stack:
        writers = []
        for node in nodes:
            writer = TRACKERS.build(node, "trackers")(folder, name, mark, recipe)
            stack.callback(writer.close)
            writers.append(writer)
        yield writers
