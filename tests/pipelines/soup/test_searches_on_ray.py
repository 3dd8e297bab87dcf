"""Each search on a real Ray with real models: what was measured is what is written.

All share three ingredients of the nano model, each with another part damaged, and their answers.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.pipelines.choosing.test_soup import NANO, answers, damaged
from tests.support.own_questions import open_colors, texts

from consomme.base.manifest import Manifest
from consomme.evaluate.benchmark import main_figure
from consomme.evaluate.benchmarks import BENCHMARKS
from consomme.evaluate.early_stop import EarlyStop
from consomme.evaluate.guards import Guard
from consomme.ops.verify import verify
from consomme.pipelines.evaluate import run as evaluate
from consomme.pipelines.evaluate.recipe import EvaluateRecipe
from consomme.pipelines.report import run as report
from consomme.pipelines.soup import run as soup
from consomme.pipelines.soup.exchange_check import EXCHANGE_CHECK
from consomme.pipelines.soup.recipe import SoupRecipe

pytestmark = [pytest.mark.ray, pytest.mark.long]

NUM = 12
STOP = EarlyStop(level=0.1, first_questions=8)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("shared")
    models = {
        "blind": damaged(folder / "blind", 1.5, "multi_modal_projector"),
        "mute": damaged(folder / "mute", 0.5, "language_model.model.layers.0."),
        "dim": damaged(folder / "dim", 0.5, "vision_tower"),
    }
    return {
        "root": folder / "runs",
        "models": models,
        "benchmark": open_colors(folder, 700_000, NUM),
        "language": texts(folder, 600_000, 6),
    }


def recipe(shared: Mapping[str, Any], *searches: dict[str, Any], **changes: Any) -> SoupRecipe:
    values: dict[str, Any] = {
        "name": str(searches[0]["name"]),
        "root": str(shared["root"]),
        "ingredients": shared["models"],
        "benchmark": shared["benchmark"],
        "searches": searches,
        **changes,
    }
    return SoupRecipe(**values)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "leave_one_out": ({"accept": ">="}, {}),
    "beam": ({"width": 2}, {}),
    "exhaustive": ({}, {"early_stop": STOP}),
    "random": ({"num": 5}, {}),
    "pairs": ({"points": 2}, {}),
    "tpe": ({"max_evaluations": 12}, {"early_stop": STOP}),
    "cma_es": ({"max_evaluations": 12, "per_part": True, "layer_groups": 2}, {}),
    "nsga2": ({"max_evaluations": 12, "population": 4}, {"base": NANO}),
}


@pytest.mark.parametrize("name", CASES)
def test_what_a_search_measured_is_what_it_writes(
    shared: dict[str, Any], one_ray: object, name: str
) -> None:
    options, changes = CASES[name]
    if name == "nsga2":
        changes = {**changes, "guards": (Guard(benchmark=shared["language"], at_most_worse=0.5),)}
    done = soup.run(recipe(shared, {"name": name, **options}, **changes))
    assert verify(done.url).problems == ()
    found = done.decisions["searches"][name]
    scores = [step["score"] for step in found["trace"] if "stopped_after" not in step]
    assert found["score"] == max(scores) or name in ("leave_one_out", "nsga2")
    # Written, opened and asked like any model, it scores what it scored in memory.
    measured = evaluate.run(
        EvaluateRecipe(
            name=f"of-{name}", root=str(shared["root"]), benchmarks=(shared["benchmark"],),
            models={"soup": f"{done.url}/model"},
        )
    )  # fmt: skip
    (label,) = measured.decisions["results"]["soup"]
    figures = measured.decisions["results"]["soup"][label]
    main = main_figure(BENCHMARKS.build(shared["benchmark"]))
    assert found["score"] == pytest.approx(figures[main])
    told = json.loads(Path(done.url, "model/soup.json").read_text())
    if found["blend"] and len(found["shares"]) > 1:
        assert told["groups"].keys() == found["shares"].keys()
    report.run_folder(done.url)
    page = Path(done.url, "report.html").read_text()
    assert "Shares of the ingredients" in page
    assert ("numbers are those of the table" in page) == (name == "nsga2")
    if "early_stop" in changes:
        assert done.decisions["early_stop"]["candidates"] == len(found["trace"])


def test_candidates_answer_in_vllm(shared: dict[str, Any], one_ray: object) -> None:
    """Written and likely answers, a guard and its base: the scores are those of transformers."""
    parts = [{"benchmark": shared["benchmark"]}, {"benchmark": {"name": "scene_choices", "num": 6}}]
    changes: dict[str, Any] = {
        "benchmark": {"name": "weighted", "parts": parts},
        "guards": (Guard(benchmark=shared["language"], at_most_worse=0.9),),
        "base": NANO,
    }
    vllm = {"name": "vllm", "dtype": "float32", "kv_cache_gb": 0.25, "max_model_len": 512}
    asked = recipe(shared, {"name": "greedy"}, **changes)
    there = soup.run(replace(asked, name="in-vllm", engine=vllm))
    here = soup.run(asked)
    assert verify(there.url).problems == ()
    found, expected = (one.decisions["searches"]["greedy"] for one in (there, here))
    for key in ("chosen", "single_scores", "score"):
        assert found[key] == expected[key]
    scores = [[step["score"] for step in one["trace"]] for one in (found, expected)]
    assert scores[0] == scores[1]
    assert there.counts["evaluations"] == here.counts["evaluations"] > 3
    checked = json.loads(Path(there.url, EXCHANGE_CHECK).read_text())
    assert checked["exchanged"] == checked["other"] != checked["first"]
    measured = evaluate.run(
        EvaluateRecipe(
            name="of-vllm", root=str(shared["root"]), benchmarks=(changes["benchmark"],),
            models={"soup": f"{there.url}/model"}, engine=vllm,
        )
    )  # fmt: skip
    (figures,) = measured.decisions["results"]["soup"].values()
    main = main_figure(BENCHMARKS.build(changes["benchmark"]))
    assert found["score"] == pytest.approx(figures[main])


def test_killed_in_between_and_joined_by_another(
    shared: dict[str, Any], tmp_path: Path, one_ray: dict[str, str]
) -> None:
    asked = recipe(shared, {"name": "cma_es", "max_evaluations": 14}, root=str(tmp_path / "killed"))
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({
        "name": asked.name, "root": asked.root, "ingredients": shared["models"],
        "benchmark": shared["benchmark"], "searches": [dict(one) for one in asked.searches],
    }))  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "consomme.cli", "soup", str(path)], env={**os.environ, **one_ray}
    )
    until = time.monotonic() + 500
    while len(answers(tmp_path / "killed")) < 6:
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    num_before = len(answers(tmp_path / "killed"))
    resumed = soup.run(asked)
    assert resumed.counts["evaluations"] == 14 - num_before > 0
    whole = soup.run(replace(asked, root=str(tmp_path / "whole")))
    assert whole.counts["evaluations"] == 14
    assert resumed.decisions == whole.decisions
    assert same_weights(resumed, whole)
    # One more ingredient: what was asked of the others is known.
    models = {**shared["models"], "nano": NANO}
    joined = soup.run(replace(asked, name="joined", ingredients=models))
    found = joined.decisions["searches"]["cma_es"]
    assert len(found["trace"]) == 14
    assert joined.counts["evaluations"] <= 14 - 3
    assert found["score"] >= resumed.decisions["searches"]["cma_es"]["single_scores"][0]


def same_weights(one: Manifest, other: Manifest) -> bool:
    first, second = (load_file(f"{run.url}/model/model.safetensors") for run in (one, other))
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())
