"""Benchmarks whose questions guide the model by regions: what is answered, counted and refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.evaluate.test_compositional import save, write_json
from tests.pipelines.evaluate.test_several_images import NANO

from consomme.base.errors import RecipeError
from consomme.base.recipe import check_recipe
from consomme.curate.perplexity import token_nll
from consomme.engines.contrast import Contrast
from consomme.engines.generation.models import find_model
from consomme.engines.generation.registry import GENERATION_ENGINES
from consomme.engines.generation.requests import Generation, Request, Sampling
from consomme.engines.generation.transformers import TransformersEngine
from consomme.engines.scoring.requests import ScoringRequest
from consomme.engines.scoring.transformers import TransformersScorer
from consomme.evaluate.benchmarks import BENCHMARKS
from consomme.evaluate.engine_rules import DEFAULT_ENGINE
from consomme.execution.stage import DecodedSample, Outcome
from consomme.pipelines.evaluate.answers import AskedBenchmark
from consomme.pipelines.evaluate.asked import read_numbers
from consomme.pipelines.evaluate.recipe import EvaluateRecipe
from consomme.pipelines.evaluate.stage import AnswerStage, likely_answers, written_answers
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.model_folder import model_folder
from consomme.storage.unit import Unit
from consomme.vision.boxes import read_regions
from consomme.vision.masking import masked

pytestmark = pytest.mark.slow
SCENES: dict[str, Any] = {"name": "scene_questions", "num": 3}


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return TransformersEngine(model_folder(NANO), Sampling(), dtype="float32")


@pytest.fixture(scope="module")
def scorer() -> TransformersScorer:
    return TransformersScorer(model_folder(NANO), token_nll, dtype="float32")


def built(node: dict[str, Any], **guidance: Any) -> Any:
    return BENCHMARKS.build({**node, "guidance": guidance})


def answers(engine: Any, benchmark: Any) -> list[Any]:
    items = benchmark.items()
    answer = likely_answers if hasattr(engine, "score") else written_answers
    return list(answer(engine, benchmark, items, range(len(items))))


def test_scenes_are_masked_where_the_question_names_something(engine: TransformersEngine) -> None:
    benchmark = built(SCENES, alpha=4)
    found = answers(engine, benchmark)
    plain = answers(engine, BENCHMARKS.build(SCENES))
    requests = []
    for item in benchmark.items():
        (image,) = item.images
        (regions,) = read_regions(item.meta["boxes"], [image.size])
        contrast = Contrast(alpha=4, images=(masked(image, regions),))
        requests.append(Request(turns=item.turns, images=(image,), max_tokens=6, contrast=contrast))
    expected = engine.generate(requests)
    assert [one.text for one in found] == [
        one.text.strip() for one in expected if isinstance(one, Generation)
    ]
    assert [one.text for one in found] != [one.text for one in plain]
    assert answers(engine, built(SCENES, alpha=0)) == plain


def test_likelihoods_are_guided_by_each_option(scorer: TransformersScorer) -> None:
    node = {"name": "scene_negatives", "num": 4}
    plain = [json.loads(one.text) for one in answers(scorer, BENCHMARKS.build(node))]
    benchmark = built(node, alpha=1)
    found = [json.loads(one.text) for one in answers(scorer, benchmark)]
    assert found != plain
    zero = [json.loads(one.text) for one in answers(scorer, built(node, alpha=0))]
    assert zero == plain
    item = benchmark.items()[0]
    (image,) = item.images
    (regions,) = read_regions(item.meta["boxes"], [image.size])
    contrast = Contrast(alpha=1, images=(masked(image, regions),))
    turns = ScoringRequest.of_caption("describe the image.", benchmark.candidates(0)["1"]).turns
    (score,) = scorer.score([ScoringRequest(turns=turns, images=(image,), contrast=contrast)])
    assert found[0]["1"] == pytest.approx(score.nll, rel=1e-5)


@pytest.mark.parametrize("node", [
    {"name": "scene_choices", "num": 2}, {"name": "scene_captions", "num": 2},
    {"name": "scene_grounding", "num": 2}, {"name": "scene_places", "num": 1},
])  # fmt: skip
def test_every_kind_of_scene_can_be_guided(
    node: dict[str, Any], engine: TransformersEngine, scorer: TransformersScorer
) -> None:
    benchmark = built(node, alpha=1)
    is_scored = hasattr(benchmark, "candidates")
    found = answers(scorer if is_scored else engine, benchmark)
    assert all(hasattr(one, "text") for one in found), found
    assert benchmark.measure([one.text for one in found])


def test_files_have_boxes_in_a_column(engine: TransformersEngine, tmp_path: Path) -> None:
    image = save(tmp_path, "a.jpg", (60, 60))
    rows = [
        {"image": image, "question": "what color is the star?", "answer": "red", "boxes": boxes}
        for boxes in ([[0, 0, 30, 30]], [], None, [[30, 0, 0, 30]], [[0, 0, 900, 900]])
    ]
    node = {"name": "open", "file": write_json(tmp_path, "q.json", rows), "metric": "exact"}
    found = answers(engine, built(node, alpha=3))
    plain = answers(engine, BENCHMARKS.build(node))
    assert found[1:3] == plain[1:3]
    assert [one.reason for one in found[3:]] == ["region_unreadable"] * 2
    assert "left < right" in found[3].detail


def unit_of(node: dict[str, Any], folder: Path) -> Outcome:
    """What an actor makes of all requests of a benchmark."""
    asked = list(
        AskedBenchmark(
            label="nano",
            model=find_model(NANO, GENERATION_ENGINES.build(DEFAULT_ENGINE)),
            name="b",
            node=node,
            benchmark=BENCHMARKS.build(node),
        ).asked()
    )
    stage = AnswerStage(asked, DEFAULT_ENGINE, {}, folder=RunFolder.at(str(folder)))
    (one,) = asked
    samples, _ = read_numbers(
        Unit(unit_id="u", source=one.source, shard="", start=0, count=one.num_items, num_bytes=0)
    )
    return stage.work([DecodedSample(row=k, sample=s, images=()) for k, s in samples])


@pytest.mark.parametrize("name", ["scene_questions", "scene_choices"])
def test_the_models_own_boxes_guide_it_and_guided_requests_are_counted(
    name: str, tmp_path: Path
) -> None:
    """A model that scores is opened once more, to write its boxes."""
    prompt = (
        "Describe the elements of the image and give the place of each as [xmin,ymin,xmax,ymax]."
    )
    boxes = {"name": "model", "prompt": prompt + " {text}", "scale": 999}
    outcome = unit_of({"name": name, "num": 2, "guidance": {"boxes": boxes}}, tmp_path)
    counts = outcome.counts
    assert outcome.table.num_rows == counts["guided"] + counts["not_guided"]
    known = unit_of({"name": name, "num": 2, "guidance": {}}, tmp_path)
    assert known.counts["guided"] > 0
    assert "guided" not in unit_of({"name": name, "num": 2}, tmp_path).counts


def test_other_engines_refuse_before_anything_runs() -> None:
    node = {"name": "scene_questions", "guidance": {"alpha": 1}}
    weighted = {"name": "weighted", "parts": [{"benchmark": node}]}
    for engine in ({"name": "vllm", "dtype": "float32"}, {"name": "openai", "url": "http://x/v1"}):
        for one in (node, weighted):
            with pytest.raises(RecipeError, match="logits"):
                EvaluateRecipe(name="e", models={"nano": NANO}, benchmarks=(one,), engine=engine)


def test_a_recipe_with_guidance_is_another_run() -> None:
    def recipe(**guidance: Any) -> EvaluateRecipe:
        node = {**SCENES, **({"guidance": guidance} if guidance else {})}
        found: EvaluateRecipe = check_recipe(
            EvaluateRecipe, {"name": "e", "models": {"nano": NANO}, "benchmarks": [node]}
        )
        return found

    from consomme.pipelines.evaluate.run import open_run

    marks = {
        open_run(recipe(**one)).folder.url
        for one in ({}, {"alpha": 1}, {"alpha": 2}, {"area": "hull"})
    }
    assert len(marks) == 4
