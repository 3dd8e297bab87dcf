"""Actors guide a model as one process does, whatever the units, and the report says so."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.engines.test_regions import small_detr
from tests.pipelines.evaluate.test_guidance import answers, built

from consomme.curate.perplexity import token_nll
from consomme.engines.generation.requests import Sampling
from consomme.engines.generation.transformers import TransformersEngine
from consomme.engines.scoring.transformers import TransformersScorer
from consomme.evaluate.benchmarks import BENCHMARKS
from consomme.pipelines.evaluate import run as evaluate
from consomme.pipelines.evaluate.kept import read_answers
from consomme.pipelines.evaluate.recipe import EvaluateRecipe
from consomme.pipelines.report.run import run_folder
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.model_folder import model_folder

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]
NANO = "package://models/nano"


def test_actors_guide_as_one_process_does(tmp_path: Path, one_ray: Any) -> None:
    questions = {"name": "scene_questions", "num": 3, "style": "outline"}
    choices = {"name": "scene_negatives", "num": 6, "style": "outline"}
    # A detector that lies on disk; of its labels a question names none, so nothing is masked.
    detector = {"name": "detector", "model": str(small_detr(tmp_path / "detector"))}
    nodes = (
        {**questions, "guidance": {"alpha": 3}},
        questions,
        {**choices, "guidance": {"alpha": 1}},
        {**questions, "guidance": {"boxes": detector}},
    )
    run = evaluate.run(
        EvaluateRecipe(
            name="guided",
            root=str(tmp_path / "runs"),
            models={"nano": NANO},
            benchmarks=nodes,
            unit_items=7,
            num_actors=2,
        )
    )
    rows = read_answers(RunFolder.at(run.url).store).to_pylist()
    said: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: row["number"]):
        said.setdefault(row["benchmark"], []).append(row["answer"])
    engine = TransformersEngine(model_folder(NANO), Sampling(), dtype="float32")
    expected = [one.text for one in answers(engine, built(questions, alpha=3))]
    plain = [one.text for one in answers(engine, BENCHMARKS.build(questions))]
    assert said["scene_questions_outline_guided_3"] == expected != plain
    assert (
        said["scene_questions_outline"]
        == said["scene_questions_outline_guided_1_detector"]
        == plain
    )
    scorer = TransformersScorer(model_folder(NANO), token_nll, dtype="float32")
    for one, other in zip(
        answers(scorer, built(choices, alpha=1)),
        said["scene_negatives_outline_guided_1"],
        strict=True,
    ):
        found, nlls = json.loads(one.text), json.loads(other)
        assert found == pytest.approx(nlls, rel=1e-5)
    # A question that names what is not there has no region.
    named = sum(bool(item.meta["boxes"]) for item in built(questions, alpha=3).items())
    assert 0 < named < len(plain)
    assert run.counts["guided"] == named + 6
    assert run.counts["not_guided"] == len(plain) - named + len(plain)
    run_folder(run.url)
    page = (Path(run.url) / "report.html").read_text()
    assert "guided by regions (CRG), alpha 3, boxes of data, blackout of boxes" in page
    assert "boxes of detector" in page
