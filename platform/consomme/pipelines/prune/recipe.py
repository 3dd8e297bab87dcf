"""The recipe of `prune`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from consomme.base.bounds import NonNegativeInt, PositiveFloat, PositiveInt
from consomme.base.checked import Checked, rule
from consomme.base.needs import Need
from consomme.base.registry import Registry
from consomme.base.schema import located, own_modules, registry_of, runtime, strategy
from consomme.evaluate.guards import Guard
from consomme.evaluate.names import benchmark_name
from consomme.pipelines.train.recipe import TrainSource
from consomme.storage.options import StorageOptions


@dataclass(frozen=True, kw_only=True)
class LayerDiagnostics(Checked):
    """What the report shows of the layers of the whole model, beside what they scored."""

    attention: bool = False
    """Show the share of attention that text tokens give to images, by layer. Needs calibration
    samples with images, and a family that returns attention weights for every layer."""

    logit_lens: NonNegativeInt = 0
    """Number of words by layer that image tokens are nearest to, by the final norm and the output
    matrix; 0 shows none."""

    revert_to: str | None = located(None)
    """The model that `model` was tuned from: put each of its layers back, one at a time and in
    memory, and ask `benchmarks`. Layers whose training mattered lose most."""

    @property
    def needs_images(self) -> bool:
        """Whether calibration samples with images are needed."""
        return self.attention or self.logit_lens > 0


@dataclass(frozen=True, kw_only=True)
class PruneRecipe(Checked):
    """A model, and how many layers of its language model are removed."""

    name: str
    """Name of the run."""

    model: str = located()
    """Model to prune: a folder, a run, a URL, `org/name[@revision]` on the hub, or
    `package://models/nano`."""

    n_layers: NonNegativeInt | tuple[NonNegativeInt, ...]
    """Layers to remove; several numbers make a model and a row of the table for each. 0 is the
    model as it is, bit for bit."""

    data: tuple[TrainSource, ...] = ()
    """Calibration samples that layers are observed on, as in `train`; measures that compare weights
    with those of a base need none."""

    num_samples: PositiveInt = 32
    """Number of calibration samples, the same number from each source."""

    seed: int = 0
    """Seed of the choice of calibration samples."""

    prompt: str = "describe the image."
    """User turn placed before samples that have a caption only."""

    max_tokens: PositiveInt | None = None
    """Longest calibration sample in tokens, images included; longer ones are left out. None: as
    many as the model has positions."""

    template: dict[str, bool | int | str] = field(default_factory=dict)
    """Options of the model's chat template."""

    importance: dict[str, Any] = strategy(
        "consomme.prune.importance:LAYER_IMPORTANCES", default={"name": "angular_distance"}
    )
    """How much layers matter; see consomme/prune/importance.py."""

    choose: dict[str, Any] = strategy(
        "consomme.prune.choosing:LAYER_CHOICES", default={"name": "contiguous"}
    )
    """How layers are chosen by that; see consomme/prune/choosing.py."""

    protect: dict[str, Any] | None = strategy("consomme.train.layers:LAYER_SELECTORS", default=None)
    """Layers that stay: the visual region, selected as in `train`; null protects none."""

    protect_run: str | None = located(None)
    """A finished train run whose selected layers stay, instead of `protect`."""

    benchmarks: tuple[dict[str, Any], ...] = strategy(
        "consomme.evaluate.benchmarks:BENCHMARKS", default=()
    )
    """Benchmarks that each of the models answers, for the table; they choose nothing."""

    guards: tuple[Guard, ...] = ()
    """Benchmarks on which a pruned model may be only so much worse than the whole one: of several
    `n_layers` the largest one that loses no more becomes the model of the run."""

    modules: tuple[str, ...] = own_modules()
    """Python files of yours that register benchmarks or metrics: paths from the current directory,
    or beside the recipe. Their text goes to workers; what they import has to be installed there."""

    max_shard_gb: PositiveFloat | None = None
    """Largest file of weights, in GB (10^9 bytes); None: as large as the largest of the model."""

    diagnostics: LayerDiagnostics = field(default_factory=LayerDiagnostics)
    """What else the report shows of the layers."""

    root: str = runtime("runs")
    """Where run folders are created: a local path or a URL."""

    storage: StorageOptions = runtime(StorageOptions())
    """How patient the run is with its storage."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers of layers to remove, ascending, each once."""
        given = (self.n_layers,) if isinstance(self.n_layers, int) else self.n_layers
        return tuple(sorted(set(given)))

    @property
    def has_several(self) -> bool:
        """Whether a table of several models is wanted."""
        return not isinstance(self.n_layers, int)

    def needs(self, num_gpus: float) -> Iterator[Need]:
        """Yield what the run claims: one task, on a GPU if there is one."""
        yield Need(key="one task", cpus=1.0, gpus=1.0 if num_gpus else 0.0)

    def _class(self, name: str) -> Any:
        """Return the class of the strategy that a field names; nothing else of it is imported."""
        (found,) = (one for one in fields(self) if one.name == name)
        registry = registry_of(found)
        assert isinstance(registry, Registry)
        return registry.get(str(getattr(self, name)["name"]))

    @rule
    def _has_counts(self) -> Iterator[str]:
        if not self.counts:
            yield "n_layers: found an empty list, expected at least one number"

    @rule
    def _has_samples(self) -> Iterator[str]:
        measure = self._class("importance")
        if not self.data and not measure.compares and any(self.counts):
            yield (
                f"data: found no source, but {self.importance['name']} observes layers on samples;"
                " expected at least one {view: …} or {inputs: […]}"
            )
        if not self.data and self.diagnostics.needs_images:
            yield "data: found no source, but diagnostics show what layers do with images"

    @rule
    def _rescores_what_changes(self) -> Iterator[str]:
        choice = self._class("choose")
        measure = self._class("importance")
        if choice.can_rescore and measure.compares:
            yield (
                f"choose: {self.choose['name']} scores the layers anew after each removal, but"
                f" {self.importance['name']} stays as it is; set choose={{name: lowest}}"
            )

    @rule
    def _one_region(self) -> Iterator[str]:
        if self.protect is not None and self.protect_run is not None:
            yield "protect, protect_run: found both; choose one"
        if self.protect is None:
            return
        selector = self._class("protect")
        if selector.is_rotating:
            yield f"protect: {self.protect['name']} selects other layers in other steps"
        if str(self.protect["name"]) == "by_score" and not (
            self.data or str(self.protect.get("measure", "")).startswith("parameter_")
        ):
            yield "data: found no source, but protect selects layers by score on samples"

    @rule
    def _reversion_is_measured(self) -> Iterator[str]:
        if self.diagnostics.revert_to is not None and not self.benchmarks:
            yield "diagnostics.revert_to: found a model, but no benchmarks to ask"

    @rule
    def _benchmarks_have_names(self) -> Iterator[str]:
        names = [benchmark_name(one) for one in self.benchmarks]
        names += [benchmark_name(one.benchmark) for one in self.guards]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"benchmarks, guards: two are called {name}; give one a label"
