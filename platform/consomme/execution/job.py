"""What the driver needs to run one stage over the units of a plan.

A verb fills in a `Job` and hands it to `driver.run_job`; the same record goes on to the workers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from consomme.execution.stage import Stage
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.plan import Plan
from consomme.storage.reading import Reading
from consomme.storage.unit import ReadUnit
from consomme.storage.units import read_unit

UNITS_PER_ACTOR = 3
"""Units in an actor at a time: one is read and decoded, one is worked on, one is committed."""

UNITS_AHEAD = 2 * UNITS_PER_ACTOR
"""Units that are assigned to an actor at a time, if there are many."""

Check = Callable[[Mapping[str, float]], None]
"""Takes the sums over all finished units; raises to stop the run."""


@dataclass(frozen=True, kw_only=True)
class ActorPool:
    """The actors that run a stage. Ray scales the pool between the limits."""

    max_actors: int
    min_actors: int = 1
    cpus: float = 1.0
    """CPUs that an actor claims. All actors together must leave some for reading and committing."""

    gpus: float = 0.0
    """GPUs that an actor claims."""

    num_readers: int | None = None
    """Tasks that read units ahead of the actors; 0 lets actors read for themselves. None means 0
    for actors without a GPU, else one per actor, and at least two."""

    @property
    def readers(self) -> int:
        """Tasks that read ahead."""
        if self.num_readers is not None:
            return self.num_readers
        return max(2, self.max_actors) if self.gpus else 0

    def units_given(self, num_units: int) -> int:
        """Most units that are assigned to an actor at a time.

        With few units this is less than `UNITS_AHEAD`: otherwise the first actor that is up would
        take all of them.
        """
        return max(1, min(UNITS_AHEAD, num_units // max(1, self.max_actors)))


@dataclass(frozen=True, kw_only=True)
class Job:
    """One stage over all units of a plan."""

    name: str
    """Of the stage, on the progress line."""

    plan: Plan
    """All units of the run, done or not."""

    folder: RunFolder
    """Where outputs and commit records go."""

    kind: str
    """Kind of the output file that holds a unit's columns."""

    stage: Callable[[], Stage]
    """Makes the stage, once per actor: the class itself, or a `partial` of it with the recipe and
    what the recipe's inputs resolved to."""

    pool: ActorPool
    """How many actors, and what each claims."""

    max_reject_fraction: float = 1.0
    """The run stops as soon as it is certain that more samples than this will be rejected."""

    reading: Reading = field(default_factory=Reading)
    """Of the recipe; rejects that it allows do not count for `max_reject_fraction`."""

    read: ReadUnit = read_unit
    """Reads one unit."""

    check: Check | None = None
    """Called after each unit."""
