"""Actors of evaluate and of soup answer questions about several images, and continue documents."""

from pathlib import Path

import pytest

from consomme.engines.generation.requests import Request, Sampling
from consomme.engines.generation.transformers import TransformersEngine
from consomme.evaluate.benchmarks import BENCHMARKS
from consomme.pipelines.evaluate.answers import Answerer
from consomme.pipelines.soup.worker import SCORE, CandidateRunner
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.model_folder import model_content_hash, model_folder

NANO = "package://models/nano"
NAMES = ("scene_which", "scene_changes", "scene_documents")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model_hash() -> str:
    return model_content_hash(model_folder(NANO))


def test_an_answer_to_each_question_is_that_of_the_engine(tmp_path: Path, model_hash: str) -> None:
    engine = TransformersEngine(model_folder(NANO), dtype="float32", model_hash=model_hash)
    actor = Answerer({}, RunFolder.at(str(tmp_path)))
    for name in NAMES:
        node = {"name": name, "num": 3, "max_tokens": 8}
        number, answers = actor.answer(7, NANO, model_hash, node)
        assert number == 7
        items = BENCHMARKS.build(node).items()
        requests = [Request(turns=item.turns, images=item.images) for item in items]
        engine.sampling = Sampling(max_tokens=8)
        assert answers == [one.text.strip() for one in engine.generate(requests)]
        _, blank = actor.answer(7, NANO, model_hash, {**node, "blank": True})
        assert blank != answers, "answers depend on the images"


def test_a_soup_is_scored_on_them(tmp_path: Path, model_hash: str) -> None:
    node = {"name": "scene_documents", "num": 2, "max_tokens": 8}
    runner = CandidateRunner(
        [NANO, NANO], node, model_hash=model_hash, run_folder=RunFolder.at(str(tmp_path))
    )
    runner.start({"selection": [0, 1]})
    done = runner.step()
    assert done["done"]
    assert 0 <= done[SCORE] <= 1
