"""Stages use the GPU that Ray finds, and give the same results as on a CPU."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from consomme.base.manifest import Manifest
from consomme.curate.perplexity import token_nll
from consomme.engines.scoring.requests import ScoringRequest
from consomme.engines.scoring.transformers import TransformersScorer
from consomme.pipelines.evaluate import run as evaluate
from consomme.pipelines.evaluate.recipe import EvaluateRecipe
from consomme.pipelines.prepare import run as prepare
from consomme.pipelines.prepare.recipe import PrepareRecipe
from consomme.pipelines.recaption import run as recaption
from consomme.pipelines.recaption.recipe import RecaptionRecipe
from consomme.pipelines.score import run as score
from consomme.pipelines.score.recipe import ScoreRecipe
from consomme.pipelines.train import run as train
from consomme.pipelines.train.recipe import Evaluation, TrainRecipe, TrainSource
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.model_folder import model_folder
from consomme.storage.sidecar import read_columns
from consomme.storage.units import read_unit
from consomme.vision.decode import DecodeProblem, decode

pytestmark = pytest.mark.ray
NANO = "package://models/nano"
PROMPT = "describe the image."


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, gpu_ray: None) -> str:
    return str(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def pairs(root: str) -> Manifest:
    return prepare.run(
        PrepareRecipe(
            name="pairs",
            root=root,
            source={"name": "scenes", "num": 120},
            noise_fraction=0.5,
            bad_images=2,
            rows_per_shard=50,
        )
    )


@pytest.fixture(scope="module")
def scores(root: str, pairs: Manifest) -> Manifest:
    return score.run(
        ScoreRecipe(
            name="s",
            root=root,
            inputs=(f"{pairs.url}/data",),
            model=NANO,
            dtype="float32",
            labels=("noise",),
            unit_rows=25,
            max_reject_fraction=0.05,
        )
    )


def test_scores_are_those_of_a_cpu(
    pairs: Manifest, scores: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert scores.counts["samples"] + scores.counts["rejected"] == pairs.counts["samples"]
    assert scores.counts["rejected"] == 2
    table = read_columns(scores.url, ["nll", "nll_text"])
    stored = {row["sample_id"]: row for row in table.to_pylist()}
    samples = [
        sample
        for record in RunFolder.at(scores.url).iter_commits()
        for _, sample in read_unit(record.unit)[0]
    ]
    good = [one for one in samples if not isinstance(decode(one.images[0].data), DecodeProblem)]
    assert {one.sample_id for one in good} == stored.keys()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    scorer = TransformersScorer(model_folder(NANO), token_nll)
    assert scorer.device.type == "cpu"
    asked: list[Any] = [
        ScoringRequest.of_caption(PROMPT, one.caption, decode(one.images[0].data)) for one in good
    ]
    for sample, direct in zip(good, scorer.score(asked), strict=True):
        row = stored[sample.sample_id]
        assert row["nll"] == pytest.approx(direct.nll, rel=1e-4, abs=1e-4)
        assert row["nll_text"] == pytest.approx(direct.nll_text, rel=1e-4, abs=1e-4)


def test_captions_are_written(root: str, pairs: Manifest) -> None:
    made = recaption.run(
        RecaptionRecipe(
            name="r",
            root=root,
            inputs=(f"{pairs.url}/data",),
            model=NANO,
            engine={"name": "transformers"},
            max_tokens=64,
            truth={"name": "scenes"},
            max_reject_fraction=0.1,
        )
    )
    assert made.counts["rejected"] >= 2
    texts = read_columns(made.url, ["caption"], kind="captions").to_pylist()
    assert sum(bool(row["caption"]) for row in texts) > 0.9 * len(texts)
    assert made.metrics["recaption/after_true_claims"] > 2


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "ddp"},
        {"name": "bf16", "precision": "bfloat16"},
        {"name": "fsdp2-off", "parallelism": {"name": "fsdp2", "offload": True}},
        {"name": "zero3", "parallelism": {"name": "deepspeed", "stage": 3}},
    ],
    ids=lambda changes: changes["name"],
)
def test_training_takes_the_gpu(root: str, pairs: Manifest, changes: dict[str, Any]) -> None:
    data = (TrainSource(inputs=(f"{pairs.url}/data",)),)
    made = train.run(
        TrainRecipe(
            root=root,
            model=NANO,
            data=data,
            layers={"name": "sparse_uniform", "fraction": 0.25},
            num_steps=8,
            global_batch=24,
            checkpoint_every=4,
            max_reject_fraction=0.1,
            evaluation=Evaluation(data=data, max_samples=16, gpus=0.0),
            **changes,
        )
    )
    assert made.decisions["gpu_name"] == torch.cuda.get_device_name(0)
    losses = [step["loss"] for step in json.loads((Path(made.url) / "curve.json").read_text())]
    assert len(losses) == 8
    assert all(map(math.isfinite, losses))
    assert sum(losses[-2:]) < sum(losses[:2])
    assert math.isfinite(made.metrics["eval/best_loss_nats"])
    measured = evaluate.run(
        EvaluateRecipe(
            name=f"of-{changes['name']}",
            root=root,
            models={"it": made.url},
            benchmarks=({"name": "scene_questions", "num": 10},),
        )
    )
    assert max(measured.metrics.values()) > 0.3
