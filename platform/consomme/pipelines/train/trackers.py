"""Send a run's metrics to trackers while it trains: TensorBoard, MLflow, Weights & Biases.

The command that started the run sends them, not the workers, so credentials stay with the user. A
run that resumes sends only new steps.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from consomme.base.errors import RecipeError
from consomme.base.registry import Registry
from consomme.base.secrets import written


class MetricsWriter(Protocol):
    """An open tracker."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Send the metrics of one step."""

    def close(self) -> None:
        """Send what is buffered, and close."""


class Tracker(Protocol):
    """A service or file that metrics are sent to."""

    def __call__(
        self, folder: str, name: str, fingerprint: str, recipe: Mapping[str, Any]
    ) -> MetricsWriter:
        """Open the tracker, or open it again when the run resumes.

        Args:
            folder: The run folder.
            name: Of the run.
            fingerprint: The run's; a resumed run is identified by it.
            recipe: The recipe as plain values.

        Raises:
            RecipeError: The tracker's package is not installed.
        """


TRACKERS: Registry[Tracker] = Registry("tracker", "consomme/pipelines/train/trackers.py")


@TRACKERS.register("tensorboard")
@dataclass(frozen=True, kw_only=True)
class TensorBoard:
    """Event files for `tensorboard --logdir`."""

    folder: str | None = None
    """Where event files are written; None writes into the run folder, as `tensorboard/`."""

    def __call__(
        self, folder: str, name: str, fingerprint: str, recipe: Mapping[str, Any]
    ) -> MetricsWriter:
        """Open an event file; a resumed run adds another file."""
        from tensorboardX import SummaryWriter

        place = (
            f"{folder}/tensorboard"
            if self.folder is None
            else f"{self.folder}/{name}-{fingerprint}"
        )
        # By default the name holds only the second of opening, so a file that is opened in the same
        # second would replace this one.
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
    """URI of the tracking server; None uses MLFLOW_TRACKING_URI."""

    experiment: str = "consomme"
    """Name of the experiment; created if it does not exist."""

    def __call__(
        self, folder: str, name: str, fingerprint: str, recipe: Mapping[str, Any]
    ) -> MetricsWriter:
        """Open the run with this fingerprint, or a new one."""
        mlflow = _import_tracker("mlflow", "mlflow-skinny")
        client = mlflow.MlflowClient(self.uri)
        found = client.get_experiment_by_name(self.experiment)
        experiment = found.experiment_id if found else client.create_experiment(self.experiment)
        runs = client.search_runs([experiment], f"tags.`consomme.run` = '{fingerprint}'")
        if runs:
            run = runs[0].info.run_id
            client.update_run(run, status="RUNNING")
        else:
            tags = {"consomme.run": fingerprint, "mlflow.runName": name}
            run = client.create_run(experiment, tags=tags).info.run_id
            for key, value in recipe.items():
                # MLflow limits a parameter to 6,000 characters.
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
    """Name of the project."""

    entity: str | None = None
    """User or team; None uses the user's default."""

    mode: Literal["online", "offline"] = "online"
    """`offline` writes into the run folder, for `wandb sync` later."""

    def __call__(
        self, folder: str, name: str, fingerprint: str, recipe: Mapping[str, Any]
    ) -> MetricsWriter:
        """Open the run with this fingerprint, or a new one."""
        wandb = _import_tracker("wandb", "wandb")
        return _WeightsAndBiases(
            wandb.init(
                project=self.project,
                entity=self.entity,
                mode=self.mode,
                id=fingerprint,
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


def _import_tracker(module: str, package: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RecipeError(
            f"trackers: {module} is not installed ({error}); run `pip install {package}`, or"
            " remove this tracker from the recipe"
        ) from error


@contextmanager
def opened(
    nodes: tuple[dict[str, Any], ...],
    folder: str,
    name: str,
    fingerprint: str,
    recipe: Mapping[str, Any],
) -> Iterator[list[MetricsWriter]]:
    """Open the trackers of a recipe, and close them in any case.

    Args:
        nodes: Each with the `name` of a tracker and its options.
        folder: The run folder.
        name: Of the run.
        fingerprint: The run's.
        recipe: The recipe as plain values.

    Raises:
        RecipeError: A tracker's package is not installed.
    """
    # Whoever sees the tracker's page sees its parameters.
    recipe = written(recipe)
    with ExitStack() as stack:
        writers: list[MetricsWriter] = []
        for node in nodes:
            writer = TRACKERS.build(node, "trackers")(folder, name, fingerprint, recipe)
            stack.callback(writer.close)
            writers.append(writer)
        yield writers
