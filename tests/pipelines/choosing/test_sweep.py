"""A sweep chooses by a user's file and by several benchmarks, and guards its language."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.own_questions import colors, open_colors, texts, weighted

from consomme.base.errors import DataError, RecipeError
from consomme.evaluate.guards import Guard
from consomme.pipelines.prepare import run as prepare
from consomme.pipelines.prepare.recipe import PrepareRecipe
from consomme.pipelines.sweep import run as sweep
from consomme.pipelines.sweep.plan import SweepPlan
from consomme.pipelines.sweep.recipe import SweepRecipe
from consomme.pipelines.sweep.table import best_of
from consomme.pipelines.sweep.trial import Trial

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


def recipe(root: Path, data: str, **changes: Any) -> SweepRecipe:
    train = {
        "name": "tiny",
        "model": NANO,
        "data": [{"inputs": [data]}],
        "num_steps": 2,
        "global_batch": 4,
        "schedule": "constant",
        "warmup_fraction": 0.0,
    }
    values: dict[str, Any] = {
        "name": "rates",
        "root": str(root),
        "train": train,
        # The second one destroys the model at once.
        "space": {"lr": {"name": "choice", "values": [1e-6, 0.1]}},
        "max_concurrent": 1,
        **changes,
    }
    return SweepRecipe(**values)


def test_what_compares_trials_reports_nothing(tmp_path: Path, data: str) -> None:
    own, other = colors(tmp_path, 700_000, 3), colors(tmp_path, 800_000, 3)
    SweepPlan.of(recipe(tmp_path, data, benchmarks=(own, other)))
    twice = recipe(tmp_path, data, benchmarks=(own, {**own, "label": "again", "max_rows": 2}))
    with pytest.raises(RecipeError, match=r"benchmarks\[1\]: 2 of its 2 .* benchmarks\[0\]"):
        SweepPlan.of(twice)
    SweepPlan.of(replace(twice, reports_what_it_chose_by=True))
    # A checkpoint that is chosen within a trial chooses too.
    train = {**recipe(tmp_path, data).train, "evaluation": {"benchmark": other}}
    with pytest.raises(RecipeError, match=r"among those of train\.evaluation\.benchmark"):
        SweepPlan.of(recipe(tmp_path, data, benchmarks=(own, other), train=train))


def test_the_loss_on_held_out_samples_may_compare(tmp_path: Path, data: str) -> None:
    with pytest.raises(RecipeError, match=r"no evaluation\.data to measure it on"):
        SweepPlan.of(recipe(tmp_path, data, metric="eval/best_loss_nats"))
    train = {**recipe(tmp_path, data).train, "evaluation": {"data": [{"inputs": [data]}]}}
    plan = SweepPlan.of(recipe(tmp_path, data, train=train, metric="eval/best_loss_nats"))
    assert (plan.metric, plan.mode) == ("eval/best_loss_nats", "min")


def test_a_trial_that_lost_its_language_has_no_value_for_the_search() -> None:
    kept = Trial(number=0, keys={}, value=0.5, findings=[{"passes": True}])
    lost = Trial(number=1, keys={}, value=0.9, findings=[{"passes": True}, {"passes": False}])
    assert (kept.told_value, lost.told_value) == (0.5, None)
    assert best_of([one for one in (kept, lost) if one.passes], "max").number == 0


@pytest.mark.ray
@pytest.mark.long
def test_by_a_file_and_by_several_with_a_guard(tmp_path: Path, data: str, one_ray: object) -> None:
    own, said = colors(tmp_path, 700_000, 6), open_colors(tmp_path, 800_000, 4)
    guard = Guard(benchmark=texts(tmp_path, 600_000, 6), at_most_worse=0.02)
    done = sweep.run(recipe(tmp_path, data, benchmarks=(own,), guards=(guard,)))
    trials = [Trial(**one) for one in done.decisions["trials"]]
    assert [trial.state for trial in trials] == ["done", "done"]
    assert [trial.passes for trial in trials] == [True, False]
    assert "lost more than allowed: texts-600000" in trials[1].reason
    assert done.decisions["best"] == 0
    assert done.decisions["metric"] == "evaluate/model/colors-700000/accuracy_fraction"
    assert not done.decisions["ignores_guards"]
    assert "Guards" in Path(f"{done.url}/report.html").read_text()
    # The trainings are found; only what is new is measured.
    both = weighted(own, said)
    done = sweep.run(recipe(tmp_path, data, name="both", benchmarks=(both,)))
    assert done.decisions["metric"] == "evaluate/model/weighted/score_fraction"
    values = [one["value"] for one in done.decisions["trials"]]
    assert values[done.decisions["best"]] == max(values)
    assert len(list((tmp_path / "train").iterdir())) == 2
    lost = recipe(
        tmp_path,
        data,
        name="lost",
        benchmarks=(own,),
        guards=(guard,),
        space={"lr": {"name": "choice", "values": [0.1]}},
    )
    with pytest.raises(DataError, match="language was lost"):
        sweep.run(lost)
    warned = replace(lost, guards=(replace(guard, otherwise="warn"),))
    assert sweep.run(warned).decisions["ignores_guards"]
