"""Which layers go, on made-up scores."""

from collections.abc import Sequence

import pytest

from consomme.base.errors import RecipeError
from consomme.prune.choosing import ContiguousBlock, GreedyRemoval, LowestScores

SCORES = [5.0, 1.0, 4.0, 2.0, 3.0, 9.0]


def sums(kept: Sequence[int], size: int) -> list[float]:
    return [sum(SCORES[k] for k in kept[i : i + size]) for i in range(len(kept) - size + 1)]


def test_the_lowest_go_wherever_they_are() -> None:
    found = LowestScores()(sums, 6, 3, ())
    assert found.removed == (1, 3, 4)
    assert [step.removed for step in found.steps] == [(1,), (3,), (4,)]


def test_a_block_is_of_neighbours() -> None:
    found = ContiguousBlock()(sums, 6, 2, ())
    assert found.removed == (1, 2)
    assert found.steps[0].scores == {"0-1": 6, "1-2": 5, "2-3": 6, "3-4": 5, "4-5": 12}


def test_greedy_scores_again() -> None:
    seen = []

    def pairs(kept: Sequence[int], size: int) -> list[float]:
        """Layers matter less the fewer there are beside them."""
        seen.append(tuple(kept))
        return [SCORES[k] * (10 if k == 3 and 1 not in kept else 1) for k in kept]

    found = GreedyRemoval()(pairs, 6, 2, ())
    assert seen == [(0, 1, 2, 3, 4, 5), (0, 2, 3, 4, 5)]
    assert found.removed == (1, 4)


@pytest.mark.parametrize("choice", [ContiguousBlock(), GreedyRemoval(), LowestScores()])
def test_protected_layers_never_go(choice) -> None:
    for count in (1, 2, 3):
        found = choice(sums, 6, count, {1, 2})
        assert len(found.removed) == count
        assert not {1, 2} & set(found.removed)


@pytest.mark.parametrize("choice", [ContiguousBlock(), GreedyRemoval(), LowestScores()])
def test_more_than_there_are_is_refused(choice) -> None:
    with pytest.raises(RecipeError, match=r"found 5, but .* 6 layers, of which 2 are protected"):
        choice(sums, 6, 5, {1, 2})
    with pytest.raises(RecipeError, match=r"one has to stay"):
        choice(sums, 6, 6, ())


def test_a_block_does_not_reach_over_a_protected_layer() -> None:
    with pytest.raises(RecipeError, match=r"between the protected layers 2, 4 .* no 3 neighbours"):
        ContiguousBlock()(sums, 6, 3, {2, 4})
