"""The page of a search: decisions with intervals, shares, what was stopped, and the front."""

from pathlib import Path
from typing import Any

from tests.pipelines.soup.test_early_stop import STOP
from tests.pipelines.soup.test_early_stop import run as raced
from tests.pipelines.soup.test_tune import guarded, said
from tests.pipelines.soup.test_weights import GROUPS, asked

from consomme.base.manifest import Manifest
from consomme.pipelines.soup import report
from consomme.pipelines.soup.candidates import CandidateCache
from consomme.pipelines.soup.searched import _barriers, _saved, _told
from consomme.pipelines.soup.tune import CandidateSource
from consomme.report import model as page
from consomme.report.html import render
from consomme.soup.searches import SEARCHES


def front_page(folder: Path) -> str:
    cache = guarded(folder)
    search: Any = SEARCHES.build({"name": "nsga2", "max_evaluations": 40, "population": 8})
    source = CandidateSource({"nsga2": search}, 3, cache)
    asked(source)
    return html(source.outcome().results, cache, "abc")


def html(results: Any, cache: CandidateCache, labels: str, **decisions: Any) -> str:
    told = {name: _told(result, cache, list(labels)) for name, result in results.items()}
    singles = {label: cache.score((k,)) for k, label in enumerate(labels)}
    manifest = Manifest(
        verb="soup", name="s", fingerprint="0", recipe={}, inputs={}, started="",
        decisions={"searches": told, "labels": list(labels), "singles": singles, **decisions},
    )  # fmt: skip
    return render(page.Report(title="s", sections=report.sections([manifest], {})))


def test_the_front_is_drawn_and_the_soup_is_marked(tmp_path: Path) -> None:
    text = front_page(tmp_path)
    assert "numbers are those of the table, small dots other candidates" in text
    assert 'class="dot s2"' in text
    assert "candidates that no other one excels; the soup is marked" in text
    assert "(lost more than the guards allow)" in text
    assert "95 %: 0." in text


def test_what_was_stopped_and_shares_of_parts_are_told(tmp_path: Path) -> None:
    node = {"name": "cma_es", "max_evaluations": 30, "per_part": True}
    search: Any = {"cma_es": SEARCHES.build(node)}
    cache = CandidateCache(
        str(tmp_path), list("abcde"), said(tmp_path), early_stop=STOP, groups=GROUPS
    )
    source = CandidateSource(search, 5, cache)
    raced(source, cache)
    results = source.outcome().results
    saved = _saved(results, cache)
    text = html(results, cache, "abcde", early_stop=saved)
    assert (
        f"of {saved['questions']:,} questions {saved['saved_questions']:,} were not asked" in text
    )
    assert "asked no more after" in text
    assert "eye: " in text
    assert "Shares of the ingredients" in text


def test_barriers_are_drawn(tmp_path: Path) -> None:
    search: Any = SEARCHES.build({"name": "pairs"})
    cache = CandidateCache(str(tmp_path), list("abcde"), said(tmp_path))
    source = CandidateSource({"pairs": search}, 5, cache)
    raced(source, cache)
    result = source.outcome().results["pairs"]
    told = _told(result, cache, list("abcde")) | _barriers(search, cache, list("abcde"))
    assert len(told["barriers"]) == 10
    middle = cache.known_score((1, 3))
    ends = (cache.known_score((1,)) + cache.known_score((3,))) / 2
    (found,) = [one for one in told["barriers"] if (one["first"], one["second"]) == (1, 3)]
    assert found["barrier"] == ends - middle
    manifest = Manifest(
        verb="soup", name="s", fingerprint="0", recipe={}, inputs={}, started="",
        decisions={"searches": {"pairs": told}, "labels": list("abcde"), "singles": {}},
    )  # fmt: skip
    text = render(page.Report(title="s", sections=report.sections([manifest], {})))
    assert text.count("color-mix(in srgb, var(--c") >= 20
    assert "Barrier between two ingredients" in text
