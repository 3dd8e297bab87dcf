"""Policies beyond a single rank: against what sorting would keep, however the samples are cut."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consomme.base.errors import DataError, RecipeError
from consomme.base.hashing import hash_ids, mix_hash
from consomme.curate.keep.registry import KEEP_POLICIES

VALUES = st.lists(
    st.tuples(
        st.sampled_from([-3.5, 0.0, 1.0, 1.0000001, 2.5, math.inf, math.nan]),
        st.integers(1, 9),
        st.sampled_from(["web", "books", "signs", ""]),
    ),
    min_size=1,
    max_size=50,
)
SOURCES = ("web", "books", "signs", "")


def columns_of(rows: list[tuple[float, int, str]]) -> tuple[dict[str, Any], Any]:
    scores = {
        "s": np.array([row[0] for row in rows], np.float32),
        "tokens": np.array([row[1] for row in rows], np.float32),
        "source": np.array([row[2] for row in rows], object),
    }
    return scores, hash_ids(f"sample-{k}" for k in range(len(rows)))


def ranked(scores: dict[str, Any], hashes: Any, *, highest: bool = False) -> list[int]:
    """Indices of scored samples as sorting puts them."""
    sign = -1 if highest else 1
    scored = [k for k in range(len(hashes)) if not math.isnan(scores["s"][k])]
    return sorted(scored, key=lambda k: (sign * scores["s"][k], hashes[k]))


def by_mean(scores: dict[str, Any], hashes: Any, *, highest: bool = False) -> list[int]:
    """Indices of samples that have both, by three parts score and one part log of tokens."""
    mean = {
        k: np.float32((3 * float(scores["s"][k]) + math.log(scores["tokens"][k])) / 4)
        for k in range(len(hashes))
        if not math.isnan(scores["s"][k])
    }
    sign = -1 if highest else 1
    return sorted(mean, key=lambda k: (sign * mean[k], hashes[k]))


def fits(scores: dict[str, Any], order: list[int], budget: int) -> set[int]:
    kept, left = set(), budget
    for k in order:
        left -= int(scores["tokens"][k])
        if left < 0:
            break
        kept.add(k)
    return kept


def lowest(some: list[int], fraction: float) -> set[int]:
    return set(some[: int(fraction * len(some))])


CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "drop_highest": (
        {"name": "drop_highest_fraction", "column": "s", "fraction": 0.25},
        lambda s, h: set(ranked(s, h)[: len(ranked(s, h)) - int(0.25 * len(ranked(s, h)))]),
    ),
    "lowest_count": (
        {"name": "lowest_count", "column": "s", "samples": 7},
        lambda s, h: set(ranked(s, h)[:7]),
    ),
    "highest_count": (
        {"name": "highest_count", "column": "s", "samples": 7},
        lambda s, h: set(ranked(s, h, highest=True)[:7]),
    ),
    "band": (
        {"name": "band", "column": "s", "low": 0.25, "high": 0.75},
        lambda s, h: lowest(ranked(s, h), 0.75) - lowest(ranked(s, h), 0.25),
    ),
    "threshold": (
        {"name": "threshold", "column": "s", "min": 0.0, "max": 1.0},
        lambda s, h: {k for k in range(len(h)) if 0 <= s["s"][k] <= 1},
    ),
    "token_budget": (
        {"name": "token_budget", "column": "s", "weight": "tokens", "tokens": 40},
        lambda s, h: fits(s, ranked(s, h), 40),
    ),
    "token_budget_highest": (
        {"name": "token_budget", "column": "s", "weight": "tokens", "tokens": 40, "highest": True},
        lambda s, h: fits(s, ranked(s, h, highest=True), 40),
    ),
    "per_source": (
        {
            "name": "per_stratum",
            "by": "source",
            "keep": {"name": "lowest_fraction", "column": "s", "fraction": 0.5},
        },
        lambda s, h: {
            k
            for name in SOURCES
            for k in lowest([k for k in ranked(s, h) if s["source"][k] == name], 0.5)
        },
    ),
    "per_length": (
        {
            "name": "per_stratum",
            "by": "tokens",
            "edges": [3, 6],
            "keep": {"name": "lowest_count", "column": "s", "samples": 2},
        },
        lambda s, h: {
            k
            for low, high in ((0, 3), (3, 6), (6, 99))
            for k in [k for k in ranked(s, h) if low <= s["tokens"][k] < high][:2]
        },
    ),
    "random_count": (
        {"name": "random_count", "samples": 7, "seed": 4},
        lambda s, h: set(np.argsort(mix_hash(h, 4))[:7].tolist()),
    ),
    "one_of": (
        {"name": "one_of", "column": "source", "values": ["web", "signs", "nowhere"]},
        lambda s, h: {k for k in range(len(h)) if s["source"][k] in ("web", "signs")},
    ),
    "none_of": (
        {"name": "one_of", "column": "source", "none_of": ["web"]},
        lambda s, h: {k for k in range(len(h)) if s["source"][k] in ("books", "signs")},
    ),
    "no_text": (
        {"name": "one_of", "column": "source", "values": ["", "web"]},
        lambda s, h: {k for k in range(len(h)) if s["source"][k] in ("", "web")},
    ),
    "lengths_and_names": (
        {
            "name": "all_of",
            "policies": [
                {"name": "threshold", "column": "tokens", "min": 3, "max": 6},
                {"name": "one_of", "column": "source", "none_of": ["web"]},
            ],
        },
        lambda s, h: {
            k
            for k in range(len(h))
            if 3 <= s["tokens"][k] <= 6 and s["source"][k] in ("books", "signs")
        },
    ),
    "in_turn": (
        {
            "name": "in_turn",
            "policies": [
                {"name": "threshold", "column": "tokens", "min": 4},
                {"name": "lowest_fraction", "column": "s", "fraction": 0.5},
                {"name": "highest_count", "column": "tokens", "samples": 3},
            ],
        },
        lambda s, h: set(
            sorted(
                lowest([k for k in ranked(s, h) if s["tokens"][k] >= 4], 0.5),
                key=lambda k: (-s["tokens"][k], h[k]),
            )[:3]
        ),
    ),
    "mean": (
        {
            "name": "mean_fraction",
            "terms": [{"column": "s", "weight": 3.0}, {"column": "tokens", "log": True}],
            "fraction": 0.5,
        },
        lambda s, h: lowest(by_mean(s, h), 0.5),
    ),
    "highest_mean": (
        {
            "name": "mean_fraction",
            "terms": [{"column": "s", "weight": 3.0}, {"column": "tokens", "log": True}],
            "fraction": 0.5,
            "highest": True,
        },
        lambda s, h: lowest(by_mean(s, h, highest=True), 0.5),
    ),
    "all_of": (
        {
            "name": "all_of",
            "policies": [
                {"name": "lowest_fraction", "column": "s", "fraction": 0.75},
                {"name": "threshold", "column": "tokens", "min": 4},
            ],
        },
        lambda s, h: {k for k in lowest(ranked(s, h), 0.75) if s["tokens"][k] >= 4},
    ),
    "any_of": (
        {
            "name": "any_of",
            "policies": [
                {"name": "lowest_fraction", "column": "s", "fraction": 0.25},
                {"name": "threshold", "column": "tokens", "min": 8},
            ],
        },
        lambda s, h: lowest(ranked(s, h), 0.25) | {k for k in range(len(h)) if s["tokens"][k] >= 8},
    ),
}


@pytest.mark.parametrize("case", CASES)
@given(rows=VALUES, random=st.randoms(use_true_random=False))
def test_what_stays_is_what_sorting_would_keep_in_any_parts(
    case: str, rows: list[tuple[float, int, str]], random: Any
) -> None:
    node, expected = CASES[case]
    policy = KEEP_POLICIES.build(node)
    scores, hashes = columns_of(rows)
    kept = policy(scores, hashes)
    assert set(np.flatnonzero(kept.mask_N).tolist()) == expected(scores, hashes)
    order = list(range(len(rows)))
    random.shuffle(order)
    stops = sorted(random.randrange(len(rows) + 1) for _ in range(3))
    parts = [part for part in np.split(np.array(order), stops) if len(part)]
    chunks = [({name: v[part] for name, v in scores.items()}, hashes[part]) for part in parts]
    decision = policy.decide(lambda: chunks)
    found: set[int] = set()
    for part, (columns, some) in zip(parts, chunks, strict=True):
        found |= set(part[decision.mask(columns, some)].tolist())
    assert found == expected(scores, hashes)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"name": "band", "low": 0.6, "high": 0.2}, "expected low < high"),
        ({"name": "threshold"}, "neither min nor max"),
        ({"name": "threshold", "min": 2.0, "max": 1.0}, "min 2.0 above max 1.0"),
        ({"name": "token_budget", "tokens": -1}, "tokens: found -1, expected at least 0"),
        ({"name": "lowest_count", "samples": -1}, "samples: found -1, expected at least 0"),
        ({"name": "per_stratum", "edges": [3.0, 2.0]}, "expected ascending numbers"),
        ({"name": "per_stratum", "keep": {"name": "lowest_fractoin"}}, "lowest_fraction"),
        ({"name": "all_of", "policies": []}, "expected at least one"),
        ({"name": "in_turn", "policies": []}, "expected at least one"),
        ({"name": "one_of", "column": "source"}, "either values or none_of, found neither"),
        (
            {"name": "one_of", "column": "source", "values": ["a"], "none_of": ["b"]},
            "found both",
        ),
        ({"name": "mean_fraction", "terms": []}, "expected at least one"),
        ({"name": "mean_fraction", "terms": [{"column": "s", "weight": 0}]}, "other than 0"),
        ({"name": "mean_fraction", "terms": [{"colum": "s"}]}, "did you mean 'column'"),
    ],
)
def test_what_makes_no_sense_is_refused(node: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        KEEP_POLICIES.build(node)


def test_strata_of_numbers_want_edges_and_of_ids_are_refused() -> None:
    scores, hashes = columns_of([(1.0, k, f"id-{k}") for k in range(1100)])
    scores["perplexity"] = scores["s"]
    with pytest.raises(DataError, match="say where to cut it"):
        KEEP_POLICIES.build({"name": "per_stratum", "by": "tokens"})(scores, hashes)
    with pytest.raises(DataError, match="more than 1000 different values"):
        KEEP_POLICIES.build({"name": "per_stratum", "by": "source"})(scores, hashes)


def test_samples_without_a_number_are_a_stratum_of_their_own() -> None:
    scores, hashes = columns_of([(1.0, k, "web") for k in range(1, 7)])
    scores["tokens"][[1, 3]] = np.nan
    node = {
        "name": "per_stratum",
        "by": "tokens",
        "edges": [4.0],
        "keep": {"name": "random_count", "samples": 1},
    }
    kept = KEEP_POLICIES.build(node)(scores, hashes)
    assert kept.mask_N.sum() == 3
    assert kept.mask_N[[1, 3]].sum() == 1


def test_the_mean_of_logarithms_is_the_mean_of_nats_per_token() -> None:
    small, large = np.array([[8.0, 2.0], [4.0, 4.5]], np.float32).T
    scores = {"perplexity": small, "large.perplexity": large}
    terms = [{"column": name, "log": True} for name in scores]
    kept = KEEP_POLICIES.build({"name": "mean_fraction", "terms": terms, "fraction": 0.5})(
        scores, hash_ids("ab")
    )
    # 8 and 2 are 4 on average, and 4 and 4.5 are more; a plain mean says the opposite.
    assert kept.mask_N.tolist() == [True, False]
    assert kept.cut == pytest.approx(math.log(4))
    with pytest.raises(DataError, match="perplexity: found -1, and the logarithm"):
        KEEP_POLICIES.build({"name": "mean_fraction", "terms": terms})(
            {**scores, "perplexity": -small / 8}, hash_ids("ab")
        )
