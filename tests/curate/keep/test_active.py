"""Choosing what is unlike what is chosen: against the plain algorithms, in any order."""

from typing import Any

import numpy as np
import pytest

from consomme.base.errors import DataError, RecipeError
from consomme.base.hashing import hash_ids, mix_hash
from consomme.curate.keep import kcenter as choosing
from consomme.curate.keep.registry import KEEP_POLICIES

pytestmark = pytest.mark.slow

NUM = 150


def embedded(num: int = NUM, width: int = 19) -> tuple[dict[str, Any], Any]:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(num, width)).astype(np.float32)
    vectors[5] = vectors[6] = vectors[7]
    vectors[11, 3] = np.nan
    probs = rng.dirichlet(np.ones(4), size=num).astype(np.float32)
    probs[12] = np.nan
    scores = {"tags.embedding": vectors, "tags.class_probs": probs}
    return scores, hash_ids(f"sample-{k}" for k in range(num))


def chosen(node: dict[str, Any], scores: dict[str, Any], hashes: Any) -> set[int]:
    return set(np.flatnonzero(KEEP_POLICIES.build(node)(scores, hashes).mask_N).tolist())


def test_k_center_is_the_greedy_algorithm() -> None:
    scores, hashes = embedded()
    vectors = scores["tags.embedding"].astype(np.float64)
    keys = mix_hash(hashes, 3)
    there = [k for k in range(NUM) if k != 11]
    picked = [min(there, key=lambda k: keys[k])]
    for _ in range(29):
        near = {k: min(np.linalg.norm(vectors[k] - vectors[c]) for c in picked) for k in there}
        picked.append(max(there, key=lambda k: (near[k], -int(keys[k]))))
    node = {"name": "k_center", "samples": 30, "seed": 3}
    assert chosen(node, scores, hashes) == set(picked)
    stats = KEEP_POLICIES.build(node).decide(lambda: [(scores, hashes)]).describe()
    radius = max(min(np.linalg.norm(vectors[k] - vectors[c]) for c in picked) for k in there)
    assert stats["radius"] == pytest.approx(radius, rel=1e-6)
    assert (stats["num_scored"], stats["num_missing"]) == (NUM - 1, 1)
    # A share is of those with a vector.
    assert len(chosen({"name": "k_center", "fraction": 0.2}, scores, hashes)) == 29


def test_everything_can_be_chosen_copies_and_all() -> None:
    scores, hashes = embedded()
    for name, missing in (("k_center", {11}), ("badge", {11, 12})):
        found = chosen({"name": name, "samples": 10**6}, scores, hashes)
        assert found == set(range(NUM)) - missing


def gradients(scores: dict[str, Any]) -> Any:
    probs = scores["tags.class_probs"].astype(np.float64)
    slopes = probs - np.eye(4)[np.nan_to_num(probs).argmax(axis=1)]
    outer = slopes[:, :, None] * scores["tags.embedding"].astype(np.float64)[:, None, :]
    return outer.reshape(len(probs), -1)


def test_badge_is_k_means_plus_plus_on_gradient_embeddings() -> None:
    scores, hashes = embedded()
    outer, keys = gradients(scores), mix_hash(hashes, 2)
    there = [k for k in range(NUM) if k not in (11, 12)]
    picked = [max(there, key=lambda k: float(np.linalg.norm(outer[k])))]
    for step in range(1, 25):
        near = np.array([min(((outer[k] - outer[c]) ** 2).sum() for c in picked) for k in there])
        uniform = ((mix_hash(keys[there], step) >> np.uint64(11)) + 0.5) / 2.0**53
        with np.errstate(divide="ignore"):
            picked.append(there[int((np.log(uniform) / near).argmax())])
    assert chosen({"name": "badge", "samples": 25, "seed": 2}, scores, hashes) == set(picked)


@pytest.mark.long
def test_badge_draws_in_proportion_to_the_squared_distance() -> None:
    # One class is certain enough that distances are those of the embeddings, up to a factor. The
    # first choice is the longest; the others lie 1, 2 and 3 away from it.
    vectors = np.array([[9.0, 0.0], [8.0, 0.0], [7.0, 0.0], [6.0, 0.0]], np.float32)
    scores = {
        "tags.embedding": vectors,
        "tags.class_probs": np.array([[0.6, 0.4]] * 4, np.float32),
    }
    hashes = hash_ids("abcd")
    seconds = [
        (chosen({"name": "badge", "samples": 2, "seed": seed}, scores, hashes) - {0}).pop()
        for seed in range(6000)
    ]
    shares = np.bincount(seconds, minlength=4) / len(seconds)
    # Of 6,000 draws a share is known to ±2 points, three standard deviations.
    np.testing.assert_allclose(shares, np.array([0, 1, 4, 9]) / 14, atol=0.02)


@pytest.mark.parametrize("name", ["k_center", "badge"])
def test_order_parts_and_blocks_make_no_difference(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(4)
    # Many distances differ by rounding only: a sum that depends on where a row stands would show.
    vectors = rng.choice([-0.1, 0.1], size=(400, 301)).astype(np.float32)
    probs = np.tile(np.array([[0.25, 0.75], [0.75, 0.25]], np.float32), (200, 1))
    hashes = hash_ids(map(str, range(len(vectors))))
    policy = KEEP_POLICIES.build({"name": name, "samples": 60})
    found = []
    for block, parts in ((1 << 19, 1), (1000, 7), (301, 400)):
        monkeypatch.setattr(choosing, "_BLOCK", block)
        order = rng.permutation(len(vectors))
        chunks = [
            ({"tags.embedding": vectors[some], "tags.class_probs": probs[some]}, hashes[some])
            for some in np.array_split(order, parts)
        ]
        decision = policy.decide(lambda chunks=chunks: chunks)
        found.append({int(h) for c, some in chunks for h in some[decision.mask(c, some)]})
    assert len(found[0]) == 60
    assert found[1:] == found[:-1]


def test_what_would_take_days_is_refused_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "MAX_DISTANCES", 5000)
    scores, hashes = embedded()
    with pytest.raises(
        DataError, match=r"74 of 149 samples take 1\.1e\+04 distances, .* at most"
    ) as e:
        chosen({"name": "k_center", "fraction": 0.5}, scores, hashes)
    assert "at most 33 (samples: …)" in str(e.value)
    assert "in_turn" in str(e.value)
    assert len(chosen({"name": "k_center", "samples": 33}, scores, hashes)) == 33


def test_columns_of_another_kind_are_refused() -> None:
    scores, hashes = embedded()
    flat = {**scores, "tags.embedding": scores["tags.embedding"][:, 0]}
    with pytest.raises(DataError, match=r"'tags\.embedding' holds no vectors"):
        chosen({"name": "k_center"}, flat, hashes)
    with pytest.raises(RecipeError, match="samples: found -1, expected at least 0"):
        KEEP_POLICIES.build({"name": "k_center", "samples": -1})
