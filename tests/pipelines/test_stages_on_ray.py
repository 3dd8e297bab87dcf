"""Every stage on its real component (Ray Data, vLLM, Ray Train, Ray Tune), on the shipped VLM."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from consomme.base.errors import CheckpointError
from consomme.pipelines.evaluate import run as evaluate
from consomme.pipelines.evaluate.recipe import EvaluateRecipe
from consomme.pipelines.loop import run as loop
from consomme.pipelines.loop.chain import LoopStage, SummaryRow
from consomme.pipelines.loop.recipe import LoopRecipe
from consomme.pipelines.soup import run as soup
from consomme.pipelines.soup.recipe import SoupRecipe
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.model_folder import model_folder
from consomme.storage.sidecar import read_columns
from consomme.storage.view import View

pytestmark = pytest.mark.ray
NANO = "package://models/nano"


def test_every_sample_is_scored_once_and_bad_pictures_cost_one_reject_each(pairs, scores):
    assert scores.counts["samples"] + scores.counts["rejected"] == pairs.counts["samples"]
    rejects = list(RunFolder.at(scores.url).rejects())
    assert len(rejects) == 2
    assert {reject.reason for reject in rejects} <= {"image_truncated", "image_undecodable"}
    ids = read_columns(scores.url, ["nll"])["sample_id"].to_pylist()
    assert len(ids) == len(set(ids))
    assert {reject.sample_id for reject in rejects}.isdisjoint(ids)


def test_scores_through_ray_are_those_of_the_bare_engine(pairs, scores):
    from consomme.curate.perplexity import token_nll
    from consomme.engines.scoring.requests import ScoringRequest
    from consomme.engines.scoring.transformers import TransformersScorer
    from consomme.storage.units import read_unit
    from consomme.vision.decode import DecodeProblem, decode

    record = next(RunFolder.at(scores.url).iter_commits())
    stored = pq.read_table(Path(scores.url) / record.path_of("scores")).to_pylist()
    samples = [s for _, s in read_unit(record.unit)[0]]
    good = [s for s in samples if not isinstance(decode(s.images[0].data), DecodeProblem)]
    scorer = TransformersScorer(model_folder(NANO), token_nll)
    bare = scorer.score(
        [
            ScoringRequest.of_caption("describe the image.", s.caption, decode(s.images[0].data))
            for s in good
        ]
    )
    for row, sample, direct in zip(stored, good, bare, strict=True):
        assert row["sample_id"] == sample.sample_id
        assert row["nll"] == pytest.approx(direct.nll, rel=1e-5)
        assert row["nll_text"] == pytest.approx(direct.nll_text, rel=1e-5)


def test_image_gain_sees_mismatched_captions(scores, view):
    table = read_columns(scores.url, ["image_gain", "noise"])
    gain = np.array(table["image_gain"].to_pylist())
    noise = np.array(table["noise"].to_pylist())
    assert np.median(gain[noise == "clean"]) > np.median(gain[noise == "mismatched"])
    kept, dropped = (view.metrics[f"filter/noise_{what}_fraction"] for what in ("kept", "dropped"))
    assert kept < dropped


@pytest.mark.vllm
def test_recaptions_carry_their_provenance(recaptions, view):
    table = read_columns(
        recaptions.url,
        ["caption", "parent_caption", "prompt_id", "model_hash", "engine", "round"],
        kind="captions",
    ).to_pylist()
    assert len(table) == View.load(view.url).num_samples
    assert {row["prompt_id"] for row in table} == {"plain"}
    assert {row["round"] for row in table} == {1}
    assert all(row["engine"].startswith("vllm ") for row in table)
    assert sum(bool(row["caption"]) for row in table) > 0.9 * len(table)
    assert recaptions.metrics["recaption/after_true_claims"] > 0


def test_two_workers_train_and_the_loss_falls(full):
    assert full.decisions["world_size"] == 2
    losses = [step["loss"] for step in json.loads((Path(full.url) / "curve.json").read_text())]
    assert len(losses) == 14
    assert sum(losses[-2:]) < sum(losses[:2])
    assert (Path(full.url) / "model" / "config.json").exists()


def test_layers_outside_the_selection_stay_bit_identical(sparse):
    before = load_file(Path(model_folder(NANO)) / "model.safetensors")
    after = load_file(Path(sparse.url) / "model" / "model.safetensors")
    assert sparse.decisions["layers"] == [0, 4, 8]
    changed = {name for name in before if not (before[name].float() == after[name].float()).all()}
    prefix = "language_model.model.layers."
    layers = {name.split(".")[3] for name in changed if name.startswith(prefix)}
    assert layers == {"0", "4", "8"}
    assert not any(name.startswith("vision_tower") for name in changed)
    assert not any("embed_tokens" in name or "lm_head" in name for name in changed)
    assert any(name.startswith("multi_modal_projector") for name in changed)


def check_of(path: str | Path) -> dict[str, Any]:
    return json.loads(Path(path).read_text())


def test_soup_through_tune_is_never_below_its_best_ingredient(root, full, sparse):
    recipe = SoupRecipe(
        name="soup",
        root=root,
        ingredients={"full": full.url, "sparse": sparse.url, "start": NANO},
        benchmark={"name": "scene_questions", "style": "outline", "num": 6, "first_seed": 700000},
    )
    done = soup.run(recipe)
    greedy, single = (done.metrics[f"soup/{n}_score_fraction"] for n in ("greedy", "best_single"))
    assert greedy >= single
    assert done.counts["evaluations"] <= 3 + 2 + 1
    (check,) = Path(done.url, "selfcheck").iterdir()
    assert check_of(check)["kind"] == "writing"
    again = soup.run(
        SoupRecipe(**{**vars(recipe), "name": "again", "searches": ({"name": "uniform"},)})
    )
    assert again.counts["evaluations"] == 0  # every candidate was scored before
    model_folder(f"{done.url}/greedy")


def test_soup_of_strangers_is_refused(root, full, debug_vlm):
    with pytest.raises(CheckpointError, match="stranger"):
        soup.run(
            SoupRecipe(
                name="strangers",
                root=root,
                ingredients={"full": full.url, "other": str(debug_vlm)},
                benchmark={"name": "scene_questions", "num": 2},
            )
        )


def test_evaluation_falls_to_guessing_when_the_picture_is_blank(root):
    done = evaluate.run(
        EvaluateRecipe(
            name="seeing",
            root=root,
            models={"nano": NANO},
            benchmarks=(
                {"name": "scene_questions", "num": 25},
                {"name": "scene_questions", "num": 25, "blank": True},
            ),
        )
    )
    seen = done.metrics["evaluate/nano/scene_questions/accuracy_fraction"]
    blank = done.metrics["evaluate/nano/scene_questions_blank/accuracy_fraction"]
    (check,) = (Path(done.url) / "selfcheck").iterdir()
    assert check_of(check)["way"] == "padded batches"
    assert seen > blank + 0.2
    assert blank < 0.5


def test_a_loop_runs_once_and_is_then_found_done(tmp_path):
    values = {
        "name": "tiny",
        "root": str(tmp_path),
        "stages": (
            LoopStage(
                name="pairs",
                verb="prepare",
                recipe={"source": {"name": "scenes", "num": 30}, "noise_fraction": 0.5},
            ),
            LoopStage(
                name="scores",
                verb="score",
                recipe={
                    "inputs": ["@pairs/data"],
                    "model": NANO,
                    "labels": ["noise"],
                    "num_actors": 1,
                },
            ),
            LoopStage(
                name="low",
                verb="filter",
                recipe={
                    "scores": "@scores",
                    "keep": {"name": "lowest_fraction", "fraction": 0.5},
                    "noise_label": "noise",
                },
            ),
        ),
        "summary": (SummaryRow(label="auc", value="low:filter/noise_auc_perplexity_fraction"),),
    }
    done = loop.run(LoopRecipe(**values))
    assert done.seconds >= sum(done.decisions["seconds"].values()), (
        "a loop takes what its stages take"
    )
    page = (Path(done.url) / "report.html").read_text()
    assert "Scores: scores" in page
    assert "data:image/png;base64" in page
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert loop.run(LoopRecipe(**values)).fingerprint == done.fingerprint
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before
