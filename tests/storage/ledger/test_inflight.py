"""Bisection finds the samples that kill their process, and no others."""

import random

import pytest

from consomme.base.errors import ClusterError
from consomme.storage.ledger.inflight import clear, run_with_bisection
from consomme.storage.stores.local import LocalStore


class Dead(BaseException):
    """Simulates the death of the process."""


def survive(store, rows, work, most=200):
    """Restart the work after every death; return its result and the number of deaths."""
    for deaths in range(most):
        try:
            return *run_with_bisection(store, "u", rows, work), deaths
        except Dead:
            continue
    raise AssertionError("it never ends")


def killing(killers):
    def work(rows):
        if killers & set(rows):
            raise Dead
        return list(rows)

    return work


@pytest.mark.parametrize("killers", [set(), {0}, {999}, {17, 18}, {3, 500, 998}])
def test_exactly_the_killers_are_left_out(tmp_path, killers):
    store = LocalStore(str(tmp_path))
    done, poison_rows, deaths = survive(store, range(1000), killing(killers))
    assert set(poison_rows) == killers
    assert done == [row for row in range(1000) if row not in killers]
    assert deaths <= 2 + 6 * len(killers)
    clear(store, "u")
    assert list(store.list()) == []


def test_a_lost_node_blames_nobody_and_tries_nothing_out(tmp_path):
    store = LocalStore(str(tmp_path))
    calls = []
    lives = iter([Dead(), None])

    def work(rows):
        calls.append(len(rows))
        if error := next(lives):
            raise error
        return "done"

    assert survive(store, range(64), work) == ("done", [], 1)
    assert calls == [64, 64]


def test_chance_deaths_while_trying_out_condemn_nobody(tmp_path):
    store = LocalStore(str(tmp_path))
    rng = random.Random(5)

    def work(rows):
        if 40 in rows or rng.random() < 0.05:
            raise Dead
        return list(rows)

    done, poison_rows, _ = survive(store, range(64), work)
    assert poison_rows == [40]
    assert len(done) == 63


def test_a_unit_that_kills_only_as_a_whole_stops_the_run_with_advice(tmp_path):
    store = LocalStore(str(tmp_path))

    def work(rows):
        if len(rows) > 50:
            raise Dead
        return list(rows)

    with pytest.raises(ClusterError, match=r"64 samples killed its process 5 times.*memory"):
        survive(store, range(64), work)
    assert list(store.list()) == []
