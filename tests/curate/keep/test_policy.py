"""The kept set is exact and depends on the samples only: not on order, not on chunks."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consomme.base.errors import DataError, RecipeError
from consomme.base.hashing import hash_ids, is_in_share
from consomme.curate.keep.policy import KEEP_POLICIES, floor_count
from consomme.curate.keep.radix import FloatHistogram, find_cut, float_keys, key_value
from consomme.curate.keep.ranking import HighestFraction, LowestFraction, RandomFraction

# Few distinct values, so that ties on the cut are common; the specials of float32 among them.
SCORES = st.lists(
    st.sampled_from([-math.inf, -3.5, -0.0, 0.0, 1e-45, 1.0, 1.0000001, 2.5, math.inf, math.nan]),
    min_size=1,
    max_size=60,
)


def ids(count: int) -> np.ndarray:
    return hash_ids(f"sample-{i}" for i in range(count))


def kept_ids(policy, scores: np.ndarray, hashes: np.ndarray) -> set[int]:
    kept = policy({"s": scores}, hashes)
    return set(hashes[kept.mask_N].tolist())


@given(SCORES, st.floats(0, 1), st.randoms(use_true_random=False))
@pytest.mark.parametrize("kind", ["lowest", "highest", "random"])
def test_any_permutation_and_partition_keeps_the_same_samples(kind, values, fraction, random):
    policy = {
        "lowest": LowestFraction(column="s", fraction=fraction),
        "highest": HighestFraction(column="s", fraction=fraction),
        "random": RandomFraction(fraction=fraction, seed=3),
    }[kind]
    scores, hashes = np.array(values, dtype=np.float32), ids(len(values))
    whole = kept_ids(policy, scores, hashes)

    order = list(range(len(values)))
    random.shuffle(order)
    stops = sorted(random.randrange(len(values) + 1) for _ in range(4))
    parts = np.split(np.array(order), stops)
    chunks = [({"s": scores[part]}, hashes[part]) for part in parts]
    decision = policy.decide(lambda: chunks)
    in_parts = {i for columns, part in chunks for i in part[decision.mask(columns, part)].tolist()}

    assert in_parts == whole
    assert len(whole) == decision.cut.num_kept


@given(SCORES, st.floats(0, 1))
def test_lowest_fraction_equals_a_sort(values, fraction):
    scores, hashes = np.array(values, dtype=np.float32), ids(len(values))
    scored = [i for i in range(len(values)) if not math.isnan(values[i])]
    ranked = sorted(scored, key=lambda i: (scores[i] + 0.0, hashes[i]))
    expected = ranked[: floor_count(fraction, len(scored))]

    kept = LowestFraction(column="s", fraction=fraction)({"s": scores}, hashes)

    assert np.flatnonzero(kept.mask_N).tolist() == sorted(expected)
    assert kept.num_missing == len(values) - len(scored)
    assert kept.num_scored == len(scored)
    if expected:
        assert kept.cut == scores[expected].max()
        assert kept.tie_count == sum(scores[i] == kept.cut for i in scored)
        dropped = [scores[i] for i in scored if i not in expected]
        assert not dropped or kept.cut <= min(dropped)
    else:
        assert kept.cut is None


def test_highest_fraction_is_lowest_fraction_of_the_negated_score():
    scores = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    hashes = ids(1000)
    highest = HighestFraction(column="s", fraction=0.3)({"s": scores}, hashes)
    lowest = LowestFraction(column="s", fraction=0.3)({"s": -scores}, hashes)

    np.testing.assert_array_equal(highest.mask_N, lowest.mask_N)
    assert highest.cut == -lowest.cut == scores[highest.mask_N].min()


def test_a_cut_inside_one_big_tie_keeps_the_smallest_hashes():
    hashes = ids(1000)
    kept = LowestFraction(column="s", fraction=0.25)({"s": np.ones(1000)}, hashes)

    assert set(hashes[kept.mask_N]) == set(np.sort(hashes)[:250])
    assert (kept.cut, kept.tie_count) == (1.0, 1000)


def test_doubled_ids_on_the_cut_are_an_error():
    same = np.array([7, 7, 9], dtype=np.uint64)
    with pytest.raises(DataError, match="must be unique"):
        LowestFraction(column="s", fraction=0.34)({"s": np.zeros(3)}, same)


def test_random_fraction_is_exact_and_changes_with_the_seed():
    hashes = ids(1000)
    first = RandomFraction(fraction=0.29, seed=1)({}, hashes)
    again = RandomFraction(fraction=0.29, seed=1)({}, hashes)
    other = RandomFraction(fraction=0.29, seed=2)({}, hashes)

    assert first.mask_N.sum() == other.mask_N.sum() == 290
    assert first.cut is None
    np.testing.assert_array_equal(first.mask_N, again.mask_N)
    overlap = (first.mask_N & other.mask_N).sum()
    assert 50 < overlap < 120, "two seeds should agree on about 84 of 290, by chance"


def test_counts_are_of_the_decimal_number_in_the_recipe():
    assert floor_count(0.29, 100) == 29
    assert floor_count(0.2, 4) == 0
    assert floor_count(1.0, 7) == 7


def test_hash_of_an_id_never_changes():
    assert hash_ids(["emoji/000001"]).tolist() == [hash_ids(["emoji/000001"])[0]]
    assert f"{int(hash_ids(['a'])[0]):016x}" == "40f89e395b66422f"


def test_recipes_reach_policies_by_name_and_typos_are_named():
    policy = KEEP_POLICIES.build({"name": "lowest_fraction", "column": "s", "fraction": 0.5})
    assert policy == LowestFraction(column="s", fraction=0.5)
    with pytest.raises(RecipeError, match="lowest_fraction"):
        KEEP_POLICIES.build({"name": "lowest_fractoin"})
    with pytest.raises(RecipeError, match="fraction: found 20, expected 0 to 1"):
        LowestFraction(column="s", fraction=20)
    with pytest.raises(DataError, match="'perplexity'; the score run has s"):
        LowestFraction(fraction=0.5)({"s": np.zeros(1)}, ids(1))


def test_histograms_of_parts_add_up_to_the_histogram_of_the_whole():
    values = np.random.default_rng(1).normal(size=5000).astype(np.float32)
    values[::100] = np.nan
    whole, left, right = FloatHistogram(), FloatHistogram(), FloatHistogram()
    whole.add(values)
    left.add(values[:1234])
    right.add(values[1234:])
    left.merge(right)

    np.testing.assert_array_equal(left.counts, whole.counts)
    assert (left.num_nan, left.total) == (50, 4950)
    with pytest.raises(ValueError, match="different passes"):
        left.merge(FloatHistogram(high=3))


@given(st.floats(width=32, allow_nan=False))
def test_keys_keep_the_order_and_come_back(value):
    array = np.array([value], dtype=np.float32)
    assert key_value(int(float_keys(array)[0])) == value
    if abs(value) < 3e38:
        above = np.nextafter(array, np.float32(np.inf))
        assert float_keys(above)[0] > float_keys(array)[0]


def test_the_walk_is_repeated_only_as_often_as_needed():
    scores = np.arange(1000, dtype=np.float32)
    walks = []

    def chunks():
        walks.append(1)
        return [(scores, ids(1000))]

    assert find_cut(chunks, lambda n: 100).value == 99.0
    assert len(walks) == 2


def test_shares_nest_and_are_of_their_size() -> None:
    ids = [f"sample-{number}" for number in range(20_000)]
    shares = {f: {i for i in ids if is_in_share(i, f)} for f in (0.0, 0.1, 0.25, 1.0)}
    assert shares[0.0] == set()
    assert shares[1.0] == set(ids)
    assert shares[0.1] < shares[0.25]
    # Five standard deviations of a fair draw.
    assert abs(len(shares[0.1]) - 2000) < 5 * (20_000 * 0.1 * 0.9) ** 0.5
    # Of the lowest tenth by the hash that filters draw by, a tenth, not all.
    lowest = set(np.array(ids)[np.argsort(hash_ids(ids))[:2000]])
    assert 130 < len(shares[0.1] & lowest) < 270
