"""Samples as an endless stream of batches, and the position of a run in it.

A position is a handful of numbers, and a run that continues from it reads at most one window of
units before its next sample. So a run resumes as fast late as early, and the samples of a step do
not depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, Protocol, TypeVar

from consomme.base.errors import DataError
from consomme.train.order import Mixture, TokenMixture, UnitOrder

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, kw_only=True)
class StreamPosition:
    """Position in a source."""

    epoch: int = 0
    window: int = 0
    offset: int = 0
    """Samples of the window that were taken."""


class Contents(Protocol[T_co]):
    """The contents of a unit."""

    @property
    def samples(self) -> Sequence[T_co]:
        """Samples that can be trained on, in the order of their rows."""


OpenUnits = Callable[[int, int], Iterator[Contents[T]]]
"""Maps epoch and window to the contents of all units from there on, in the order of `UnitOrder`."""


class SourceStream(Generic[T]):
    """One source as an endless stream of samples."""

    def __init__(
        self,
        order: UnitOrder,
        open_units: OpenUnits[T],
        *,
        name: str,
        start: StreamPosition | None = None,
        on_window: Callable[[int, Sequence[Contents[T]]], None] | None = None,
    ) -> None:
        """Set the position; nothing is read yet.

        Args:
            order: Order of the units.
            open_units: Reads the units.
            name: Name of the source in errors.
            start: Position to continue from; None for the beginning.
            on_window: Called with the epoch and the contents of each window that is entered.
        """
        self.order, self.name = order, name
        self.position = start or StreamPosition()
        self._open, self._on_window = open_units, on_window
        self._units: Iterator[Contents[T]] | None = None
        self._window: list[T] | None = None

    def take(self) -> T:
        """Return the next sample.

        Raises:
            DataError: No sample of the source can be trained on.
        """
        num_exhausted = 0
        while True:
            if self._window is None:
                self._window = self._read()
            at = self.position
            if at.offset < len(self._window):
                item = self._window[at.offset]
                self.position = StreamPosition(
                    epoch=at.epoch, window=at.window, offset=at.offset + 1
                )
                if self.position.offset == len(self._window):
                    # A run that continues from here need not read this window again.
                    self._next_window()
                return item
            num_exhausted += 1
            # Epochs have different orders: almost two epochs of empty windows may separate two
            # samples.
            if num_exhausted >= 2 * self.order.num_windows:
                raise DataError(
                    f"{self.name}: none of its samples can be trained on; look into the rejects"
                )
            self._next_window()

    def _next_window(self) -> None:
        """Move to the beginning of the next window."""
        at = self.position
        self._window = None
        is_last = at.window + 1 == self.order.num_windows
        self.position = StreamPosition(
            epoch=at.epoch + is_last, window=0 if is_last else at.window + 1
        )

    def _read(self) -> list[T]:
        """Read the current window and shuffle it."""
        epoch, window = self.position.epoch, self.position.window
        if self._units is None:
            self._units = self._open(epoch, window)
        units = [next(self._units) for _ in self.order.units(epoch, window)]
        # With an offset, the window was entered before the run was interrupted.
        if self._on_window and not self.position.offset:
            self._on_window(epoch, units)
        samples = [sample for contents in units for sample in contents.samples]
        return [samples[k] for k in self.order.arrange(epoch, window, len(samples))]


class BatchStream(Generic[T]):
    """Global batches from a mixture of sources."""

    def __init__(
        self,
        sources: Sequence[SourceStream[T]],
        mixture: Mixture | TokenMixture,
        *,
        next_batch: int = 0,
        num_tokens: Callable[[T], int] = lambda _: 1,
        drawn: Sequence[int] | None = None,
    ) -> None:
        """Continue from the positions of the sources.

        Args:
            sources: In the order of the mixture's weights.
            mixture: Which source each sample of a batch comes from.
            next_batch: Number of batches that were taken before.
            num_tokens: What a `TokenMixture` counts of a sample.
            drawn: What each source has given before; None for nothing.
        """
        self.sources, self.mixture = sources, mixture
        self.next_batch, self._num_tokens = next_batch, num_tokens
        self.drawn = list(drawn or [0] * len(sources))
        """Tokens that each source has given; 0 if the mixture is one of samples."""

    def take(self) -> list[T]:
        """Return the next global batch."""
        mixture = self.mixture
        if isinstance(mixture, TokenMixture):
            samples = [self._take_by_tokens(mixture) for _ in range(mixture.global_batch)]
            batch = [samples[k] for k in mixture.arrange(self.next_batch)]
        else:
            batch = [self.sources[source].take() for source in mixture.step(self.next_batch)]
        self.next_batch += 1
        return batch

    def _take_by_tokens(self, mixture: TokenMixture) -> T:
        source = mixture.choose(self.drawn)
        sample = self.sources[source].take()
        self.drawn[source] += self._num_tokens(sample)
        return sample

    def state(self) -> dict[str, Any]:
        """Return the position of the stream as plain values."""
        return {
            "next_batch": self.next_batch,
            "places": [asdict(source.position) for source in self.sources],
        } | ({"drawn": list(self.drawn)} if isinstance(self.mixture, TokenMixture) else {})


def positions_of(state: dict[str, Any]) -> list[StreamPosition]:
    """Return the positions of all sources in what `BatchStream.state` returned."""
    return [StreamPosition(**position) for position in state["places"]]
