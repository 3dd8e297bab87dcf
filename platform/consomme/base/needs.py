"""What a run claims of its cluster at least, so that what can never start is refused at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, kw_only=True)
class Need:
    """Equal claims that a run holds at the same time."""

    key: str
    """Keys of the recipe that say so, with their values."""

    count: int = 1
    cpus: float = 0.0
    """Of each; all of one claim come from one node."""

    gpus: float = 0.0
    """Of each; whole GPUs of one claim may come from several nodes only in training."""


@runtime_checkable
class HasNeeds(Protocol):
    """A recipe that knows its needs."""

    def needs(self, num_gpus: float) -> Iterator[Need]:
        """Yield what the run claims at the same time, on a cluster with so many GPUs."""
        ...
