"""Areas and shares against the definitions, counted pair by pair."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consomme.base.errors import DataError
from consomme.curate.keep.noise_metrics import auc, auc_by_kind, noise_share


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_auc_is_the_share_of_pairs_in_the_right_order(samples):
    noise = [score for score, is_noise in samples if is_noise]
    clean = [score for score, is_noise in samples if not is_noise]
    scores = np.array([score for score, _ in samples], dtype=float)
    labels = np.array([is_noise for _, is_noise in samples])
    if not noise or not clean:
        with pytest.raises(DataError, match="needs both"):
            auc(scores, labels)
        return
    pairs = [(n > c) + (n == c) / 2 for n, c in itertools.product(noise, clean)]
    assert auc(scores, labels) == pytest.approx(sum(pairs) / len(pairs))
    assert auc(-scores, labels) == pytest.approx(1 - sum(pairs) / len(pairs))


def test_each_kind_is_compared_with_the_clean_samples_only():
    scores = np.array([1.0, 2.0, 9.0, 9.5, 1.5])
    found = auc_by_kind(scores, ["", "", "spam", "spam", "mismatched"])
    assert found == {"mismatched": 0.5, "spam": 1.0}


def test_nan_scores_are_an_error():
    with pytest.raises(DataError, match="1 scores are NaN"):
        auc(np.array([np.nan, 1.0]), np.array([True, False]))


def test_noise_share_by_hand():
    kept = np.array([True, True, True, True, False, False])
    noise = np.array([True, False, False, False, True, True])
    share = noise_share(kept, noise)
    assert share.kept_fraction == 0.25
    assert share.dropped_fraction == 1.0
    assert share.all_fraction == 0.5
    assert share.caught_fraction == pytest.approx(2 / 3)
