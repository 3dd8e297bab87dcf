"""A model with a tiling goes through the verbs as any other: score, train, recaption, evaluate."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from tests.support.every_verb import run_verb
from tests.support.families import write
from tests.support.tiled import tiled_llava

from consomme.base.sample import turns_of
from consomme.models.batches import Batcher
from consomme.models.chat_prefix import chat_encoder_for
from consomme.models.weights import open_vlm
from consomme.pipelines.train.recipe import TrainSource
from consomme.pipelines.train.samples import plan_source
from consomme.storage.captions import unit_reader
from consomme.storage.ledger.run_folder import RunFolder
from consomme.vision.decode import decode

pytestmark = [pytest.mark.ray, pytest.mark.long]

TILING = {"name": "catty", "max_tiles": 3, "tile_px": 32}
PROMPT = "describe the image."


def test_every_verb_takes_a_model_with_a_tiling(tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = str(write(lambda: tiled_llava(TILING, between_rows="\n"), tmp_path / "tiled"))
    root = str(tmp_path / "runs")
    scenes = {"name": "scenes", "num": 16, "style": "outline"}
    data = run_verb("prepare", name="pairs", root=root, source=scenes).url + "/data"
    limits = {"max_reject_fraction": 0.0, "root": root}

    scores = run_verb("score", name="scores", model=folder, inputs=[data], unit_rows=8, **limits)
    assert not scores.counts.get("rejected")
    found = {}
    for record in RunFolder.at(scores.url).iter_commits():
        table = pq.read_table(f"{RunFolder.at(scores.url).path}/{record.path_of('scores')}")
        found |= dict(zip(table["sample_id"].to_pylist(), table["nll"].to_pylist(), strict=True))
    model, processor = open_vlm(folder)
    chat = chat_encoder_for(model.config, processor)
    batcher = Batcher(model, chat.tokenizer)
    work = plan_source(TrainSource(inputs=(data,)), "data").works[0]
    samples, _ = unit_reader(None)(work.unit)
    assert len(found) == 16
    for _, sample in samples:
        image = decode(sample.images[0].data)
        row = chat.encode(turns_of(sample, PROMPT), [image])
        with torch.no_grad():
            batch = batcher.collate([row])
            logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
        labels = batch["labels"][0, 1:]
        nll = torch.nn.functional.cross_entropy(logits[0, :-1], labels, reduction="sum")
        assert found[sample.sample_id] == pytest.approx(float(nll), rel=1e-4)

    train = {"global_batch": 4, "micro_batch": 2, "pack_tokens": 400, "export_dtype": "float32"}
    held_out = {"evaluation": {"data": [{"inputs": [data]}], "max_samples": 4}}
    tuned = run_verb(
        "train",
        name="tuned",
        model=folder,
        data=[{"inputs": [data]}],
        num_steps=4,
        checkpoint_every=2,
        **train,
        **held_out,
        **limits,
    )
    assert tuned.metrics
    assert all(math.isfinite(value) for value in tuned.metrics.values())
    _, trained = open_vlm(f"{RunFolder.at(tuned.url).path}/model")
    assert trained.image_processor.tiling == TILING
    assert trained.between_rows == "\n"

    writer = {"engine": {"name": "transformers"}, "max_tokens": 4, "guards": {"truncated": False}}
    written = run_verb(
        "recaption", name="written", model=tuned.url, inputs=[data], **writer, **limits
    )
    assert not written.counts.get("rejected")
    asked = {"name": "scene_captions", "num": 2}
    answers = run_verb(
        "evaluate", name="answers", root=root, models={"tuned": tuned.url}, benchmarks=[asked]
    )
    assert answers.metrics
