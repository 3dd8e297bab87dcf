"""A training chooses its checkpoint by a user's file or several benchmarks, and guards language."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.own_questions import colors, open_colors, texts, weighted

from consomme.base.errors import ClusterError, DataError, RecipeError
from consomme.base.manifest import Manifest
from consomme.base.recipe import fingerprint
from consomme.evaluate.guards import Guard
from consomme.pipelines.evaluate import run as evaluate
from consomme.pipelines.evaluate.recipe import EvaluateRecipe
from consomme.pipelines.prepare import run as prepare
from consomme.pipelines.prepare.recipe import PrepareRecipe
from consomme.pipelines.report import run as report
from consomme.pipelines.train import run as train
from consomme.pipelines.train.choice import choose_checkpoint, score_attribute
from consomme.pipelines.train.context import TrainContext
from consomme.pipelines.train.evaluation import compared_by
from consomme.pipelines.train.outputs import CHOICE, EVAL_LOSS, EVALUATIONS
from consomme.pipelines.train.recipe import Evaluation, TrainRecipe, TrainSource
from consomme.storage.ledger.run_folder import RunFolder

NANO = "package://models/nano"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = prepare.run(
        PrepareRecipe(
            name="scenes",
            root=str(tmp_path_factory.mktemp("data")),
            source={"name": "scenes", "num": 40},
        )
    )
    return f"{made.url}/data"


def recipe(root: Path, data: str = "none", **changes: Any) -> TrainRecipe:
    values: dict[str, Any] = {
        "name": "t",
        "root": str(root),
        "model": NANO,
        "data": (TrainSource(inputs=(data,)),),
        "num_steps": 4,
        "global_batch": 4,
        "num_workers": 1,
        # Destructive, so that language is lost at once.
        "lr": 0.05,
        "schedule": "constant",
        "warmup_fraction": 0.0,
        **changes,
    }
    return TrainRecipe(**values)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"every_steps": 2, "at_steps": (3,)}, "found both; choose one"),
        ({"every_steps": 2, "benchmark": None}, "no data, benchmark or guards to measure"),
    ],
)
def test_wrong_evaluations(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Evaluation(**{"benchmark": {"name": "scene_ocr"}, **changes})


def test_wrong_steps_and_nothing_to_compare_by(tmp_path: Path) -> None:
    late = Evaluation(benchmark={"name": "scene_ocr"}, at_steps=(2, 9))
    with pytest.raises(RecipeError, match=r"at_steps: found 9, but the run has 4 steps"):
        recipe(tmp_path, evaluation=late)
    guard = Guard(benchmark={"name": "scene_ocr"})
    with pytest.raises(RecipeError, match="neither data nor a benchmark"):
        recipe(tmp_path, evaluation=Evaluation(guards=(guard,)), export_checkpoint="best")
    with pytest.raises(RecipeError, match="two are called scene_ocr"):
        Evaluation(guards=(guard, guard))


def test_recipes_of_before_have_the_fingerprint_of_before(tmp_path: Path) -> None:
    plain = recipe(tmp_path)
    before = fingerprint(plain, {})
    assert fingerprint(
        replace(plain, evaluation=Evaluation(reports_what_it_chose_by=True)), {}
    ) == (before)
    changed = Evaluation(benchmark={"name": "scene_ocr"})
    assert fingerprint(replace(plain, evaluation=changed), {}) != before


def test_which_steps_are_evaluated() -> None:
    node = {"name": "scene_ocr"}
    every = Evaluation(benchmark=node, every_steps=3)
    assert [s for s in range(1, 9) if every.is_due(s, 8)] == [3, 6, 8]
    named = Evaluation(benchmark=node, at_steps=(2, 5))
    assert [s for s in range(1, 9) if named.is_due(s, 8)] == [2, 5, 8]
    assert not any(Evaluation(benchmark=node).is_due(s, 8) for s in range(1, 9))


def test_what_checkpoints_are_compared_by() -> None:
    kept, lost = {"passes": True}, {"passes": False}
    assert compared_by({"step": 1, "loss": 2.0}) == {EVAL_LOSS: 2.0}
    assert compared_by({"loss": 2.0, "score": 0.5}) == {EVAL_LOSS: 2.0, CHOICE: 0.5}
    assert compared_by({"score": 0.5, "guards": [kept, kept]}) == {CHOICE: 0.5}
    assert compared_by({"score": 0.5, "guards": [kept, lost]})[CHOICE] < -1e5
    # By the loss, of which less is better, if a guard takes part.
    low, high = ({"loss": loss, "guards": [kept]} for loss in (1.0, 2.0))
    assert compared_by(low)[CHOICE] > compared_by(high)[CHOICE]
    assert compared_by({"step": 1, "error": "cannot be asked"}) == {}


def finding(passes: bool) -> dict[str, Any]:
    return {"benchmark": "texts", "passes": passes, "line": f"texts 0.3 -> 0.1, {passes}"}


def chosen(root: Path, found: list[dict[str, Any]], **evaluation: Any) -> Any:
    """What is chosen of checkpoints with these evaluations, all of which are still there."""
    of = {"benchmark": {"name": "scene_ocr"}, "every_steps": 1, **evaluation}
    own = recipe(root, num_steps=3, export_checkpoint="best", evaluation=Evaluation(**of))
    folder = RunFolder.at(str(root / "run"))
    for one in found:
        folder.store.write(f"{EVALUATIONS}/{one['step']:08d}.json", json.dumps(one).encode())
    context = TrainContext(recipe=own, start=NANO, folder_url=folder.url, is_private=True)
    metrics = [{"step": one["step"], **compared_by(one)} for one in found]
    return choose_checkpoint(context, [(f"c{m['step']}", m) for m in metrics])


def test_the_best_checkpoint_is_the_first_of_equals(tmp_path: Path) -> None:
    found = [{"step": k, "score": score} for k, score in ((1, 0.4), (2, 0.6), (3, 0.6))]
    choice = chosen(tmp_path, found)
    assert (choice.step, choice.checkpoint) == (2, "c2")
    assert choice.told({"score": 0.5})["by"] == "scene_ocr"
    assert score_attribute(choice.recipe) == CHOICE


def test_a_checkpoint_that_lost_its_language_is_not_chosen(tmp_path: Path) -> None:
    guard = Guard(benchmark=texts(tmp_path, 1, 2))
    scores = ((1, 0.4, True), (2, 0.6, False), (3, 0.5, False))
    found = [{"step": k, "score": s, "guards": [finding(kept)]} for k, s, kept in scores]
    choice = chosen(tmp_path, found, guards=(guard,))
    assert choice.step == 1
    assert choice.told({})["ignores_guards"] is False
    lost = [{**one, "guards": [finding(False)]} for one in found]
    with pytest.raises(DataError, match=r"language was lost.*texts 0\.3 -> 0\.1"):
        chosen(tmp_path, lost, guards=(guard,))
    choice = chosen(tmp_path, lost, guards=(replace(guard, otherwise="warn"),))
    assert choice.step == 2
    assert choice.told({})["ignores_guards"] is True


def test_a_checkpoint_that_was_not_evaluated_is_told(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="those of steps 2"):
        chosen(tmp_path, [{"step": 1, "score": 0.4}, {"step": 3, "score": 0.5}])
    with pytest.raises(DataError, match="step 2 was not evaluated: it cannot be asked"):
        chosen(tmp_path, [{"step": 2, "error": "it cannot be asked"}])


def test_the_same_rows_do_not_choose_and_report(tmp_path: Path, data: str) -> None:
    own = colors(tmp_path, 700_000, 3)
    twice = Evaluation(benchmark=own, report=({**own, "label": "again"},))
    with pytest.raises(RecipeError, match=r"evaluation\.report\[0\]: 3 of its 3"):
        train.open_run(recipe(tmp_path, data, evaluation=twice))
    train.open_run(recipe(tmp_path, data, evaluation=replace(twice, reports_what_it_chose_by=True)))
    # The content of the file is among the inputs, and not where it lies.
    first = train.open_run(recipe(tmp_path, data, evaluation=Evaluation(benchmark=own)))
    assert "evaluation.benchmark[0]" in first.inputs


def asked(done: Manifest) -> list[int]:
    return [one["step"] for one in done.decisions["choice"]["checkpoints"]]


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.parametrize(
    ("parallelism", "num_workers"), [("ddp", 1), ("fsdp2", 2)], ids=["ddp", "fsdp2"]
)
def test_the_best_by_a_users_file(
    tmp_path: Path, data: str, one_ray: object, parallelism: str, num_workers: int
) -> None:
    own, reported = colors(tmp_path, 700_000, 6), colors(tmp_path, 900_000, 4)
    wanted = recipe(
        tmp_path,
        data,
        num_workers=num_workers,
        cpus_per_worker=0.5,
        parallelism={"name": parallelism},
        checkpoint_every=4,
        export_checkpoint="best",
        evaluation=Evaluation(benchmark=own, at_steps=(1, 3), report=(reported,), cpus=0.5),
    )
    done = train.run(wanted)
    choice = done.decisions["choice"]
    assert asked(done) == [1, 3, 4]
    scores = {one["step"]: one["score"] for one in choice["checkpoints"]}
    assert choice["step"] == max(scores, key=lambda step: (scores[step], -step))
    assert choice["by"] == "colors-700000"
    assert done.decisions["exported_step"] == choice["step"]
    assert done.metrics["eval/best_score_fraction"] == max(scores.values())
    assert choice["report"]["colors-900000"]["num_questions"] == 4
    assert "exported is step" in page_of(done)
    # The checkpoint is the exported model to the bit: evaluate finds all of its answers.
    known = answers(tmp_path)
    measured = evaluate.run(
        EvaluateRecipe(
            name="e", root=str(tmp_path), models={"m": done.url}, benchmarks=(own, reported)
        )
    )
    assert answers(tmp_path) == known
    figure = measured.metrics["evaluate/m/colors-700000/accuracy_fraction"]
    assert figure == scores[choice["step"]]


@pytest.mark.ray
@pytest.mark.long
def test_the_best_of_several_benchmarks_with_a_guard(
    tmp_path: Path, data: str, one_ray: object
) -> None:
    both = weighted(colors(tmp_path, 700_000, 4), open_colors(tmp_path, 800_000, 4))
    guard = Guard(benchmark=texts(tmp_path, 600_000, 6), at_most_worse=0.02)
    wanted = recipe(
        tmp_path,
        data,
        export_checkpoint="best",
        evaluation=Evaluation(benchmark=both, guards=(guard,), every_steps=2),
    )
    with pytest.raises(DataError, match="language was lost"):
        train.run(wanted)
    warned = replace(guard, otherwise="warn")
    evaluation = replace(wanted.evaluation, guards=(warned,))
    done = train.run(replace(wanted, evaluation=evaluation))
    choice = done.decisions["choice"]
    assert choice["ignores_guards"]
    (kept,) = choice["guards"]
    assert kept["difference"] < -0.02
    assert choice["start"]["guards"][0]["difference"] == 0
    assert 0 <= choice["start"]["score"] <= 1
    # A run that is done while guards warn is refused where they do not.
    with pytest.raises(DataError, match="language was lost"):
        train.run(wanted)


def answers(root: Path) -> set[str]:
    return {path.name for path in (root / "cache/answers").rglob("*.json")}


def page_of(done: Manifest) -> str:
    report.run_folder(done.url)
    return Path(f"{done.url}/report.html").read_text()
