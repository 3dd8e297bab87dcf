"""How units are shared out among actors."""

import pytest

from consomme.execution.job import UNITS_AHEAD, ActorPool


@pytest.mark.parametrize(
    ("num_units", "num_actors", "given"),
    [(5, 2, 2), (4, 2, 2), (3, 2, 1), (1, 8, 1), (7, 1, UNITS_AHEAD), (10**6, 64, UNITS_AHEAD)],
)
def test_few_units_are_left_for_all_actors(num_units: int, num_actors: int, given: int) -> None:
    assert ActorPool(max_actors=num_actors).units_given(num_units) == given
