"""What chooses among rounds: a benchmark of the recipe, guards, and nothing that reports."""

from pathlib import Path
from typing import Any

import pytest
from tests.pipelines.loop.test_rounds import recipe
from tests.support.own_questions import colors, open_colors, texts, weighted

from consomme.base.errors import DataError, RecipeError
from consomme.base.manifest import Manifest
from consomme.base.recipe import load_recipe
from consomme.pipelines.loop.chain import Saturation
from consomme.pipelines.loop.recipe import LoopRecipe
from consomme.pipelines.loop.rounds import best_of, is_saturated
from consomme.pipelines.loop.run import Chain
from consomme.pipelines.loop.steps import all_steps
from consomme.pipelines.report.rounds import rounds_section

NANO = "package://models/nano"


def chain(root: Path, early_stop: dict[str, Any], **changes: Any) -> LoopRecipe:
    plain = recipe(root)
    rounds = {
        "max_rounds": 2,
        "initial": dict(plain.rounds.initial) if plain.rounds else {},
        "stages": [vars(stage) for stage in plain.rounds.stages] if plain.rounds else [],
        "early_stop": early_stop,
    }
    return recipe(root, rounds=rounds, **changes)


def test_each_round_ends_with_an_evaluation(tmp_path: Path) -> None:
    own = weighted(colors(tmp_path, 700_000, 2), open_colors(tmp_path, 720_000, 2))
    found = chain(tmp_path, {"benchmark": own, "model": "@tune", "start_model": "@tune-0"})
    steps = {step.name: step for step in all_steps(found)}
    names = ["data", "tune-0", "choice-0", "words-1", "tune-1", "choice-1"]
    assert list(steps)[: len(names)] == names
    assert list(steps)[len(names) :] == ["words-2", "tune-2", "choice-2", "final"]
    assert steps["choice-0"].recipe["models"] == {"start": "@tune-0"}
    assert steps["choice-2"].recipe["models"] == {"model": "@tune"}
    assert steps["choice-2"].names["tune"] == "tune-2"


@pytest.mark.parametrize(
    ("early_stop", "said"),
    [
        ({}, "found neither, expected one of them"),
        ({"metric": "tune:x", "benchmark": {"name": "emoji_names"}}, "found both"),
        ({"benchmark": {"name": "emoji_names"}}, "model: missing"),
        ({"metric": "tune:x", "model": "@tune"}, "model: found it without a benchmark"),
        (
            {"benchmark": {"name": "emoji_names"}, "model": "@tune", "better": "lower"},
            "better: found lower",
        ),
        (
            {
                "benchmark": {"name": "emoji_names"},
                "model": "@tune",
                "guards": [{"benchmark": {"name": "scene_ocr"}}],
            },
            "start_model: missing",
        ),
        (
            {
                "benchmark": {"name": "scene_ocr"},
                "model": "@tune",
                "start_model": NANO,
                "guards": [{"benchmark": {"name": "scene_ocr", "num": 3}}],
            },
            "is there twice, or chooses",
        ),
        ({"benchmark": {"name": "emoji_names"}, "model": "@tun"}, "@tun is no earlier stage"),
    ],
)
def test_wrong_ways_to_choose(tmp_path: Path, early_stop: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        chain(tmp_path, early_stop)


def measured(scores: dict[str, float], language: dict[str, float] | None = None) -> Manifest:
    """As an evaluation writes it, with figures in the order of their names."""
    results = {
        label: {
            "colors-700000": {"accuracy_a_fraction": 9.0, "accuracy_fraction": score},
            "texts-1": {
                "bits_per_character": 1.0,
                "character_probability_fraction": (language or {}).get(label, 0.0),
            },
        }
        for label, score in scores.items()
    }
    gain = (language or {}).get("model", 0.0) - (language or {}).get("start", 0.0)
    comparison = {
        "benchmark": "texts-1",
        "models": ["start", "model"],
        "difference": gain,
        "low": gain - 0.01,
        "high": gain + 0.01,
        "p_value": 0.5,
        "resolvable": 0.01,
    }
    return Manifest(
        verb="evaluate", name="choice", fingerprint="0", recipe={}, inputs={},
        decisions={"results": results, "comparisons": [comparison]}, started="",
    )  # fmt: skip


def done(found: LoopRecipe, rounds: list[tuple[float, float]], start: float = 0.5) -> Chain:
    """A chain whose rounds have these scores, and these losses of language."""
    run = Chain(found)
    run.manifests["choice-0"] = measured({"start": start})
    for number, (score, language) in enumerate(rounds, 1):
        run.manifests[f"choice-{number}"] = measured(
            {"start": start, "model": score}, {"start": 0.3, "model": language}
        )
    run.last = len(rounds)
    return run


def test_the_best_round_is_that_of_the_benchmark(tmp_path: Path) -> None:
    stop = {"benchmark": colors(tmp_path, 700_000, 2), "model": "@tune", "start_model": "@tune-0"}
    run = done(chain(tmp_path, stop), [(0.7, 0.0), (0.6, 0.0)])
    assert run.values == [0.5, 0.7, 0.6]
    assert run.best == 1
    assert run.rounds()["metric"] == "colors-700000"
    assert run.rounds()["ended"] == "saturated"
    assert "round 1 is the best" in rounds_section(run.rounds()).lead_text


def test_a_round_that_lost_its_language_is_no_improvement(tmp_path: Path) -> None:
    stop: dict[str, Any] = {
        "benchmark": colors(tmp_path, 700_000, 2),
        "model": "@tune",
        "start_model": "@tune-0",
        "guards": [{"benchmark": texts(tmp_path, 1, 2), "at_most_worse": 0.02}],
        "patience": 2,
    }
    found = chain(tmp_path, stop)
    steps = {step.name: step for step in all_steps(found)}
    assert list(steps["choice-1"].recipe["models"]) == ["start", "model"]
    assert len(steps["choice-1"].recipe["benchmarks"]) == 2
    run = done(found, [(0.9, 0.1), (0.6, 0.29)])
    assert run.values == [0.5, None, 0.6]
    assert run.best == 2
    told = run.rounds()
    assert told["scores"] == [0.9, 0.6]
    assert [one[0]["passes"] for one in told["guards"]] == [False, True]
    assert told["guards"][0][0]["tuned"] == 0.1
    assert len(rounds_section(told).blocks) == 2
    lost = done(found, [(0.9, 0.1), (0.6, 0.2)])
    assert lost.best == 0
    with pytest.raises(DataError, match=r"language was lost.*0\.3000 -> 0\.1000"):
        lost._check_kept()
    stop["guards"][0]["otherwise"] = "warn"
    done(chain(tmp_path, stop), [(0.9, 0.1), (0.6, 0.2)])._check_kept()


def test_a_value_that_may_not_be_chosen_is_no_gain() -> None:
    stop = Saturation(metric="m:x", patience=2)
    assert best_of([0.5, None, 0.6, None], stop) == 2
    assert not is_saturated([0.5, None, 0.6, None], stop)
    assert is_saturated([0.5, None, None], stop)
    assert best_of([None, None], stop) == 0


def reports(node: dict[str, Any], name: str = "table") -> dict[str, Any]:
    recipe = {"models": {"nano": NANO}, "benchmarks": [node]}
    return {"name": name, "verb": "evaluate", "recipe": recipe}


def test_what_ends_the_rounds_reports_nothing(tmp_path: Path) -> None:
    own = colors(tmp_path, 700_000, 3)
    stop = {"benchmark": own, "model": "@tune"}
    Chain(chain(tmp_path, stop, after=[reports(colors(tmp_path, 800_000, 3))])).check_disjoint()
    twice = chain(tmp_path, stop, after=[reports(own)])
    with pytest.raises(RecipeError, match=r"after\[0\] \(table\)\.benchmarks\[0\]: 3 of its 3"):
        Chain(twice).run()
    allowed = chain(tmp_path, stop, after=[reports(own)], reports_what_it_chose_by=True)
    Chain(allowed).check_disjoint()


def test_what_a_metric_measures_chooses_too(tmp_path: Path) -> None:
    own, other = colors(tmp_path, 700_000, 3), colors(tmp_path, 800_000, 3)
    plain = recipe(tmp_path)
    assert plain.rounds
    stages = [vars(stage) for stage in plain.rounds.stages]
    stages.append(
        {
            "name": "check",
            "verb": "evaluate",
            "recipe": {"models": {"model": "@tune"}, "benchmarks": [own, other]},
        }
    )

    def looped(*after: dict[str, Any]) -> Chain:
        metric = "check:evaluate/model/colors-700000/accuracy_fraction"
        rounds = {
            "stages": stages,
            "initial": {"tune": "tune-0"},
            "early_stop": {"metric": metric},
        }
        return Chain(recipe(tmp_path, rounds=rounds, after=list(after)))

    # The other benchmark of the same stage only shows something.
    looped(reports(other)).check_disjoint()
    with pytest.raises(RecipeError, match="3 of its 3 questions"):
        looped(reports(own, "check-after")).check_disjoint()


def test_a_soup_chooses_too(tmp_path: Path) -> None:
    own = colors(tmp_path, 700_000, 3)
    soup = {
        "name": "soup",
        "verb": "soup",
        "recipe": {"ingredients": {"a": "@tune-0", "b": NANO}, "benchmark": own},
    }
    found = recipe(tmp_path, after=[soup, reports(own)])
    with pytest.raises(RecipeError, match=r"among those of after\[0\] \(soup\)\.benchmark\[0\]"):
        Chain(found).check_disjoint()


@pytest.mark.parametrize("name", ["quickstart", "loop/two_stages", "loop/self_augment_emoji"])
def test_shipped_loops_say_what_they_do(name: str) -> None:
    Chain(load_recipe(LoopRecipe, f"recipes/{name}.yaml")).check_disjoint()
