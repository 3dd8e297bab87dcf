"""A stream continues from any position as if uninterrupted, and reads little for it."""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consomme.base.errors import DataError
from consomme.train.order import Mixture, UnitOrder
from consomme.train.stream import BatchStream, SourceStream, positions_of


@dataclass
class Contents:
    samples: list[str]


@dataclass
class Shelf:
    """Sources of units in memory; remembers what was read."""

    sources: list[list[int]]
    """Samples of each unit of each source."""

    window: int = 2
    read: list[tuple[int, int]] = field(default_factory=list)
    entered: list[tuple[int, int, int]] = field(default_factory=list)

    def stream(
        self, weights: Sequence[float], batch: int, state: dict | None = None
    ) -> BatchStream[str]:  # type: ignore[type-arg]
        starts = positions_of(state) if state else [None] * len(self.sources)
        sources = [self._source(k, start) for k, start in enumerate(starts)]
        done = state["next_batch"] if state else 0
        return BatchStream(sources, Mixture(weights, batch, seed=3), next_batch=done)

    def _source(self, source: int, start: object) -> SourceStream[str]:
        order = UnitOrder(len(self.sources[source]), seed=3, source=source, window=self.window)

        def open_units(epoch: int, window: int) -> Iterator[Contents]:
            for number in itertools.count(epoch):
                first = window if number == epoch else 0
                for k in range(first, order.num_windows):
                    for unit in order.units(number, k):
                        self.read.append((source, unit))
                        count = self.sources[source][unit]
                        yield Contents([f"{source}.{unit}.{row}" for row in range(count)])

        def on_window(epoch: int, some: Sequence[Contents]) -> None:
            self.entered.append((source, epoch, sum(len(one.samples) for one in some)))

        return SourceStream(
            order,
            open_units,
            name=f"data[{source}]",
            start=start,
            on_window=on_window,  # type: ignore[arg-type]
        )


SOURCES = st.lists(
    st.lists(st.integers(0, 9), min_size=1, max_size=7).filter(any), min_size=1, max_size=3
)


@given(sources=SOURCES, batch=st.integers(1, 11), stop=st.integers(0, 30), window=st.integers(1, 3))
def test_it_goes_on_as_if_it_had_never_stopped(
    sources: list[list[int]], batch: int, stop: int, window: int
) -> None:
    weights = [1.0 + 0.7 * k for k in range(len(sources))]
    stream = Shelf(sources, window).stream(weights, batch)
    whole = [stream.take() for _ in range(40)]
    first = Shelf(sources, window).stream(weights, batch)
    for _ in range(stop):
        first.take()
    state = json.loads(json.dumps(first.state()))
    again = Shelf(sources, window)
    resumed = again.stream(weights, batch, state)
    assert resumed.state() == state
    assert [resumed.take() for _ in range(5)] == whole[stop : stop + 5]


def test_to_go_on_it_reads_one_window() -> None:
    units = [4] * 1000
    weights = [1.0]
    stream = Shelf([units]).stream(weights, 8)
    # Far into the third epoch.
    for _ in range(1203):
        stream.take()
    again = Shelf([units])
    resumed = again.stream(weights, 8, stream.state())
    assert resumed.take() == stream.take()
    assert len(again.read) <= 2 * again.window


@given(sources=SOURCES)
def test_each_epoch_has_every_sample_once(sources: list[list[int]]) -> None:
    units = sources[0]
    total = sum(units)
    stream = Shelf([units]).stream([1.0], total)
    for _ in range(3):
        batch = Counter(stream.take())
        assert len(batch) == total
        assert set(batch.values()) == {1}


def test_windows_are_told_of_once_they_are_entered() -> None:
    shelf = Shelf([[3, 3, 3, 3]])
    stream = shelf.stream([1.0], 2)
    for _ in range(3):
        stream.take()
    assert shelf.entered == [(0, 0, 6)]
    stream.take()
    assert shelf.entered == [(0, 0, 6), (0, 0, 6)]
    for _ in range(3):
        stream.take()
    assert shelf.entered[2:] == [(0, 1, 6)]


def test_a_source_without_samples_is_an_error() -> None:
    with pytest.raises(DataError, match=r"data\[0\]: none of its samples can be trained on"):
        Shelf([[0, 0, 0, 0, 0]]).stream([1.0], 2).take()
    # Empty units are allowed.
    assert len(Shelf([[0, 0, 0, 0, 1]]).stream([1.0], 7).take()) == 7
