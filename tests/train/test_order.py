"""The order of the data: a function of seed and step, shared out to ranks without loss."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consomme.base.errors import DataError
from consomme.train.order import BatchOrder

SOURCES = st.lists(
    st.tuples(st.integers(1, 40), st.floats(0.01, 10, allow_nan=False)), min_size=1, max_size=4
)


@given(weights=SOURCES, batch=st.integers(1, 33), world=st.integers(1, 7), step=st.integers(0, 500))
def test_ranks_share_the_global_batch(
    weights: list[tuple[int, float]], batch: int, world: int, step: int
) -> None:
    order = BatchOrder(weights, batch, seed=1)
    whole = order.step(step)
    parts = [order.rank(step, rank, world) for rank in range(world)]
    assert len(whole) == batch
    assert Counter(index for part in parts for index in part) == Counter(whole)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert all(0 <= index < sum(size for size, _ in weights) for index in whole)


@given(weights=SOURCES, batch=st.integers(1, 33))
def test_weights_are_respected_and_every_epoch_covers_its_source(
    weights: list[tuple[int, float]], batch: int
) -> None:
    order = BatchOrder(weights, batch, seed=5)
    num_steps = 60
    drawn = [index for step in range(num_steps) for index in order.step(step)]
    total = sum(weight for _, weight in weights)
    start = 0
    for size, weight in weights:
        mine = [index for index in drawn if start <= index < start + size]
        share = weight / total * batch * num_steps
        assert abs(len(mine) - share) <= len(weights)
        # However the epochs fall into steps: no index is one epoch ahead of another.
        counts = Counter(mine)
        spread = [counts.get(index, 0) for index in range(start, start + size)]
        assert max(spread) - min(spread) <= 1
        start += size


def test_a_source_smaller_than_a_batch_repeats_in_whole_epochs() -> None:
    order = BatchOrder([(3, 1.0)], 6, seed=0)
    assert Counter(order.step(0)) == Counter({0: 2, 1: 2, 2: 2})


def test_one_source_by_number_is_one_permutation_after_another() -> None:
    order = BatchOrder([(50, 50.0)], 10, seed=2)
    epochs = [[i for step in range(s, s + 5) for i in order.step(step)] for s in (0, 5)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(50))
    assert epochs[0] != epochs[1]


def test_a_resumed_run_sees_what_an_undisturbed_one_would() -> None:
    weights = [(20, 1.0), (7, 2.5)]
    undisturbed = BatchOrder(weights, 8, seed=3)
    batches = [undisturbed.step(step) for step in range(40)]
    for start in (1, 17, 39):
        resumed = BatchOrder(weights, 8, seed=3)
        assert [resumed.step(step) for step in range(start, 40)] == batches[start:]
    assert [undisturbed.step(step) for step in (30, 2, 30)] == [batches[k] for k in (30, 2, 30)]


def test_another_seed_is_another_order() -> None:
    first, second = (BatchOrder([(100, 1.0)], 10, seed=seed).step(0) for seed in (0, 1))
    assert first != second


def test_a_source_without_weight_is_never_drawn() -> None:
    order = BatchOrder([(5, 1.0), (5, 0.0), (0, 0.0)], 5, seed=0)
    assert sorted(order.step(0)) == [0, 1, 2, 3, 4]


def test_a_source_with_weight_but_without_samples_is_an_error() -> None:
    with pytest.raises(DataError, match=r"data sources \[1\] have no usable samples"):
        BatchOrder([(5, 1.0), (0, 1.0)], 4, seed=0)
    with pytest.raises(DataError, match="no data source has a weight above 0"):
        BatchOrder([(5, 0.0)], 4, seed=0)
