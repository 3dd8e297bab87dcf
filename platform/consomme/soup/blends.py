"""Candidates of a soup: a selection that is mixed in equal parts, or a blend with shares.

The shares of a blend are whole numbers, so that equal blends are found equal however they were come
upon, and a blend that is an equal mixture of some models is that selection. A blend may have other
shares in each part of the model and in groups of its layers.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Members = tuple[int, ...]
"""Indices of ingredients, ascending."""


@dataclass(frozen=True, kw_only=True, order=True)
class Grouping:
    """Which tensors have shares in common."""

    per_part: bool = False
    """Whether vision encoder, projector and language model have shares of their own."""

    layer_groups: int = 1
    """Groups of consecutive layers that the language model is cut into."""


@dataclass(frozen=True, kw_only=True)
class TensorGroups:
    """The groups of one architecture."""

    names: tuple[str, ...]
    """Of the groups."""

    group_of: Mapping[str, int]
    """Stored name of a tensor -> number of its group."""

    @property
    def version(self) -> str:
        """Hash of what is in which group."""
        text = json.dumps(sorted(self.group_of.items()))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


WHOLE = Grouping()
"""All tensors have the same shares."""


@dataclass(frozen=True, kw_only=True)
class Blend:
    """Shares of ingredients; see `blend`, which makes one."""

    grouping: Grouping
    units_GN: tuple[tuple[int, ...], ...]  # noqa: N815
    """Of each group, the shares of all N ingredients as whole numbers without a common divisor."""

    @property
    def members(self) -> Members:
        """Ingredients with a share in any group."""
        return tuple(k for k, units in enumerate(zip(*self.units_GN, strict=True)) if any(units))

    def shares(self) -> list[list[float]]:
        """Return the shares of all ingredients in each group, summing to one."""
        return [[unit / sum(units) for unit in units] for units in self.units_GN]


Candidate = Members | Blend
"""Something that can be mixed."""


def members_of(candidate: Candidate) -> Members:
    """Return the ingredients that are mixed."""
    return candidate.members if isinstance(candidate, Blend) else candidate


def blend(grouping: Grouping, units_GN: Sequence[Sequence[int]]) -> Candidate:
    """Return the simplest candidate with these shares.

    Args:
        grouping: Of the tensors.
        units_GN: Of each group, a whole number for each ingredient; at least one is not zero.
    """
    rows = tuple(tuple(unit // math.gcd(*units) for unit in units) for units in units_GN)
    if len(set(rows)) == 1:
        if set(rows[0]) <= {0, 1}:
            return tuple(k for k, unit in enumerate(rows[0]) if unit)
        grouping, rows = WHOLE, rows[:1]
    return Blend(grouping=grouping, units_GN=rows)


def whole_shares(weights: Sequence[float], resolution: int) -> tuple[int, ...]:
    """Round weights to shares that are multiples of `1 / resolution`, by largest remainders.

    What is not above zero has no share; if nothing is, the largest one has all. Shares that differ
    by less than the resolution are equal, so that a third is a third.
    """
    raised = [max(0.0, weight) for weight in weights]
    if not sum(raised):
        first = max(range(len(weights)), key=lambda k: weights[k])
        return tuple(int(k == first) for k in range(len(weights)))
    exact = [weight / sum(raised) * resolution for weight in raised]
    units = [int(one) for one in exact]
    left = resolution - sum(units)
    for k in sorted(range(len(units)), key=lambda k: (units[k] - exact[k], k))[:left]:
        units[k] += 1
    some = [unit for unit in units if unit]
    if max(some) - min(some) <= 1:
        return tuple(int(unit > 0) for unit in units)
    return tuple(units)


def plain(candidate: Candidate) -> dict[str, Any]:
    """Return a candidate as plain values."""
    if not isinstance(candidate, Blend):
        return {"selection": list(candidate)}
    units = [list(units) for units in candidate.units_GN]
    return {"blend": {"grouping": asdict(candidate.grouping), "units": units}}


def from_plain(values: Mapping[str, Any]) -> Candidate:
    """Read what `plain` returned."""
    if "blend" not in values:
        return tuple(values["selection"])
    grouping = Grouping(**values["blend"]["grouping"])
    return Blend(grouping=grouping, units_GN=tuple(map(tuple, values["blend"]["units"])))
