"""What a recipe of `loop` may say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from consomme.base.schema import runtime


@dataclass(frozen=True, kw_only=True)
class LoopStage:
    """One stage of the chain."""

    name: str
    """Name of the stage and of its run; later stages refer to it as `@name`."""

    verb: str
    """What it does: a verb of the command line."""

    recipe: dict[str, Any] = field(default_factory=dict)
    """The verb's recipe without `name` and `root`; values such as `@name/data` mean run folders."""


@dataclass(frozen=True, kw_only=True)
class SummaryRow:
    """One line of the final table."""

    label: str
    """What the figure is."""

    value: str
    """Where it comes from: `stage:metric`, several of them divided by ` | `."""

    note: str = ""
    """How to read it."""


@dataclass(frozen=True, kw_only=True)
class Saturation:
    """When another round is not worth it."""

    metric: str
    """`stage:metric` of a stage of the rounds."""

    start: str | None = None
    """`stage:metric` of a stage before the rounds: what the first round has to beat."""

    better: Literal["higher", "lower"] = "higher"
    """Which way is up."""

    min_gain: float = 0.0
    """A round has to be better than the best before it by more than this."""

    patience: int = 1
    """So many rounds in a row that are not better end the loop."""


@dataclass(frozen=True, kw_only=True)
class LoopRounds:
    """Stages that are run again and again, each round from what the one before made."""

    stages: tuple[LoopStage, ...]
    """One round; the run of stage `train` in round 2 is called `train-2`."""

    max_rounds: int = 3
    """Rounds at most."""

    initial: dict[str, str] = field(default_factory=dict)
    """What `@previous:name` means in the first round: names of stages before the rounds."""

    early_stop: Saturation | None = None
    """Ends the rounds early; None runs all."""

    table: tuple[SummaryRow, ...] = ()
    """Figures shown by round: `stage:metric` of a stage of the rounds; one of a stage before them
    may stand in front, as `stage:metric > stage:metric`, to show where it began."""


@dataclass(frozen=True, kw_only=True)
class LoopRecipe:
    """A chain of stages, perhaps with rounds."""

    name: str
    """Name of the loop's own run."""

    stages: tuple[LoopStage, ...]
    """In the order they run; before the rounds, if there are any."""

    rounds: LoopRounds | None = None
    """Stages that are repeated until nothing is gained."""

    after: tuple[LoopStage, ...] = ()
    """Stages after the rounds, which may name those of the `@best:` or the `@last:` round."""

    values: dict[str, Any] = field(default_factory=dict)
    """What stands for `{name}` in the stages' recipes, so that one override changes all of them:
    `values.seed=3`."""

    root: str = runtime("runs")
    """Where all run folders are made: a local path or a URL."""

    summary: tuple[SummaryRow, ...] = ()
    """The final table, made from the stages' metrics."""

    description: str = ""
    """What the report says first."""
