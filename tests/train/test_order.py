"""The order of the data is a function of seed and step, for any world size."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consomme.base.errors import DataError
from consomme.train.order import Mixture, UnitOrder

WEIGHTS = st.lists(st.floats(0.01, 10, allow_nan=False), min_size=1, max_size=4)


@given(weights=WEIGHTS, batch=st.integers(1, 33))
def test_weights_are_respected_at_any_time(weights: list[float], batch: int) -> None:
    mixture = Mixture(weights, batch, seed=5)
    drawn: Counter[int] = Counter()
    for step in range(40):
        of_step = mixture.step(step)
        assert len(of_step) == batch
        drawn.update(of_step)
        for source, weight in enumerate(weights):
            share = weight / sum(weights) * batch * (step + 1)
            assert abs(drawn[source] - share) <= len(weights)
    assert mixture.drawn(40) == [drawn[source] for source in range(len(weights))]


def test_steps_are_mixed() -> None:
    mixture = Mixture([1.0, 1.0], 16, seed=0)
    assert mixture.step(0) != sorted(mixture.step(0))
    assert mixture.step(0) != mixture.step(1)
    assert mixture.step(0) != Mixture([1.0, 1.0], 16, seed=1).step(0)


def test_a_source_without_weight_is_never_drawn() -> None:
    assert Mixture([1.0, 0.0], 5, seed=0).step(0) == [0] * 5
    with pytest.raises(DataError, match="no data source has a weight above 0"):
        Mixture([0.0], 4, seed=0)


@given(units=st.integers(1, 40), window=st.integers(1, 9), epoch=st.integers(0, 3))
def test_an_epoch_is_every_unit_once(units: int, window: int, epoch: int) -> None:
    order = UnitOrder(units, seed=1, source=0, window=window)
    windows = [order.units(epoch, k) for k in range(order.num_windows)]
    assert sorted(unit for some in windows for unit in some) == list(range(units))
    assert all(len(some) == window for some in windows[:-1])
    assert 1 <= len(windows[-1]) <= window
    again = UnitOrder(units, seed=1, source=0, window=window)
    assert again.units(epoch, order.num_windows - 1) == windows[-1]


def test_epochs_seeds_and_sources_have_orders_of_their_own() -> None:
    order = UnitOrder(50, seed=1, source=0, window=50)
    orders = [
        order.units(0, 0),
        order.units(1, 0),
        UnitOrder(50, seed=2, source=0, window=50).units(0, 0),
        UnitOrder(50, seed=1, source=1, window=50).units(0, 0),
    ]
    assert len({tuple(some) for some in orders}) == 4
    assert order.arrange(0, 0, 30) != order.arrange(1, 0, 30)
    assert order.arrange(0, 0, 30) != order.arrange(0, 1, 30)
    assert sorted(order.arrange(0, 0, 30)) == list(range(30))
