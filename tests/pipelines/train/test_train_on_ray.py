"""Training on Ray: evaluation, checkpoints, export, packing, trackers and rollbacks."""

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.support.families import make, write
from tests.support.more_families import text_family

from consomme.base.errors import CheckpointError, RecipeError, SupersededError
from consomme.base.manifest import Manifest
from consomme.models.batches import IGNORE_INDEX, Batcher
from consomme.models.chat import ChatEncoder
from consomme.models.weights import open_vlm
from consomme.pipelines.report import run as report
from consomme.pipelines.train import run as train
from consomme.pipelines.train.plan import plan
from consomme.pipelines.train.progress import StepMonitor
from consomme.pipelines.train.recipe import Evaluation, TrainRecipe, TrainSource
from consomme.pipelines.train.samples import Preparer, encode, plan_source
from consomme.storage.model_folder import model_folder
from consomme.train.divergence import MIN_LOSSES
from consomme.train.loop import sum_nll
from consomme.train.parts import Part

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def recipe(train_recipe: TrainRecipe, pairs: Manifest) -> TrainRecipe:
    """Adapters, packed rows, every checkpoint evaluated; too high a rate, so it gets worse."""
    return replace(
        train_recipe,
        name="cared",
        language_model=Part(state="lora", rank=4),
        lr=0.02,
        schedule="constant",
        num_workers=1,
        pack_tokens=200,
        checkpoint_every=2,
        keep_checkpoints=1,
        export_checkpoint="best",
        evaluation=Evaluation(data=(TrainSource(inputs=(f"{pairs.url}/data",)),), max_samples=24),
        trackers=({"name": "tensorboard"},),
        compile="aot_eager",
        max_reject_fraction=0.1,
    )


@pytest.fixture(scope="module")
def cared(recipe: TrainRecipe) -> Manifest:
    return train.run(recipe)


def loss_of(folder: str, recipe: TrainRecipe) -> float:
    """Mean loss of a model on what the recipe evaluates on, one sample at a time."""
    model, processor = open_vlm(folder)
    chat = ChatEncoder(model.config, processor)
    batcher = Batcher(model, chat.tokenizer)
    (source,) = recipe.evaluation.data
    preparer = Preparer(recipe, chat, 512)
    samples = [
        one
        for work in plan_source(source, "e").works
        for one in preparer.read(source, work, 0, 0).samples
    ][: recipe.evaluation.max_samples]
    total, tokens = 0.0, 0
    with torch.inference_mode():
        for sample in samples:
            batch = batcher.collate([encode(chat, sample)])
            total += float(sum_nll(model, batch))
            tokens += int((batch["labels"] != IGNORE_INDEX).sum())
    return total / tokens


def test_the_best_checkpoint_becomes_the_model(cared: Manifest, recipe: TrainRecipe) -> None:
    found = [
        json.loads(path.read_text())
        for path in sorted((Path(cared.url) / "evaluations").glob("*.json"))
    ]
    assert [one["step"] for one in found] == [2, 4, 6]
    best = min(found, key=lambda one: one["loss"])
    assert cared.decisions["exported_step"] == best["step"]
    assert cared.metrics["eval/best_loss_nats"] == best["loss"]
    exported = loss_of(model_folder(cared.url), recipe)
    assert exported == pytest.approx(best["loss"], rel=1e-4)
    assert all(abs(one["loss"] - exported) > 1e-3 for one in found if one is not best)


def test_what_is_kept_is_the_best_and_the_last(cared: Manifest) -> None:
    kept = {
        json.loads(path.read_text())["step"]
        for path in (Path(cared.url) / "checkpoints").glob("checkpoint_*/meta.json")
    }
    assert kept == {cared.decisions["exported_step"], 6} or kept == {6}


def test_checkpoints_hold_what_moves_and_nothing_else(cared: Manifest) -> None:
    (path, *_) = (Path(cared.url) / "checkpoints").glob("checkpoint_*/state.pt")
    saved = torch.load(path, weights_only=True)["model"]
    assert all(".lora_" in name or "projector" in name for name in saved)
    whole = load_file(Path(model_folder(cared.url)) / "model.safetensors")
    assert sum(v.numel() for v in saved.values()) < 0.3 * sum(v.numel() for v in whole.values())


def test_metrics_reached_the_tracker(cared: Manifest) -> None:
    (events,) = (Path(cared.url) / "tensorboard").iterdir()
    assert events.read_bytes().count(b"train/loss_nats") == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"export_checkpoint": "best", "evaluation": Evaluation()},
            "evaluation has neither data nor a benchmark",
        ),
        ({"min_workers": 3}, r"min_workers: found 3, expected 1 to num_workers=1"),
        ({"keep_checkpoints": 0}, "keep_checkpoints: found 0, expected at least 1"),
        ({"pack_tokens": 0}, "pack_tokens: found 0"),
    ],
)
def test_what_cannot_be_is_refused(
    recipe: TrainRecipe, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        train.run(replace(recipe, name="refused", **changes))  # type: ignore[arg-type]


def test_how_rows_were_made_is_kept(cared: Manifest) -> None:
    check = json.loads((Path(cared.url) / "selfcheck.json").read_text())
    assert (check["kind"], check["way"]) == ("training", "packed rows")
    assert check["difference"] < check["tolerance"] == 1e-4
    assert cared.decisions["rows"] == "packed rows"


@pytest.mark.long
def test_a_family_that_cannot_be_packed_is_trained_unpacked(
    train_recipe: TrainRecipe, tmp_path: Path
) -> None:
    model = str(make("gemma3", tmp_path / "gemma3"))
    recipe = replace(train_recipe, name="gemma", model=model, root=str(tmp_path), num_steps=2)
    packed = train.run(replace(recipe, pack_tokens=400))
    check = json.loads((Path(packed.url) / "selfcheck.json").read_text())
    assert check["way"] == packed.decisions["rows"] == "padded rows"
    assert "both directions" in check["failed"]["packed rows"]
    report.run_folder(packed.url)
    page = (Path(packed.url) / "report.html").read_text()
    assert "trained on padded rows instead of packed rows: it attends in both directions" in page
    (note,) = [one for one in plan(replace(recipe, pack_tokens=400)).notes if "not packed" in one]
    assert "both directions" in note


@pytest.mark.long
def test_a_model_that_cannot_run_stops_every_worker_before_the_first_step(
    train_recipe: TrainRecipe, tmp_path: Path
) -> None:
    # The tokenizer has more tokens than the model.
    folder = write(lambda: text_family("Llama", vocab_size=64), tmp_path / "small")
    recipe = replace(train_recipe, name="small", model=str(folder), root=str(tmp_path))
    recipe = replace(recipe, projector=Part(state="frozen"))
    with pytest.raises(CheckpointError, match="plain forward pass of this llama model fails"):
        train.run(recipe)


def test_evaluation_needs_room_beside_training(recipe: TrainRecipe) -> None:
    wide = replace(recipe.evaluation, cpus=400.0)
    with pytest.raises(
        RecipeError,
        match=r"num_workers=1.* evaluation.cpus=400.*: needs 401 CPUs at the same time",
    ):
        train.run(replace(recipe, name="wide", evaluation=wide))


def test_a_run_that_diverges_goes_back_and_on_with_other_samples(
    full: Manifest, full_recipe: TrainRecipe
) -> None:
    rollbacks = full.decisions["rollbacks"]
    assert rollbacks
    assert all("more than max_loss_ratio=1.02 times" in reason for reason in rollbacks)
    curve = json.loads((Path(full.url) / "curve.json").read_text())
    assert [step["step"] for step in curve] == list(range(1, full_recipe.num_steps + 1))
    losses = [step["loss"] for step in curve]
    assert all(
        losses[k] <= 1.02 * statistics.median(losses[:k]) for k in range(MIN_LOSSES, len(losses))
    )
    report.run_folder(full.url)
    page = (Path(full.url) / "report.html").read_text()
    assert "went back to a checkpoint: step" in page


@pytest.mark.long
def test_a_training_that_is_started_again_elsewhere_stops(
    sparse_recipe: TrainRecipe, sparse: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(sparse_recipe, root=str(tmp_path))
    run = train.open_run(recipe)
    update = StepMonitor.update

    def start_elsewhere(monitor: StepMonitor, points: list[dict[str, float]]) -> None:
        if points and run.folder.start_attempt() > 2:
            monkeypatch.undo()
        update(monitor, points)

    monkeypatch.setattr(StepMonitor, "update", start_elsewhere)
    with pytest.raises(SupersededError, match=r"attempt 1 was overtaken by attempt \d, started"):
        train.run(recipe)
    assert not run.is_done
    assert not (Path(run.folder.url) / "model").exists(), "it exports nothing"
    monkeypatch.undo()
    # The one that takes over goes on from the last checkpoint and ends with the same model.
    done = train.run(recipe)
    theirs, ours = (Path(one.url) / "model" / "model.safetensors" for one in (sparse, done))
    assert theirs.read_bytes() == ours.read_bytes()
