"""Choose data sets one after the other: each stays if a model trained with it is better.

Source: Individual Select of POINTS (arXiv 2409.04828), defined in arXiv 2405.11850: from a pool,
add one candidate at a time, train again, and keep it if the mean of the benchmarks improves.
"""

from __future__ import annotations

from dataclasses import dataclass

from consomme.base.errors import RecipeError
from consomme.sweep.choices import AdditionsChoice
from consomme.sweep.searchers import SEARCHERS, Keys, Mode, Search, Space


@SEARCHERS.register("forward_selection")
@dataclass(frozen=True, kw_only=True)
class ForwardSelection:
    """Add candidates one at a time, in their order, and keep those that improve the metric.

    One key of the space is `{name: additions, …}`; every other key has one value. The first trial
    has no candidate, unless the list were empty then. Each trial waits for the one before it.
    """

    def list_trials(self, space: Space) -> None:
        """Return None: what is tried depends on results.

        Raises:
            RecipeError: There is not one list with candidates, or another key has several values.
        """
        _additions(space)

    def count_trials(self, space: Space) -> int:
        """Return the number of candidates, and one for the list without any."""
        choice = _additions(space)[1]
        return len(choice.candidates) + bool(choice.always)

    def start(self, space: Space, mode: Mode) -> Search:
        """Start with the list without candidates."""
        return _ForwardSearch(space, 1.0 if mode == "max" else -1.0)


def _additions(space: Space) -> tuple[str, AdditionsChoice]:
    found = [(key, one) for key, one in space.items() if isinstance(one, AdditionsChoice)]
    several = [
        key
        for key, one in space.items()
        if not isinstance(one, AdditionsChoice) and len(one.listed or (0, 0)) != 1
    ]
    if len(found) != 1 or several:
        what = ", ".join(key for key, _ in found) or "none"
        raise RecipeError(
            "searcher: forward_selection adds to one list, as in space={data: {name: additions,"
            f" always: […], candidates: […]}}}}; found {what} of that kind"
            + (f", and several values of {', '.join(several)}" if several else "")
        )
    return found[0]


class _ForwardSearch:
    """Decides from the results alone, so it does not matter when they come, or come again."""

    def __init__(self, space: Space, sign: float) -> None:
        self._key, self._choice = _additions(space)
        self._rest = {
            key: (one.listed or ())[0]
            for key, one in space.items()
            if not isinstance(one, AdditionsChoice)
        }
        self._sign = sign
        self._asked: list[frozenset[int]] = []
        self._values: dict[frozenset[int], float | None] = {}

    @property
    def is_waiting(self) -> bool:
        """Whether a result is missing that decides what comes next."""
        added = self._next()
        return added is not None and added in self._asked

    def ask(self) -> Keys | None:
        """Return the next list; None if all are tried, or a result is missing."""
        added = self._next()
        if added is None or added in self._asked:
            return None
        self._asked.append(added)
        return {**self._rest, self._key: self._choice.value(added)}

    def tell(self, number: int, value: float | None) -> None:
        """Receive a result; a trial that failed does not add its candidate."""
        self._values[self._asked[number]] = value

    def replay(self, keys: Keys) -> None:
        """Repeat an `ask` of an earlier attempt."""
        self._asked.append(self._choice.added_in(keys[self._key]))

    def _next(self) -> frozenset[int] | None:
        """Return the first list whose result is not known."""
        pool: frozenset[int] = frozenset()
        if self._choice.always and pool not in self._values:
            return pool
        best = self._values.get(pool)
        for candidate in range(len(self._choice.candidates)):
            tried = pool | {candidate}
            if tried not in self._values:
                return tried
            value = self._values[tried]
            if self._is_better(value, best):
                pool, best = tried, value
        return None

    def _is_better(self, value: float | None, best: float | None) -> bool:
        if value is None or best is None:
            return value is not None
        return self._sign * (value - best) > 0
