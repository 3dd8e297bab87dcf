"""What the task that prunes is given, and what it returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from consomme.base.manifest import FileSum
from consomme.pipelines.prune.recipe import PruneRecipe
from consomme.pipelines.train.recipe import TrainRecipe
from consomme.storage.ledger.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class PruneInputs:
    """The resolved inputs of a prune recipe."""

    model: str
    """Where any node finds the model; see `portable_path`."""

    model_hash: str
    base: str | None
    """The model that the measure compares with, as `model`."""

    revert_to: str | None
    """The model whose layers are put back, as `model`."""

    region: tuple[int, ...] | None
    """Layers that the train run of `protect_run` selected; None without one."""

    region_depth: int = 0
    """Layers of that run's model."""


@dataclass(frozen=True, kw_only=True)
class PruneJob:
    """All that a process on any machine needs."""

    recipe: PruneRecipe
    """Its benchmarks are portable."""

    calibration: TrainRecipe | None
    """The recipe of the calibration samples, with paths for any machine; None without data."""

    inputs: PruneInputs
    folder: RunFolder
    cache_url: str
    """Where answers are cached."""


@dataclass(kw_only=True)
class PruneOutcome:
    """What was measured and written."""

    num_layers: int
    protected: list[int]
    samples: list[str] = field(default_factory=list)
    """Ids of the calibration samples."""

    scores: list[float] = field(default_factory=list)
    """Importance of each single layer of the whole model."""

    models: list[dict[str, Any]] = field(default_factory=list)
    """For each number of layers: what was removed, what it costs, and what it answers."""

    main_figures: dict[str, str] = field(default_factory=dict)
    """Name of the figure that counts, by benchmark."""

    chosen: int = 0
    """Number of layers that the model of the run lacks."""

    guards: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    """Findings by number of removed layers."""

    diagnostics: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    written: dict[str, FileSum] = field(default_factory=dict)

    @property
    def decisions(self) -> Mapping[str, Any]:
        """What the manifest keeps."""
        return {
            "num_layers": self.num_layers,
            "protected": self.protected,
            "scores": self.scores,
            "models": self.models,
            "main_figures": self.main_figures,
            "chosen": self.chosen,
            "samples": self.samples,
            **({"guards": {str(k): v for k, v in self.guards.items()}} if self.guards else {}),
            **({"diagnostics": self.diagnostics} if self.diagnostics else {}),
            **({"notes": self.notes} if self.notes else {}),
        }
