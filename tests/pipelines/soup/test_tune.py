"""Searches ask for candidates and get their answers, as Ray Tune would deliver them."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tests.evaluate.test_file_kinds import write_tsv

from consomme.base.errors import CheckpointError, ClusterError, DataError
from consomme.evaluate.guards import Guard
from consomme.pipelines.soup.candidates import CandidateCache
from consomme.pipelines.soup.tune import CandidateSource, tune_searches
from consomme.soup.selections import GreedySoup, MaximumSoup, UniformSoup
from consomme.storage.ledger.run_folder import RunFolder

SCORES = {(0,): 0.5, (1,): 0.7, (2,): 0.6, (1, 2): 0.75, (0, 1, 2): 0.72}
SEARCHES = {"greedy": GreedySoup(), "uniform": UniformSoup()}
NUM = 100


def said(folder: Path, name: str = "said") -> dict[str, Any]:
    """Questions that are all answered by yes, so that a score is a number of yeses."""
    rows = [{"question": f"{name} {k}?", "answer": "yes"} for k in range(NUM)]
    return {"name": "yes_no", "file": write_tsv(folder / f"{name}.tsv", rows)}


def answers(score: float) -> list[str]:
    return ["yes"] * round(score * NUM) + ["no"] * round((1 - score) * NUM)


def told(**scores: float) -> dict[str, Any]:
    return {
        "answers": json.dumps(
            {key[1:]: {"answers": answers(score)} for key, score in scores.items()}
        )
    }


@pytest.fixture
def cache(tmp_path: Path) -> CandidateCache:
    return CandidateCache(str(tmp_path), ["a", "b", "c"], said(tmp_path))


def test_every_candidate_is_scored_once_and_singles_in_parallel(
    tmp_path: Path, cache: CandidateCache
) -> None:
    source = CandidateSource(SEARCHES, 3, cache)
    singles = [source.ask() for _ in range(3)]
    assert [config["selection"] for config in singles] == [[0], [1], [2]]
    assert [config["numbers"] for config in singles] == [[0], [0], [0]]
    # Nothing else can be asked for before the scores of the singles are known.
    assert source.ask() is None
    assert not source.is_finished
    for config in singles:
        source.tell(config, told(n0=SCORES[tuple(config["selection"])]))
    asked = []
    while (config := source.ask()) is not None:
        asked.append(tuple(config["selection"]))
        source.tell(config, told(n0=SCORES[asked[-1]]))
    assert source.is_finished
    assert asked == [(1, 2), (0, 1, 2)]
    outcome = source.outcome()
    assert {name: result.chosen for name, result in outcome.results.items()} == {
        "greedy": (1, 2),
        "uniform": (0, 1, 2),
    }
    assert outcome.best == "greedy"
    assert cache.num_scored == 5
    # Another run with the same ingredients in another order has nothing left to score.
    again = CandidateCache(str(tmp_path), ["c", "b", "a"], said(tmp_path))
    source = CandidateSource(SEARCHES, 3, again)
    assert source.ask() is None
    assert source.is_finished
    assert source.outcome().results["greedy"].chosen == (0, 1)


def guarded(folder: Path, **options: Any) -> CandidateCache:
    guard = Guard(benchmark=said(folder, "language"), at_most_worse=0.05, **options)
    return CandidateCache(
        str(folder),
        ["a", "b", "c"],
        said(folder),
        guards=[guard],
        report=[said(folder, "reported")],
        base_hash="base",
    )


LANGUAGE = {(0,): 0.85, (1,): 0.84, (2,): 0.9, (0, 2): 0.88, (3,): 0.9}
"""Of the base, (3,), 0.9: 1 alone lost more than 0.05."""


def run(source: CandidateSource, language: dict[tuple[int, ...], float]) -> list[dict[str, Any]]:
    asked = []
    while (config := source.ask()) is not None:
        asked.append(config)
        selection = tuple(config["selection"])
        scores = {0: SCORES.get(selection, 0.55), 1: language.get(selection, 0.0), 2: 0.33}
        source.tell(config, told(**{f"n{n}": scores[n] for n in config["numbers"]}))
    return asked


def test_a_candidate_that_lost_its_language_is_not_chosen(tmp_path: Path) -> None:
    cache = guarded(tmp_path)
    source = CandidateSource({"greedy": GreedySoup(), "best": MaximumSoup(k=1)}, 3, cache)
    asked = run(source, LANGUAGE)
    outcome = source.outcome()
    # 1 is the best by what chooses, and not taken; 2 is.
    assert outcome.results["best"].chosen == (2,)
    assert outcome.results["greedy"].chosen == (2,)
    assert not outcome.ignores_guards
    assert not cache.passes((1, 2))
    finding = cache.findings((1,))[0]
    assert (finding.base, finding.tuned, finding.passes) == (0.9, 0.84, False)
    assert finding.difference == pytest.approx(-0.06)
    assert finding.low < -0.06 < finding.high
    # A loss of exactly 0.05 is allowed.
    assert cache.findings((0,))[0].passes
    # The base answers the guard only, and what reports is asked of what was chosen only.
    assert [one["numbers"] for one in asked if one["selection"] == [3]] == [[1]]
    assert [one["selection"] for one in asked if 2 in one["numbers"]] == [[2]]
    assert cache.figures((2,), 2)["accuracy_fraction"] == pytest.approx(0.33)


def test_if_all_lost_it_the_guard_says_what_is_done(tmp_path: Path) -> None:
    language = {(3,): 0.9}
    source = CandidateSource(SEARCHES, 3, guarded(tmp_path))
    run(source, language)
    with pytest.raises(DataError, match=r"language was lost.*0\.9000 -> 0\.0000.*otherwise=warn"):
        source.outcome()
    # What was measured is not measured again.
    again = guarded(tmp_path, otherwise="warn")
    source = CandidateSource(SEARCHES, 3, again)
    assert [one["numbers"] for one in run(source, language)] == [[2], [2], [2]]
    outcome = source.outcome()
    assert outcome.ignores_guards
    assert outcome.results[outcome.best].chosen == (1, 2)


def test_a_failed_candidate_ends_the_search(cache: CandidateCache) -> None:
    source = CandidateSource({"uniform": UniformSoup()}, 3, cache)
    source.tell(source.ask(), None)
    assert source.ask() is None
    assert source.is_finished
    with pytest.raises(ClusterError, match=r"asking candidate \(0, 1, 2\) failed"):
        source.outcome()


@pytest.mark.ray
def test_what_a_trial_finds_wrong_with_a_model_is_the_users_to_mend(
    tmp_path: Path, debug_vlm: Path, one_ray: object, cache: CandidateCache
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in debug_vlm.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    del tensors["multi_modal_projector.linear_1.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    searches = {"uniform": UniformSoup()}
    run = RunFolder.at(str(tmp_path / "run"))
    with pytest.raises(CheckpointError, match=r"linear_1\.weight is missing") as caught:
        tune_searches(searches, dict.fromkeys("abc", str(folder)), cache, 1, run)
    assert caught.value.exit_code == 2
