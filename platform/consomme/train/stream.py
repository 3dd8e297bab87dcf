"""Samples as an endless stream out of units, and where in it a run stands.

One decision is made here: a place in the stream is a handful of numbers, and whoever goes on from
it reads one window of units at most before the next sample. So a run resumes as fast late as early,
and a step's samples do not depend on who trains on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, Protocol, TypeVar

from consomme.base.errors import DataError
from consomme.train.order import Mixture, UnitOrder

Item = TypeVar("Item")
Given = TypeVar("Given", covariant=True)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a source stands."""

    epoch: int = 0
    window: int = 0
    offset: int = 0
    """Samples of the window that are behind."""


class Contents(Protocol[Given]):
    """What was in a unit."""

    @property
    def samples(self) -> Sequence[Given]:
        """Those that can be trained on, in the order of their rows."""


OpenUnits = Callable[[int, int], Iterator[Contents[Item]]]
"""Epoch and window -> the contents of all units from there on, in the order of `UnitOrder`."""


class SourceStream(Generic[Item]):
    """One source, sample by sample, for ever."""

    def __init__(
        self,
        order: UnitOrder,
        open_units: OpenUnits[Item],
        *,
        name: str,
        start: Place | None = None,
        entered: Callable[[int, Sequence[Contents[Item]]], None] | None = None,
    ) -> None:
        """Stand somewhere in it; nothing is read yet.

        Args:
            order: Of its units.
            open_units: Reads them.
            name: What errors call it.
            start: Where the last run stopped; None for the beginning.
            entered: Told of the contents of each window that is entered, with the epoch.
        """
        self.order, self.name = order, name
        self.place = start or Place()
        self._open, self._entered = open_units, entered
        self._units: Iterator[Contents[Item]] | None = None
        self._window: list[Item] | None = None

    def take(self) -> Item:
        """Return the next sample.

        Raises:
            DataError: There is none.
        """
        dry = 0
        while True:
            if self._window is None:
                self._window = self._read()
            at = self.place
            if at.offset < len(self._window):
                item = self._window[at.offset]
                self.place = Place(epoch=at.epoch, window=at.window, offset=at.offset + 1)
                if self.place.offset == len(self._window):
                    # Who goes on from here need not read this window again.
                    self._leave()
                return item
            dry += 1
            # Orders differ, so between two samples almost two epochs of empty windows may lie.
            if dry >= 2 * self.order.num_windows:
                raise DataError(
                    f"{self.name}: none of its samples can be trained on; look into the rejects"
                )
            self._leave()

    def _leave(self) -> None:
        """Stand at the beginning of the next window."""
        at = self.place
        self._window = None
        is_last = at.window + 1 == self.order.num_windows
        self.place = Place(epoch=at.epoch + is_last, window=0 if is_last else at.window + 1)

    def _read(self) -> list[Item]:
        """Read the window that the stream stands in, and shuffle it."""
        epoch, window = self.place.epoch, self.place.window
        if self._units is None:
            self._units = self._open(epoch, window)
        found = [next(self._units) for _ in self.order.units(epoch, window)]
        # A window that was entered before the run stopped was told of then.
        if self._entered and not self.place.offset:
            self._entered(epoch, found)
        samples = [sample for contents in found for sample in contents.samples]
        return [samples[k] for k in self.order.arrange(epoch, window, len(samples))]


class BatchStream(Generic[Item]):
    """Global batches out of a mixture of sources, one after the other."""

    def __init__(
        self, sources: Sequence[SourceStream[Item]], mixture: Mixture, *, next_batch: int = 0
    ) -> None:
        """Go on from where the sources stand.

        Args:
            sources: As the mixture counts them.
            mixture: How many samples of which source.
            next_batch: Batches that were taken before.
        """
        self.sources, self.mixture = sources, mixture
        self.next_batch = next_batch

    def take(self) -> list[Item]:
        """Return the next global batch."""
        found = [self.sources[source].take() for source in self.mixture.step(self.next_batch)]
        self.next_batch += 1
        return found

    def state(self) -> dict[str, Any]:
        """Where the stream stands, as plain values."""
        return {
            "next_batch": self.next_batch,
            "places": [asdict(source.place) for source in self.sources],
        }


def places(state: dict[str, Any]) -> list[Place]:
    """Read the places of what `BatchStream.state` returned."""
    return [Place(**place) for place in state["places"]]
