"""Searches ask for candidates and get their scores, as Ray Tune would deliver them."""

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from consomme.base.errors import CheckpointError, ClusterError
from consomme.pipelines.soup.tune import CandidateCache, CandidateSource, tune_searches
from consomme.soup.search import GreedySoup, UniformSoup
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.stores.open import open_store

SCORES = {(0,): 0.5, (1,): 0.7, (2,): 0.6, (1, 2): 0.75, (0, 1, 2): 0.72}
BENCHMARK = {"name": "scene_questions", "num": 2}
SEARCHES = {"greedy": GreedySoup(), "uniform": UniformSoup()}


@pytest.fixture
def cache(tmp_path) -> CandidateCache:
    return CandidateCache(open_store(str(tmp_path)), ["a", "b", "c"], BENCHMARK)


def test_every_candidate_is_scored_once_and_singles_in_parallel(tmp_path, cache):
    source = CandidateSource(SEARCHES, 3, cache)
    singles = [source.ask() for _ in range(3)]
    assert [config["selection"] for config in singles] == [[0], [1], [2]]
    # Nothing else can be asked for before the scores of the singles are known.
    assert source.ask() is None
    assert not source.is_finished
    for config in singles:
        source.tell(config, {"score": SCORES[tuple(config["selection"])]})
    asked = []
    while (config := source.ask()) is not None:
        asked.append(tuple(config["selection"]))
        source.tell(config, {"score": SCORES[asked[-1]]})
    assert source.is_finished
    assert asked == [(1, 2), (0, 1, 2)]
    results = source.results()
    assert {name: result.chosen for name, result in results.items()} == {
        "greedy": (1, 2),
        "uniform": (0, 1, 2),
    }
    assert cache.num_scored == 5
    # Another run with the same ingredients in another order has nothing left to score.
    again = CandidateCache(open_store(str(tmp_path)), ["c", "b", "a"], BENCHMARK)
    source = CandidateSource(SEARCHES, 3, again)
    assert source.ask() is None
    assert source.is_finished
    assert source.results()["greedy"].chosen == (0, 1)


def test_a_failed_candidate_ends_the_search(cache):
    source = CandidateSource({"uniform": UniformSoup()}, 3, cache)
    source.tell(source.ask(), None)
    assert source.ask() is None
    assert source.is_finished
    with pytest.raises(ClusterError, match=r"scoring \(0, 1, 2\) failed"):
        source.results()


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
        tune_searches(searches, [str(folder)] * 3, BENCHMARK, cache, 1, run)
    assert caught.value.exit_code == 2
