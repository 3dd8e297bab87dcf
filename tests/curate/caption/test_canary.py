"""The canary stops what is blind, soon, and lets alone what sees."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consomme.base.errors import DataError, RecipeError
from consomme.base.hashing import hash_ids
from consomme.curate.caption.canary import (
    choose_canaries,
    choose_partners,
    judge_canaries,
    lower_bound,
    same_caption,
)

LATEST = 120
"""Canaries after which a blind model must have been noticed."""


def hashes(number: int) -> np.ndarray:
    return hash_ids(f"sample-{n}" for n in range(number))


def stops_after(same_rate: float, seed: int) -> int | None:
    """Look after each canary, as a run does after each unit; the number of the one it stops at."""
    drawn = np.random.default_rng(seed).random(LATEST) < same_rate
    for num in range(1, LATEST + 1):
        if judge_canaries(num, int(drawn[:num].sum())).is_blind:
            return num
    return None


def test_a_model_that_sees_is_never_stopped():
    assert [stops_after(0.10, seed) for seed in range(200)] == [None] * 200
    assert [stops_after(0.50, seed) for seed in range(200)] == [None] * 200


@pytest.mark.parametrize("rate", [0.98, 1.0])
def test_a_blind_model_is_always_stopped(rate):
    stopped = [stops_after(rate, seed) for seed in range(200)]
    assert None not in stopped
    assert min(stopped) == 21
    assert max(stopped) <= LATEST


def test_the_message_says_what_was_seen_and_what_to_do():
    verdict = judge_canaries(24, 24)
    text = verdict.explain("blank")
    assert "of 24 captions 24 stayed the same when the model was shown a blank picture" in text
    assert "With 99% confidence that is at least 82% of all; 80% is what is allowed" in text
    for cause in ("template drops the picture", "placeholder", "processor", "tokens it is given"):
        assert cause in text
    assert "another sample's picture" in verdict.explain("swap")
    assert "not enough to be sure" in judge_canaries(5, 5).explain("blank")


@given(st.integers(1, 400), st.data())
def test_the_bound_is_the_share_at_which_so_many_are_just_rare(total, data):
    successes = data.draw(st.integers(1, total))
    bound = lower_bound(successes, total, 0.99)
    tail = sum(
        math.comb(total, k) * bound**k * (1 - bound) ** (total - k)
        for k in range(successes, total + 1)
    )
    assert tail == pytest.approx(0.01, rel=1e-6)
    assert bound < successes / total
    just_below = judge_canaries(total, successes, max_same=bound * 0.999, confidence=0.99)
    just_above = judge_canaries(total, successes, max_same=min(bound * 1.001, 1), confidence=0.99)
    assert (just_below.is_blind, just_above.is_blind) == (True, False)


def test_the_bound_holds_at_its_ends_and_for_many():
    assert lower_bound(0, 50, 0.99) == 0.0
    assert lower_bound(21, 21, 0.99) == pytest.approx(0.01 ** (1 / 21))
    assert 0.894 < lower_bound(18_000, 20_000, 0.99) < 0.896
    assert not judge_canaries(0, 0).is_blind
    assert judge_canaries(10, 1, max_same=0.0).is_blind
    assert not judge_canaries(10, 0, max_same=0.0).is_blind
    assert not judge_canaries(10_000, 10_000, max_same=1.0).is_blind


def test_counts_that_cannot_be_are_refused():
    with pytest.raises(DataError, match="found 6 canaries that stayed the same, of 5"):
        judge_canaries(5, 6)
    with pytest.raises(RecipeError, match=r"found 1\.5, expected a share"):
        judge_canaries(5, 5, 1.5)


def test_canaries_are_the_same_in_any_units():
    hash_N = hashes(20_000)
    chosen_N = choose_canaries(hash_N, 0.02, seed=3)
    assert 330 < chosen_N.sum() < 470
    parts = [choose_canaries(part, 0.02, seed=3) for part in np.array_split(hash_N, 31)]
    assert np.array_equal(np.concatenate(parts), chosen_N)
    assert not np.array_equal(choose_canaries(hash_N, 0.02, seed=4), chosen_N)
    # A larger share has the same canaries and more.
    assert (choose_canaries(hash_N, 0.1, seed=3) >= chosen_N).all()
    assert not choose_canaries(hash_N, 0.0, seed=3).any()
    assert choose_canaries(hash_N, 1.0, seed=3).all()


@given(st.integers(1, 40), st.data())
def test_partners_lend_each_other_their_pictures(number, data):
    canaries = data.draw(st.lists(st.integers(0, number - 1), unique=True))
    partners = choose_partners(hashes(number), canaries)
    if number == 1:
        assert partners == {}
        return
    assert set(partners) == set(canaries)
    assert all(canary != partner for canary, partner in partners.items())
    if len(canaries) > 1:
        assert sorted(partners.values()) == sorted(canaries)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.data())
def test_nobody_is_shown_its_own_picture_under_another_name(pictures, data):
    canaries = data.draw(st.lists(st.integers(0, len(pictures) - 1), unique=True))
    picture_N = np.array(pictures, dtype=np.uint64)
    partners = choose_partners(hashes(len(pictures)), canaries, picture_N)
    assert all(pictures[c] != pictures[p] for c, p in partners.items())
    # Only where the unit holds one picture is there nobody to lend another.
    assert set(partners) == (set(canaries) if len(set(pictures)) > 1 else set())
    most = max((pictures.count(p) for p in pictures), default=0)
    if len(canaries) == len(pictures) and 2 * most <= len(pictures):
        assert sorted(partners.values()) == sorted(canaries)


def test_case_and_white_space_do_not_make_another_caption():
    assert same_caption(" A red\n circle. ", "a red circle.")
    assert not same_caption("a red circle.", "a red circle")
