"""What the workers of a training run are given, and what they return.

The driver resolves a `TrainContext` once, before Ray Train starts; rank 0 returns a `TrainResult`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from consomme.base.manifest import FileSum
from consomme.evaluate.benchmark import portable_node
from consomme.execution.session import is_private
from consomme.pipelines.train.recipe import TrainRecipe, TrainSource
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.model_folder import portable_path
from consomme.storage.shards import shard_urls
from consomme.storage.stores.open import absolute_url
from consomme.storage.stores.store import join_url


@dataclass(frozen=True, kw_only=True)
class TrainContext:
    """One training run, as every process that takes part in it sees it."""

    recipe: TrainRecipe
    """The recipe with absolute paths: Ray Train's workers have another current directory."""

    start: str
    """The model that training starts from, as `model_folder` takes it on any machine."""

    folder_url: str
    """Absolute URL of the run folder."""

    is_private: bool
    """Whether Ray was started for this command only. Workers cannot tell by themselves."""

    model_hash: str | None = None
    """Of the content of `start`; the self-check is cached under it."""

    attempt_no: int = 0
    """Number of this attempt in the ledger; 0 if there is no ledger."""

    cache_url: str = ""
    """Where answers to benchmarks are cached."""

    @classmethod
    def resolve(
        cls, recipe: TrainRecipe, folder: RunFolder, model_hash: str, attempt_no: int
    ) -> TrainContext:
        """Resolve paths and the Ray session; called by the driver."""
        return cls(
            recipe=with_absolute_paths(recipe),
            start=portable_path(recipe.model),
            folder_url=absolute_url(folder.url),
            is_private=is_private(),
            model_hash=model_hash,
            attempt_no=attempt_no,
            cache_url=join_url(absolute_url(recipe.root), "cache"),
        )

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return RunFolder.at(self.folder_url)

    def check_current(self) -> None:
        """Check that the same run was not started again elsewhere.

        Raises:
            SupersededError: It was; this attempt has to stop.
        """
        if self.attempt_no:
            self.folder.check_current(self.attempt_no)

    @property
    def report_every_s(self) -> float:
        """Seconds between reports of steps.

        Ray Train's controller polls its workers every 0.5 s in a private session and every 2 s on
        a cluster, and takes one report per poll, so reports have to come less often than that.
        """
        return 2.0 if self.is_private else 5.0


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What came of a training run."""

    counts: dict[str, int]
    """Samples and rejects."""

    layers: list[int]
    """Layers of the language model that received updates in any step."""

    lowest_layer: int | None
    """Lowest layer that gradients pass through; see `Trained`."""

    layer_scores: list[float] | None
    """One per layer, if layers were selected by score."""

    num_layers: int
    trainable: list[dict[str, Any]]
    """`TrainableRow` of each part and layer, as plain values."""

    unused: list[str] | None
    """Parameters that were frozen because the loss does not depend on them."""

    num_trainable: int
    num_parameters: int
    world_size: int
    resumed_from_step: int
    rollbacks: list[str]
    """Why training went back to a checkpoint, each time."""

    optimizer_bytes: int
    """Optimizer state on rank 0."""

    peak_bytes: int
    """Peak memory of the rank that held most."""

    rows: str = ""
    """How samples were put into rows, as the self-check found it: `packed rows`, …"""

    written: dict[str, FileSum] = dataclasses.field(default_factory=dict)
    """Sums of the files of the exported model, by path in the run folder."""

    exported_step: int | None = None
    """Step of the exported checkpoint with `export_checkpoint=best`; set by the driver."""

    choice: dict[str, Any] | None = None
    """How checkpoints compare by benchmark and guards, and which one is exported; set by the
    driver."""

    flops_per_token: float = 0.0
    """As planned: operations per position, forward and backward; set by the driver."""

    gpu_name: str | None = None
    """Set by the driver."""

    @property
    def decisions(self) -> dict[str, Any]:
        """What the manifest keeps as decisions."""
        plain = dataclasses.asdict(self)
        for name in ("counts", "peak_bytes", "written"):
            del plain[name]
        for name in ("exported_step", "choice"):
            if plain[name] is None:
                del plain[name]
        return plain


def with_absolute_paths(recipe: TrainRecipe) -> TrainRecipe:
    """Make the paths of the data and of `layers.tuned` absolute, and shard_urls globs."""

    def absolute(source: TrainSource) -> TrainSource:
        return dataclasses.replace(
            source,
            view=source.view and absolute_url(source.view),
            inputs=tuple(shard_urls(source.inputs)) if source.inputs else (),
            captions=source.captions and absolute_url(source.captions),
            reading=source.reading.anywhere(),
        )

    evaluation = dataclasses.replace(
        recipe.evaluation,
        data=tuple(map(absolute, recipe.evaluation.data)),
        benchmark=recipe.evaluation.benchmark and portable_node(recipe.evaluation.benchmark),
        guards=tuple(
            dataclasses.replace(guard, benchmark=portable_node(guard.benchmark))
            for guard in recipe.evaluation.guards
        ),
        report=tuple(map(portable_node, recipe.evaluation.report)),
    )
    layers = recipe.layers
    if tuned := layers.get("tuned"):
        layers = layers | {"tuned": portable_path(tuned)}
    return dataclasses.replace(
        recipe, data=tuple(map(absolute, recipe.data)), evaluation=evaluation, layers=layers
    )
