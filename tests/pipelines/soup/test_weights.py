"""Searches among shares ask for blends, whose answers are found when they come again."""

from pathlib import Path
from typing import Any

import pytest
from tests.pipelines.soup.test_tune import NUM, guarded, said, told

from consomme.base.errors import RecipeError
from consomme.pipelines.soup.candidates import CandidateCache
from consomme.pipelines.soup.recipe import SoupRecipe
from consomme.pipelines.soup.tune import CandidateSource
from consomme.soup.blends import WHOLE, Blend, Grouping, TensorGroups, blend, from_plain
from consomme.soup.searches import SEARCHES

PARTS = Grouping(per_part=True)
GROUPS = {PARTS: TensorGroups(names=("eye", "mouth"), group_of={"a": 0, "b": 1})}


def asked(source: CandidateSource, **figures: Any) -> list[Any]:
    """Answer everything that is asked; a score depends on the share of the first ingredient."""
    found = []
    while (config := source.ask()) is not None:
        candidate = from_plain(config)
        found.append(candidate)
        rows = candidate.shares() if isinstance(candidate, Blend) else None
        first = rows[0][0] if rows else (0 in candidate) / len(candidate)
        scores = {0: round(NUM * (0.9 - abs(first - 0.7))) / NUM, 1: first if rows else 0.9, 2: 0.3}
        source.tell(config, told(**{f"n{n}": scores[n] for n in config["numbers"]}))
    return found


@pytest.mark.parametrize("name", ["tpe", "cma_es"])
def test_a_search_that_comes_again_finds_its_candidates(tmp_path: Path, name: str) -> None:
    searches: Any = {name: SEARCHES.build({"name": name, "per_part": True, "max_evaluations": 24})}

    node = said(tmp_path)

    def cache(hashes: str = "abc") -> CandidateCache:
        return CandidateCache(str(tmp_path), list(hashes), node, groups=GROUPS)

    source = CandidateSource(searches, 3, cache())
    # It ends in the middle, as if it was killed.
    for _ in range(12):
        config = source.ask()
        source.tell(config, told(n0=0.5))
    again, known = CandidateSource(searches, 3, cache()), cache()
    new = asked(again)
    assert 0 < len(new) <= 24 - 12
    result = again.outcome().results[name]
    assert result.num_evaluations == 24
    third = CandidateSource(searches, 3, cache())
    assert third.ask() is None
    assert third.outcome().results[name] == result
    assert known.get(result.soup, 0) is not None
    # An ingredient that joins changes what is asked for, and nothing is asked twice.
    first = CandidateSource(searches, 4, cache("abcd"))
    assert not {(0,), (1,), (2,), (0, 1, 2)} & set(asked(first))


def test_what_a_blend_is_called_depends_on_its_content(tmp_path: Path) -> None:
    def hash_of(candidate: Any, hashes: str = "abc", **options: Any) -> str:
        cache = CandidateCache(str(tmp_path), list(hashes), said(tmp_path), **options)
        return cache._model(candidate)

    whole = blend(WHOLE, [(3, 1, 0)])
    assert hash_of(whole) == hash_of(blend(WHOLE, [(0, 1, 3)]), "cba")
    assert hash_of(whole) != hash_of(blend(WHOLE, [(1, 3, 0)]))
    assert hash_of(whole) != hash_of(whole, method=[{"name": "slerp"}])
    parts = blend(PARTS, [(3, 1, 0), (0, 0, 1)])
    assert hash_of(parts, groups=GROUPS) == hash_of(
        blend(PARTS, [(0, 1, 3), (1, 0, 0)]), "cba", groups=GROUPS
    )
    swapped = {PARTS: TensorGroups(names=("eye", "mouth"), group_of={"a": 1, "b": 0})}
    assert hash_of(parts, groups=GROUPS) != hash_of(parts, groups=swapped)


def test_the_soup_of_a_front_is_the_best_that_keeps_the_language(tmp_path: Path) -> None:
    cache = guarded(tmp_path)
    search: Any = SEARCHES.build({"name": "nsga2", "max_evaluations": 40, "population": 8})
    source = CandidateSource({"nsga2": search}, 3, cache)
    asked(source)
    result = source.outcome().results["nsga2"]
    assert cache.objective_names == ("said", "language")
    assert len(result.front) > 1
    values = [cache.objectives(one) for one in result.front]
    assert values == sorted(values, reverse=True)
    # 0.05 of 0.9 may be lost: blends with a share of 0.85 or more of the first, or selections.
    assert cache.passes(result.soup)
    scored = [step.scored for step in result.trace]
    passing = [one for one in scored if cache.passes(one)]
    assert 3 < len(passing) < len(scored)
    assert cache.score(result.soup) == max(cache.score(one) for one in passing)
    assert cache.score(result.soup) < max(cache.score(one) for one in scored)
    lost = next(one for one in scored if not cache.passes(one))
    assert cache.worth(lost) == cache.score(lost) - 1


@pytest.mark.parametrize(
    ("searches", "message"),
    [
        (({"name": "nsga2"},), "found nsga2 with one objective"),
        (({"name": "tpe"}, {"name": "tpe", "seed": 1}), "found tpe 2 times"),
    ],
)
def test_searches_that_cannot_run(searches: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        SoupRecipe(
            name="x", ingredients={"a": "a", "b": "b"}, benchmark=said(tmp_path), searches=searches
        )
