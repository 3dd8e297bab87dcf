"""Actors of evaluate and of soup answer questions about several images, and continue documents."""

import json
from pathlib import Path
from typing import Any

import pytest

from consomme.engines.generation.models import find_model
from consomme.engines.generation.registry import GENERATION_ENGINES
from consomme.engines.generation.requests import Request, Sampling
from consomme.engines.generation.transformers import TransformersEngine
from consomme.evaluate.benchmarks import BENCHMARKS
from consomme.evaluate.engine_rules import DEFAULT_ENGINE
from consomme.execution.stage import DecodedSample
from consomme.pipelines.evaluate.answers import AskedBenchmark
from consomme.pipelines.evaluate.asked import read_numbers
from consomme.pipelines.evaluate.stage import AnswerStage
from consomme.pipelines.soup.worker import ANSWERS, CandidateRunner
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.model_folder import model_content_hash, model_folder
from consomme.storage.unit import Unit

NANO = "package://models/nano"
NAMES = ("scene_which", "scene_changes", "scene_documents")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model_hash() -> str:
    return model_content_hash(model_folder(NANO))


def answers_to(nodes: list[dict[str, Any]], folder: Path) -> list[list[str]]:
    """What an actor answers, one unit of each benchmark."""
    engine = GENERATION_ENGINES.build(DEFAULT_ENGINE)
    model = find_model(NANO, engine)
    asked = [
        part
        for k, node in enumerate(nodes)
        for part in AskedBenchmark(
            label="nano", model=model, name=str(k), node=node, benchmark=BENCHMARKS.build(node)
        ).asked()
    ]
    stage = AnswerStage(asked, DEFAULT_ENGINE, {}, folder=RunFolder.at(str(folder)))
    found = []
    for one in asked:
        unit = Unit(
            unit_id=one.source, source=one.source, shard="", start=0, count=one.num_items,
            num_bytes=0,
        )  # fmt: skip
        samples, _ = read_numbers(unit)
        outcome = stage.work(
            [DecodedSample(row=row, sample=sample, images=()) for row, sample in samples]
        )
        assert not outcome.rejects
        found.append(outcome.table["answer"].to_pylist())
    return found


def test_an_answer_to_each_question_is_that_of_the_engine(tmp_path: Path, model_hash: str) -> None:
    engine = TransformersEngine(model_folder(NANO), dtype="float32", model_hash=model_hash)
    nodes = [
        {"name": name, "num": 3, "max_tokens": 8, "blank": blank}
        for name in NAMES
        for blank in (False, True)
    ]
    found = answers_to(nodes, tmp_path)
    for name, answers, blank in zip(NAMES, found[::2], found[1::2], strict=True):
        items = BENCHMARKS.build({"name": name, "num": 3, "max_tokens": 8}).items()
        requests = [Request(turns=item.turns, images=item.images) for item in items]
        engine.sampling = Sampling(max_tokens=8)
        assert answers == [one.text.strip() for one in engine.generate(requests)]
        assert blank != answers, "answers depend on the images"


def test_a_soup_is_scored_on_them(tmp_path: Path, model_hash: str) -> None:
    node = {"name": "scene_documents", "num": 2, "max_tokens": 8}
    runner = CandidateRunner(
        {"a": NANO, "b": NANO},
        [node],
        model_hash=model_hash,
        run_folder=RunFolder.at(str(tmp_path)),
    )
    runner.start({"selection": [0, 1], "numbers": [0]})
    done = runner.step()
    assert done["done"]
    answers = json.loads(done[ANSWERS])["0"]["answers"]
    assert len(answers) == len(BENCHMARKS.build(node).items())
    assert any(answers)
