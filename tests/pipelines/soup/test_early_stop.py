"""Candidates that are hopeless are asked no more, which changes the number of questions only."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.pipelines.soup.test_tune import said

from consomme.base.errors import RecipeError
from consomme.evaluate.early_stop import EarlyStop
from consomme.pipelines.soup.candidates import CandidateCache
from consomme.pipelines.soup.racing import Race
from consomme.pipelines.soup.recipe import SoupRecipe
from consomme.pipelines.soup.searched import _saved, _told
from consomme.pipelines.soup.tune import CandidateSource
from consomme.pipelines.soup.worker import ANSWERS, BEAT, STOPPED
from consomme.soup.blends import Blend, from_plain
from consomme.soup.searches import SEARCHES

STOP = EarlyStop(level=0.02, first_questions=8)


def answers(candidate: Any) -> list[str]:
    """A hundred questions; the nearer to three quarters of the first ingredient, the more right."""
    first = candidate.shares()[0][0] if isinstance(candidate, Blend) else None
    if first is None:
        first = (0 in candidate) / len(candidate)
    right = round(100 * (0.95 - abs(first - 0.75)))
    return ["yes" if (k * 37) % 100 < right else "no" for k in range(100)]


def run(source: CandidateSource, cache: CandidateCache) -> list[int]:
    """Answer as the actors do; returns how many questions each trial was asked."""
    asked = []
    while (config := source.ask()) is not None:
        texts = answers(from_plain(config))
        if BEAT in config:
            race = Race(cache.benchmarks[0], STOP)
            some: dict[int, str] = {}

            def ask(numbers: Any, texts: Any = texts, some: Any = some) -> dict[int, str]:
                some.update({k: texts[k] for k in numbers})
                return {k: texts[k] for k in numbers}

            if stopped := race.run(ask, config[BEAT]):
                assert len(some) == stopped.num_questions
                given = [some.get(k, "") for k in range(100)]
                told = {"num_questions": stopped.num_questions, "texts": given}
                source.tell(config, {STOPPED: json.dumps(told)})
                asked.append(stopped.num_questions)
                continue
        source.tell(config, {ANSWERS: json.dumps({0: {"answers": texts}})})
        asked.append(100)
    return asked


@pytest.mark.parametrize(
    "node",
    [
        {"name": "greedy"},
        {"name": "leave_one_out"},
        {"name": "exhaustive"},
        {"name": "random", "num": 12},
        {"name": "tpe", "max_evaluations": 30},
        {"name": "cma_es", "max_evaluations": 30},
    ],
    ids=lambda node: node["name"],
)
def test_the_result_is_as_good_and_fewer_questions_are_asked(
    tmp_path: Path, node: dict[str, Any]
) -> None:
    name = node["name"]
    search: Any = {name: SEARCHES.build(node)}
    benchmark = said(tmp_path)

    def cache(folder: str, stop: EarlyStop | None) -> CandidateCache:
        return CandidateCache(str(tmp_path / folder), list("abcde"), benchmark, early_stop=stop)

    whole = cache("whole", None)
    source = CandidateSource(search, 5, whole)
    assert set(run(source, whole)) == {100}
    expected = source.outcome().results[name]
    racing = cache("racing", STOP)
    source = CandidateSource(search, 5, racing)
    asked = run(source, racing)
    result = source.outcome().results[name]
    assert racing.unfinished(result.soup) is None, "what was stopped is not the soup"
    if name not in ("tpe", "cma_es"):
        # Searches by numbers learn from estimates, so they go other ways.
        assert result.soup == expected.soup
    assert racing.score(result.soup) >= whole.score((0,))
    saved = _saved({name: result}, racing)
    assert saved["stopped_candidates"] == sum(one < 100 for one in asked) > 0
    assert saved["saved_questions"] == sum(100 - one for one in asked)
    # A search that asks for one ingredient alone has all of them answer.
    assert saved["questions"] == 100 * saved["candidates"] <= 100 * len(asked)
    told = _told(result, racing, list("abcde"))
    for step in told["trace"]:
        if "stopped_after" in step:
            assert step["stopped_after"] < 100
            assert not step["accepted"]
            assert step["score"] < step["best_before"]
    # A search that comes again asks nothing: neither of those that were stopped.
    again = cache("racing", STOP)
    source = CandidateSource(search, 5, again)
    assert run(source, again) == []
    assert source.outcome().results[name] == result
    assert _told(source.outcome().results[name], again, list("abcde")) == told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"searches": ({"name": "uniform"}, {"name": "beam"})}, "uniform and beam need the scores"),
        ({"benchmark": None}, "benchmark: missing; early_stop compares"),
    ],
)
def test_an_early_stop_that_does_nothing_is_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    values: dict[str, Any] = {
        "name": "x", "ingredients": {"a": "a", "b": "b"}, "early_stop": STOP,
        "benchmark": said(tmp_path), **options,
    }  # fmt: skip
    with pytest.raises(RecipeError, match=message):
        SoupRecipe(**values)
