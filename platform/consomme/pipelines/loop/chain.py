"""The stages of a loop and its rounds, as its recipe declares them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from consomme.base.bounds import PositiveInt
from consomme.base.checked import Checked, rule
from consomme.base.schema import added, located, own_modules, runtime, strategy
from consomme.evaluate.guards import Guard
from consomme.evaluate.names import benchmark_name
from consomme.storage.options import StorageOptions


@dataclass(frozen=True, kw_only=True)
class LoopStage(Checked):
    """One stage of the loop."""

    name: str
    """Name of the stage and of its run; later stages refer to it as `@name`."""

    verb: str
    """Verb of the command line that the stage runs."""

    recipe: dict[str, Any] = located({})
    """The verb's recipe without `name` and `root`; values such as `@name/data` are replaced by run
    folders."""


@dataclass(frozen=True, kw_only=True)
class SummaryRow(Checked):
    """One row of the final table."""

    label: str
    """Name of the figure."""

    value: str
    """Source of the figure: `stage:metric`; several are separated by ` | `."""

    note: str = ""
    """How to read the figure."""


@dataclass(frozen=True, kw_only=True)
class Saturation(Checked):
    """When to stop because another round gains nothing."""

    metric: str | None = None
    """`stage:metric` of a stage of the rounds; or name a `benchmark`."""

    start: str | None = None
    """`stage:metric` of a stage before the rounds: the value that the first round has to beat."""

    benchmark: dict[str, Any] | None = strategy(
        "consomme.evaluate.benchmarks:BENCHMARKS", default=None, was_added=True
    )
    """What the `model` of each round is measured on, by its main figure, instead of `metric`;
    `weighted` takes several. The loop adds the evaluations: `choice-1`, `choice-2`, …"""

    model: str | None = added(None)
    """The model of a round that `benchmark` measures, such as `@train`."""

    start_model: str | None = added(None)
    """The model that the first round has to beat on `benchmark`, and that `guards` compare with:
    a stage before the rounds, such as `@train-0`, or any model."""

    template: dict[str, bool | int | str] = added({})
    """Options of the chat template of these models."""

    guards: tuple[Guard, ...] = added(())
    """Benchmarks, such as one of texts alone, on which the model of a round may be only so much
    worse than `start_model`; a round that loses more is no improvement and never the best."""

    better: Literal["higher", "lower"] = "higher"
    """Which direction is better."""

    min_gain: float = 0.0
    """A round has to beat the best earlier round by more than this; a negative gain tolerates a
    loss."""

    patience: PositiveInt = 1
    """Number of consecutive rounds without improvement after which the loop stops."""

    @rule
    def _one_way_to_choose(self) -> Iterator[str]:
        if (self.metric is None) == (self.benchmark is None):
            found = "neither" if self.metric is None else "both"
            yield f"metric, benchmark: found {found}, expected one of them"
        if self.benchmark is None:
            for name in ("model", "start_model", "template", "guards"):
                if getattr(self, name):
                    yield f"{name}: found it without a benchmark, which it belongs to"
            return
        if self.model is None:
            yield "model: missing; say which model of a round is measured, such as @train"
        if self.start is not None:
            yield "start: found it beside benchmark; name the model as start_model"
        if self.better != "higher":
            yield "better: found lower, but the main figure of a benchmark is better if higher"
        if self.guards and self.start_model is None:
            yield "start_model: missing; guards say how much worse than it a round may be"
        names = [benchmark_name(one.benchmark) for one in self.guards]
        names += [benchmark_name(self.benchmark)]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"guards: {name} is there twice, or chooses; give it a label"


@dataclass(frozen=True, kw_only=True)
class LoopRounds(Checked):
    """Stages that are repeated; each round starts from the results of the previous one."""

    stages: tuple[LoopStage, ...]
    """The stages of one round; the run of stage `train` in round 2 is called `train-2`."""

    max_rounds: PositiveInt = 3
    """Maximum number of rounds."""

    initial: dict[str, str] = field(default_factory=dict)
    """What `@previous:name` refers to in the first round: names of stages before the rounds."""

    early_stop: Saturation | None = None
    """Stops before `max_rounds`; None runs all rounds."""

    table: tuple[SummaryRow, ...] = ()
    """Figures that are shown by round: `stage:metric` of a stage of the rounds, optionally after
    the starting value from a stage before them, as `stage:metric > stage:metric`."""


@dataclass(frozen=True, kw_only=True)
class LoopChain(Checked):
    """The fields of a loop's recipe."""

    name: str
    """Name of the loop's own run."""

    modules: tuple[str, ...] = own_modules()
    """Python files of yours that register benchmarks or metrics: paths from the current directory,
    or beside the recipe. All stages that evaluate or choose know them. Their text goes to workers;
    what they import has to be installed there."""

    stages: tuple[LoopStage, ...]
    """Stages in the order in which they run; before the rounds, if there are any."""

    rounds: LoopRounds | None = None
    """Stages that are repeated until nothing is gained."""

    after: tuple[LoopStage, ...] = ()
    """Stages after the rounds, which may refer to those of the `@best:` or the `@last:` round."""

    values: dict[str, Any] = located({})
    """Values that replace `{name}` in the stages' recipes, so that one override changes all of
    them: `values.seed=3`."""

    root: str = runtime("runs")
    """Where all run folders are created: a local path or a URL."""

    storage: StorageOptions = runtime(StorageOptions())
    """How patient the run is with its storage, all stages included."""

    reports_what_it_chose_by: bool = runtime(False)
    """Allow stages to report questions that choose something: an ingredient, a checkpoint, a
    round. Without it they are refused before anything runs."""

    summary: tuple[SummaryRow, ...] = ()
    """Rows of the final table, from the stages' metrics."""

    description: str = ""
    """Introduction of the report."""
