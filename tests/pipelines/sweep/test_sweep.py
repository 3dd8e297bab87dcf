"""Sweeps: trials are ordinary runs and are reused; recipes are checked before Ray starts."""

import json
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consomme.base.errors import RecipeError, SupersededError
from consomme.base.manifest import Manifest, lineage
from consomme.base.recipe import load_recipe
from consomme.base.schema import to_plain
from consomme.ops import status
from consomme.pipelines.evaluate import run as evaluate
from consomme.pipelines.evaluate.recipe import EvaluateRecipe
from consomme.pipelines.prepare import run as prepare
from consomme.pipelines.prepare.recipe import PrepareRecipe
from consomme.pipelines.report import run as report
from consomme.pipelines.soup import run as soup
from consomme.pipelines.soup.recipe import SoupRecipe
from consomme.pipelines.sweep import run as sweep
from consomme.pipelines.sweep.plan import SweepPlan
from consomme.pipelines.sweep.recipe import SweepRecipe
from consomme.pipelines.sweep.report import sweep_sections
from consomme.pipelines.sweep.study import SweepStudy
from consomme.pipelines.sweep.table import best_of, means_over_seeds, terminal_table
from consomme.pipelines.sweep.trial import Trial, checkpoint_losses
from consomme.pipelines.sweep.tuner import SweepTrials
from consomme.pipelines.sweep.worker import last_stored_step
from consomme.pipelines.train import run as train
from consomme.pipelines.train.recipe import TrainRecipe
from consomme.storage.ledger.run_folder import RunFolder, load_manifest
from consomme.storage.stores.open import open_store

NANO = "package://models/nano"
TOO_MANY = {"name": "sparse_uniform", "count": 40}
NAMES = {"name": "emoji_names", "style": "twemoji", "every": 400}


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


def base(data: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": "tiny",
        "model": NANO,
        "data": [{"inputs": [data]}],
        "num_steps": 3,
        "global_batch": 4,
        **changes,
    }


def recipe(root: Path | str, data: str, **changes: Any) -> SweepRecipe:
    layers = [TOO_MANY, {"name": "all"}, {"name": "sparse_uniform", "fraction": 0.25}]
    values: dict[str, Any] = {
        "name": "layers",
        "root": str(root),
        "train": base(data),
        "space": {
            "layers": {"name": "choice", "values": layers},
            "seed": {"name": "choice", "values": [0]},
        },
        "benchmarks": (NAMES,),
        **changes,
    }
    return SweepRecipe(**values)


@pytest.fixture(scope="module")
def grid(sparse_recipe: TrainRecipe, data: str) -> SweepRecipe:
    """A sweep in which one training is done already."""
    settings = to_plain(sparse_recipe)
    del settings["root"], settings["layers"]
    return recipe(sparse_recipe.root, data, train=settings)


@pytest.fixture(scope="module")
def done(grid: SweepRecipe, sparse: Manifest) -> Manifest:
    return sweep.run(grid)


@pytest.mark.ray
def test_a_grid_is_trained_measured_and_compared(done: Manifest) -> None:
    assert done.counts == {"trials": 3, "done": 2, "stopped": 0, "failed": 1}
    trials = [Trial(**trial) for trial in done.decisions["trials"] if trial["state"] == "done"]
    assert [(t.keys["layers"]["name"], t.keys["seed"]) for t in trials] == [
        ("all", 0),
        ("sparse_uniform", 0),
    ]
    metric = "evaluate/model/emoji_names_twemoji/accuracy_fraction"
    assert done.decisions["metric"] == metric
    for trial in trials:
        trained, evaluated = load_manifest(trial.train), load_manifest(trial.evaluate)
        assert trained.recipe["layers"] == {**trained.recipe["layers"], **trial.keys["layers"]}
        assert trained.recipe["seed"] == trial.keys["seed"]
        assert evaluated.recipe["models"] == {"model": trial.train}
        assert trial.value == evaluated.metrics[metric]
        # Bounds of a torch process with a small model.
        assert 2**27 < trained.metrics["train/peak_bytes"] < 2**33
    best = max(trials, key=lambda t: (t.value or 0.0, -t.number))
    assert done.decisions["best"] == best.number
    assert done.metrics["sweep/best_value"] == best.value
    assert [mean["numbers"] for mean in done.decisions["means"]] == [[1], [2]]
    assert {p.url for p in done.parents} == {u for t in trials for u in (t.train, t.evaluate)}
    assert done in lineage(done, load_manifest)


@pytest.mark.ray
def test_its_models_are_ingredients_of_a_soup(done: Manifest, tmp_path: Path) -> None:
    mixed = soup.run(SoupRecipe(name="all", root=str(tmp_path), ingredients=done.url))
    trials = [trial for trial in done.decisions["trials"] if trial["state"] == "done"]
    labels = ["layers=all, seed=0", "layers=sparse_uniform (fraction=0.25), seed=0"]
    assert [label.partition(" (")[0].partition(",")[0] for label in mixed.decisions["labels"]] == [
        label.partition(" (")[0].partition(",")[0] for label in labels
    ]
    told = json.loads(Path(mixed.url, "model", "soup.json").read_text())
    assert [Path(one["folder"]).parent.resolve() for one in told["ingredients"]] == [
        Path(trial["train"]).resolve() for trial in trials
    ]
    assert {parent.url for parent in mixed.parents} >= {done.url}
    assert soup.run(SoupRecipe(name="all", root=str(tmp_path), ingredients=done.url)).is_found
    with pytest.raises(RecipeError, match=r"found a run of train at .*, expected the folder of a"):
        soup.run(SoupRecipe(name="all", root=str(tmp_path), ingredients=trials[0]["train"]))


@pytest.mark.ray
@pytest.mark.long
def test_forward_selection_of_data_sets(data: str, tmp_path: Path) -> None:
    entry = {"inputs": [data]}
    fractions = [{**entry, "fraction": share} for share in (0.5, 0.25)]
    node = {"name": "additions", "always": [entry], "candidates": fractions}
    options: dict[str, Any] = {
        "name": "select",
        "train": base(data),
        "space": {"data": node},
        "searcher": {"name": "forward_selection"},
    }
    done = sweep.run(recipe(tmp_path, data, **options))
    trials = done.decisions["trials"]
    assert done.counts == {"trials": 3, "done": 3, "stopped": 0, "failed": 0}
    assert [len(trial["keys"]["data"]) for trial in trials[:2]] == [1, 2]
    gained = trials[1]["value"] > trials[0]["value"]
    assert trials[2]["keys"]["data"] == [entry, *fractions[:gained], fractions[1]]
    assert sweep.run(recipe(tmp_path, data, **options)).is_found
    # The same data elsewhere is the same sweep.
    shutil.copytree(Path(data).parent, tmp_path / "moved")
    there = [{**one, "inputs": [str(tmp_path / "moved/data")]} for one in (entry, *fractions)]
    node = {**node, "always": there[:1], "candidates": there[1:]}
    again = recipe(tmp_path, data, **{**options, "space": {"data": node}})
    assert sweep.open_run(again).fingerprint == done.fingerprint


def test_means_are_over_seeds() -> None:
    trials = [
        Trial(
            number=k,
            keys={"lr": lr, "seed": seed, "layers": layers},
            state="done",
            value=value,
            metrics={"loss": value} | ({"rare": 1.0} if k else {}),
        )
        for k, (layers, lr, seed, value) in enumerate(
            [
                ({"name": "all"}, 0.1, 1, 4.0),
                ({"name": "all"}, 0.2, 1, 3.0),
                ({"name": "all"}, 0.1, 2, 8.0),
                ({"name": "sparse_uniform"}, 0.2, 2, 3.0),
            ]
        )
    ]
    found = means_over_seeds(trials)
    assert [(mean.numbers, mean.mean["loss"]) for mean in found] == [
        ((0, 2), 6.0),
        ((1,), 3.0),
        ((3,), 3.0),
    ]
    # Only one trial of the first group has the metric `rare`; a single trial has no spread.
    assert found[0].spread == {"loss": pytest.approx(8**0.5)}
    assert found[1].spread == {}
    assert [best_of(trials, mode).number for mode in ("max", "min")] == [2, 1]
    assert means_over_seeds([replace(trial, keys={"lr": 1.0}) for trial in trials]) == []


def test_the_table_says_why_a_trial_failed() -> None:
    good = Trial(number=0, keys={"lr": 0.1}, state="done", value=1.0, metrics={"loss": 1.0})
    long = "layers: the model has 12 layers, " * 9
    bad = Trial(number=1, keys={"lr": 0.2}, state="failed", reason=f"{long}\nsecond line")
    table = terminal_table("s", [good, bad], ())
    assert table["columns"][-1] == "why"
    assert table["rows"][0][-1] == ""
    assert table["rows"][1][-1] == f"{long[:159]}…"
    assert "why" not in terminal_table("s", [good], ())["columns"]
    decisions = {
        "trials": to_plain([good, bad]),
        "metric": "loss",
        "mode": "min",
        "figures": [],
        "best": 0,
        "means": [],
    }
    trials = sweep_sections("", decisions)[1].blocks[0]
    assert trials.columns[-1] == "why"
    assert [row[-1] for row in trials.rows] == [None, bad.reason]


@pytest.mark.ray
def test_the_page_shows_every_trial(done: Manifest) -> None:
    text = RunFolder.at(done.url).store.read("report.html").decode()
    assert text.count("<circle") == 2 * 2 * 2
    for trial in done.decisions["trials"]:
        assert trial["train"] in text if trial["state"] == "done" else trial["reason"] in text
    assert "emoji names twemoji: accuracy</th>" in text
    drawn = report.run_folder(done.url)
    assert RunFolder.at(drawn.url).store.read("report.html").decode() == text


@pytest.mark.ray
def test_it_is_done_when_run_again_and_reuses_runs_of_others(
    done: Manifest, grid: SweepRecipe, sparse: Manifest
) -> None:
    assert sweep.run(grid) == done
    # Trained by hand before; the sweep evaluates it as one would by hand.
    one = done.decisions["trials"][2]
    assert one["train"] == sparse.url
    models = {"model": sparse.url}
    by_hand = evaluate.open_run(
        EvaluateRecipe(name=grid.train["name"], root=grid.root, models=models, benchmarks=(NAMES,))
    )
    assert by_hand.is_done
    assert by_hand.folder.url == one["evaluate"]
    # Another sweep with one of the trials finds it done.
    layers = grid.space["layers"]
    space = grid.space | {"layers": layers | {"values": layers["values"][-1:]}}
    plan = SweepPlan.of(replace(grid, name="other", space=space))
    study = SweepStudy(plan, open_store(f"{grid.root}/scratch"))
    assert study.ask() is None
    assert [trial.train for trial in study.trials] == [one["train"]]


@pytest.mark.ray
def test_a_failed_trial_has_a_reason_and_the_others_continue(done: Manifest) -> None:
    trials = done.decisions["trials"]
    assert [trial["state"] for trial in trials] == ["failed", "done", "done"]
    assert trials[0]["keys"]["layers"] == TOO_MANY
    assert "the language model has 12 layers" in trials[0]["reason"]
    assert done.decisions["best"] in (1, 2)
    assert "the language model has 12 layers" in (Path(done.url) / "report.html").read_text()


@pytest.mark.ray
@pytest.mark.long
def test_asha_stops_a_worse_trial_which_can_resume_later(
    tmp_path: Path, data: str, lent_ray: None
) -> None:
    import ray

    # A style that the model was not trained on, so that the loss can fall.
    made = prepare.run(
        PrepareRecipe(
            name="outlines",
            root=str(tmp_path),
            source={"name": "scenes", "num": 40, "style": "outline"},
        )
    )
    steps = 100
    one = recipe(
        tmp_path,
        data,
        train=base(f"{made.url}/data", num_steps=steps, checkpoint_every=10, schedule="constant"),
        space={"lr": {"name": "choice", "values": [1e-3, 1e-7]}},
        benchmarks=(),
        stopper={"name": "asha", "grace_steps": 10, "factor": 2},
        max_concurrent=1,
    )
    made = sweep.run(one)
    assert made.counts == {"trials": 2, "done": 1, "stopped": 1, "failed": 0}
    stopped = made.decisions["trials"][1]
    assert stopped["reason"].startswith("after 10 of 100 steps, loss ")
    assert stopped["rungs"]["10"] > made.decisions["trials"][0]["rungs"]["10"]
    training = train.open_run(SweepPlan.of(one).train_recipe(stopped["keys"]))
    assert not training.is_done
    # Its resources are free again.
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.5)
    # Its training resumes from the last checkpoint, here by hand.
    by_hand = train.run(SweepPlan.of(one).train_recipe(stopped["keys"]))
    assert by_hand.url == training.folder.url
    assert 10 <= by_hand.decisions["resumed_from_step"] < steps


@pytest.mark.ray
@pytest.mark.long
def test_a_sweep_that_is_started_again_elsewhere_stops_with_its_trials(
    tmp_path: Path, data: str, lent_ray: None
) -> None:
    one = recipe(
        tmp_path,
        data,
        train=base(data, num_steps=2000),
        space={"lr": {"name": "choice", "values": [1e-3, 1e-7]}},
        benchmarks=(),
        max_concurrent=1,
    )
    run = sweep.open_run(one)
    (training, other) = (
        train.open_run(run.resolved.train_recipe({"lr": lr})).folder for lr in (1e-3, 1e-7)
    )

    def start_elsewhere() -> None:
        deadline = time.monotonic() + 120
        while not training.store.exists("trainable.json") and time.monotonic() < deadline:
            time.sleep(0.2)
        run.folder.start_attempt()

    threading.Thread(target=start_elsewhere, daemon=True).start()
    with pytest.raises(SupersededError, match="attempt 1 was overtaken by attempt 2, started"):
        sweep.run(one)
    assert not run.is_done
    assert not training.is_done
    assert not other.store.exists("recipe.yaml"), "no further trial begins"
    (trial,) = SweepStudy(run.resolved, run.folder.store).trials
    assert (trial.state, trial.reason) == ("asked", ""), "the trial did not fail"


def test_an_overtaken_sweep_neither_asks_for_trials_nor_stores_results(
    tmp_path: Path, data: str
) -> None:
    folder = RunFolder.at(str(tmp_path / "sweep"))
    plan = SweepPlan.of(recipe(tmp_path, data, space={"lr": _lrs()}, benchmarks=()))
    trials = SweepTrials(SweepStudy(plan, folder.store), folder, folder.start_attempt())
    config = trials.ask()
    assert config is not None
    folder.start_attempt()
    assert trials.ask() is None
    trials.tell(config, {"step": 3, "loss": 1.0, "failure": "its training was started elsewhere"})
    assert [trial.state for trial in SweepStudy(plan, folder.store).trials] == ["asked"]


def test_without_a_benchmark_losses_are_compared(tmp_path: Path, data: str) -> None:
    plan = SweepPlan.of(recipe(tmp_path, data, benchmarks=()))
    assert (plan.metric, plan.mode) == ("train/last_loss_nats", "min")


def test_losses_at_checkpoints_are_means_since_the_previous_one() -> None:
    curve = [{"loss": float(number)} for number in range(7)]
    assert checkpoint_losses(curve, 3) == [1.0, 4.0]


def test_only_checkpoints_in_storage_count(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    assert last_stored_step(store) == 0
    path = "checkpoints/checkpoint_manager_snapshot.json"
    kept = {"latest_checkpoint_result": {"metrics": {"step": 30, "loss": 0.5}}}
    for text, step in (('{"latest_ch', 0), ('{"latest_checkpoint_result": null}', 0)):
        store.write(path, text.encode())
        assert last_stored_step(store) == step
    store.write(path, json.dumps(kept).encode())
    assert last_stored_step(store) == 30


def test_all_problems_are_reported_at_once(tmp_path: Path, data: str) -> None:
    wrong = recipe(
        tmp_path,
        data,
        train=base(data, learning=3),
        space={
            "lr": {"name": "choice", "values": [0.1, "fast"]},
            "layer.name": {"name": "choice", "values": ["all"]},
            "data.7.weight": {"name": "choice", "values": [1.0]},
            "layers": {"name": "choice", "values": [{"name": "al"}]},
            "name": {"name": "choice", "values": ["x"]},
        },
        metric="emoji_name",
        stopper={"name": "asha", "grace_steps": 10},
    )
    with pytest.raises(RecipeError) as caught:
        SweepPlan.of(wrong)
    text = str(caught.value)
    for part in (
        "learning: unknown key",
        "space.lr: found 'fast' (str), expected float",
        "space.layer: unknown key; did you mean 'layers'?",
        "space.data.7: found '7', expected a number below 1",
        "space.layers.name: unknown layer selector 'al'; did you mean 'all'?",
        "space.name: does not change the training",
        "metric: unknown 'emoji_name'; did you mean 'emoji_names_twemoji'?",
    ):
        assert part in text


def test_what_a_training_would_refuse_is_refused_before_any_of_them(
    tmp_path: Path, data: str
) -> None:
    space = {
        "data.0.inputs": {"name": "choice", "values": [[data], [str(tmp_path / "nothing")]]},
        "global_batch": {"name": "choice", "values": [4, 0]},
        "num_workers": {"name": "choice", "values": [1, 8]},
    }
    with pytest.raises(RecipeError) as caught:
        SweepPlan.of(recipe(tmp_path, data, space=space))
    assert "nothing" in str(caught.value)
    assert "space.global_batch: found 0, expected at least 1" in str(caught.value)
    assert "less than num_workers=8" in str(caught.value)


def test_other_data_is_another_sweep(tmp_path: Path, data: str) -> None:
    shard = next(Path(data).glob("*.tar"))
    own = tmp_path / "own" / shard.name
    own.parent.mkdir()
    own.write_bytes(shard.read_bytes())
    before = SweepPlan.of(recipe(tmp_path, str(own.parent))).inputs
    assert before == SweepPlan.of(recipe(tmp_path, str(own.parent))).inputs
    (own.parent / f"more-{shard.name}").write_bytes(shard.read_bytes())
    assert before != SweepPlan.of(recipe(tmp_path, str(own.parent))).inputs


def test_a_train_recipe_may_be_a_file(tmp_path: Path, data: str) -> None:
    file = tmp_path / "base.yaml"
    file.write_text(json.dumps(base(data, layers={"name": "sparse_uniform", "count": 2})))
    settings = {"recipe": str(file), "num_steps": 7}
    plan = SweepPlan.of(recipe(tmp_path, data, train=settings, space={"lr": _lrs()}))
    found = plan.train_recipe({"lr": 0.25})
    assert (found.num_steps, found.lr, found.layers["count"]) == (7, 0.25, 2)
    assert "recipe" not in plan.base


def test_an_interrupted_sweep_resumes_with_the_same_trials(tmp_path: Path, data: str) -> None:
    space = {"lr": {"name": "log_uniform", "low": 1e-5, "high": 1e-3}}
    searcher = {"name": "optuna", "num_trials": 4, "num_random": 2}
    plan = SweepPlan.of(recipe(tmp_path, data, space=space, searcher=searcher, benchmarks=()))
    store = open_store(str(tmp_path / "sweep"))
    store.write("recipe.yaml", b"")
    first = SweepStudy(plan, store)
    asked = [first.ask() for _ in range(2)]
    assert asked[0] is not None
    first.tell(replace(asked[0], state="stopped", reason="after 1 step"))
    assert "  trials    1 stopped, 1 asked" in status.describe(
        status.read_status(f"{tmp_path}/sweep"), 0
    )
    # A second attempt: the stopped trial stays stopped, the other is returned again, then new ones.
    again = SweepStudy(plan, store)
    assert [trial.state for trial in again.trials] == ["stopped", "asked"]
    following = [again.ask() for _ in range(4)]
    assert following[0] == asked[1]
    assert following[3] is None
    assert [t.number for t in following[:3] if t] == [1, 2, 3]


def test_trials_with_the_same_run_end_together(tmp_path: Path, data: str) -> None:
    values = [{"name": "sparse_uniform"}, {"name": "sparse_uniform", "fraction": 0.25}, _ALL]
    space = {"layers": {"name": "choice", "values": values}}
    study = SweepStudy(
        SweepPlan.of(recipe(tmp_path, data, space=space)), open_store(str(tmp_path / "sweep"))
    )
    first, other = study.ask(), study.ask()
    assert first is not None
    assert other is not None
    assert (first.number, other.number) == (0, 2)
    assert study.ask() is None
    study.tell(replace(first, state="done", value=0.5))
    assert [(t.number, t.state, t.value) for t in study.trials] == [
        (0, "done", 0.5),
        (1, "done", 0.5),
        (2, "asked", None),
    ]
    assert study.trials[1].keys == {"layers": values[1]}
    assert study.num_ended == 2


@pytest.mark.long
def test_all_shipped_recipes_are_plans(data: str, tmp_path: Path) -> None:
    for path in sorted(Path("recipes/sweep").glob("*.yaml")):
        settings = [f"train.data=[{{inputs: [{data}]}}]", f"root={tmp_path}"]
        plan = SweepPlan.of(load_recipe(SweepRecipe, path, settings))
        assert plan.num_trials > 1


_ALL = {"name": "all"}


def _lrs() -> dict[str, Any]:
    return {"name": "choice", "values": [0.1, 0.2]}
