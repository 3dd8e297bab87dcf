"""The stages of a loop and its rounds, as its recipe declares them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from consomme.base.bounds import PositiveInt
from consomme.base.checked import Checked
from consomme.base.schema import located, runtime
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

    metric: str
    """`stage:metric` of a stage of the rounds."""

    start: str | None = None
    """`stage:metric` of a stage before the rounds: the value that the first round has to beat."""

    better: Literal["higher", "lower"] = "higher"
    """Which direction is better."""

    min_gain: float = 0.0
    """A round has to beat the best earlier round by more than this; a negative gain tolerates a
    loss."""

    patience: PositiveInt = 1
    """Number of consecutive rounds without improvement after which the loop stops."""


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

    summary: tuple[SummaryRow, ...] = ()
    """Rows of the final table, from the stages' metrics."""

    description: str = ""
    """Introduction of the report."""
