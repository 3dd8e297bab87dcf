"""What packing saves, and how long resuming takes far into the data.

The data are conversations of one to sixteen questions about scenes, whose lengths vary as in
instruction data. Everything runs in one process, in turn; figures are medians.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from consomme.base.sample import ImageFile, Sample, Turn
from consomme.datasets.scenes import encode, make_scene, questions, render
from consomme.models.batches import Batcher
from consomme.models.chat_prefix import chat_encoder_for
from consomme.models.weights import open_model
from consomme.pipelines.train import feed as train_feed
from consomme.pipelines.train.batches import Collator
from consomme.pipelines.train.context import TrainContext
from consomme.pipelines.train.feed import BatchServer, ReadUnits
from consomme.pipelines.train.recipe import TrainRecipe, TrainSource
from consomme.pipelines.train.samples import UnitContents
from consomme.storage.model_folder import model_folder
from consomme.storage.stores.open import open_store
from consomme.storage.writers import WebDatasetWriter
from consomme.train.loop import sum_nll
from consomme.train.packing import RowLayout

NANO = "package://models/nano"
NUM_SAMPLES = 4000
ROUNDS = 6
GLOBAL_BATCH = 32
MICRO_BATCH = 8
PACK_TOKENS = 512
FAR = (1, 100, 1000)
"""Steps after which a run is resumed."""


def conversations(number: int) -> Iterator[Sample]:
    """Yield scenes with mostly few and sometimes many questions."""
    for seed in range(number):
        scene = make_scene(seed)
        draw = random.Random(seed)
        asked = [one for k in range(4) for one in questions(scene, 4 * seed + k)]
        draw.shuffle(asked)
        turns = [
            Turn(role=role, content=text)
            for one in asked[: min(len(asked), 1 + int(draw.paretovariate(1.0)), 16)]
            for role, text in (("user", one.question), ("assistant", one.answer))
        ]
        yield Sample(
            sample_id=f"s{seed}",
            images=(ImageFile(data=encode(render(scene)), name=f"s{seed}.png"),),
            turns=tuple(turns),
            source="scenes",
        )


def directly(reads: Sequence[ReadUnits], num_readers: int | None) -> Iterator[UnitContents]:
    """Read in this process."""
    for read in reads:
        yield from read()


def rows() -> list[dict[str, Any]]:
    """Measure packing and resuming."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        writer = WebDatasetWriter(open_store(f"{scratch}/shards"), "s", max_rows=250)
        for sample in conversations(NUM_SAMPLES):
            writer.write(sample)
        writer.close()
        recipe = TrainRecipe(
            name="bench",
            model=NANO,
            data=(TrainSource(inputs=(f"{scratch}/shards",)),),
            global_batch=GLOBAL_BATCH,
            micro_batch=MICRO_BATCH,
            shuffle_units=4,
        )
        made = packing(recipe, Path(scratch))
        # Nothing is cached in memory, as with a large source.
        with patch.object(train_feed, "CACHE_BYTES", 0):
            return made + resuming(recipe, Path(scratch))


def feed(recipe: TrainRecipe, folder: Path, state: dict[str, Any] | None = None) -> BatchServer:
    """Hand out samples that this process reads."""
    context = TrainContext(
        recipe=recipe,
        start=model_folder(recipe.model),
        folder_url=str(folder / "run"),
        is_private=True,
    )
    return BatchServer(context, state, directly)


def layout_of(recipe: TrainRecipe) -> RowLayout:
    """Rows as the recipe asks for them."""
    return RowLayout(micro_batch=recipe.micro_batch, pack_tokens=recipe.pack_tokens)


def packing(recipe: TrainRecipe, folder: Path) -> list[dict[str, Any]]:
    """Time forward and backward of the same steps, padded and packed."""
    model, processor = open_model(model_folder(NANO))
    model.train()
    chat = chat_encoder_for(model.config, processor)
    batcher = Batcher(model, chat.tokenizer)
    ways = {"padded": recipe, "packed": replace(recipe, pack_tokens=PACK_TOKENS)}
    feeds = {way: feed(one, folder) for way, one in ways.items()}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    places = dict.fromkeys(ways, 0)
    tokens = dict.fromkeys(ways, 0)
    losses = dict.fromkeys(ways, 0.0)
    for number in range(ROUNDS + 1):
        for way in ways if number % 2 else reversed(ways):
            layout = layout_of(feeds[way].recipe)
            collator = Collator(batcher=batcher, chat=chat, layout=layout)
            batches = collator.micro_batches(feeds[way].take(number, 0, 1, layout))
            began = time.perf_counter()
            for batch in batches:
                loss = sum_nll(model, batch)
                loss.backward()
                losses[way] += float(loss.detach())
            took = time.perf_counter() - began
            model.zero_grad()
            if number:
                # The first round warms up.
                seconds[way].append(took)
                places[way] += sum(batch["input_ids"].numel() for batch in batches)
                tokens[way] += sum(_tokens(batch) for batch in batches)
    assert tokens["padded"] == tokens["packed"]
    assert abs(losses["padded"] / losses["packed"] - 1) < 1e-5
    how = (
        f"nano VLM, conversations of 1 to 16 questions, {tokens['packed'] / ROUNDS:.0f} tokens a"
        f" step; padded: {MICRO_BATCH} samples at a time; packed: rows of {PACK_TOKENS} tokens"
    )
    speed = {way: tokens[way] / ROUNDS / statistics.median(seconds[way]) for way in ways}
    return [
        *(
            row(f"stream.padding_{way}", 1 - tokens[way] / places[way], "share", "", how)
            for way in ways
        ),
        *(row(f"stream.tokens_per_s_{way}", speed[way], "tokens/s", "", how) for way in ways),
        row("stream.packed_speed", speed["packed"] / speed["padded"], "ratio", "padded", how),
    ]


def _tokens(batch: dict[str, torch.Tensor]) -> int:
    """Count the tokens that are not padding."""
    mask = batch["attention_mask"]
    return batch["input_ids"].numel() if mask.dim() == 4 else int(mask.sum())


def resuming(recipe: TrainRecipe, folder: Path) -> list[dict[str, Any]]:
    """Time resuming from a checkpoint until the first samples, near the start and far from it."""
    states: dict[int, dict[str, Any]] = {}
    undisturbed = feed(recipe, folder)
    began = time.perf_counter()
    expected: dict[int, list[str]] = {}
    for batch in range(FAR[-1] + 1):
        share = undisturbed.take(batch, 0, 1, layout_of(recipe))
        if batch in FAR:
            expected[batch] = _ids(share)
        states[batch + 1] = share.state
    replay = time.perf_counter() - began
    found = []
    for far in FAR:
        took = []
        for _ in range(3):
            began = time.perf_counter()
            share = feed(recipe, folder, states[far]).take(far, 0, 1, layout_of(recipe))
            took.append(time.perf_counter() - began)
            assert _ids(share) == expected[far]
        how = f"after {far} steps of {GLOBAL_BATCH} samples; units of 250, 4 shuffled together"
        found.append(
            row(f"stream.resume_s_{far}", statistics.median(took), "s", "", f"{how}; median of 3")
        )
    last = found[-1]["value"]
    return [
        *found,
        row("stream.resume_growth", last / found[0]["value"], "ratio", f"after {FAR[0]} step", how),
        row("stream.replay_s", replay, "s", "", f"reading all samples of {FAR[-1]} steps again"),
    ]


def _ids(share: Any) -> list[str]:
    return [one.sample.sample_id for rows_ in share.passes for line in rows_ for one in line]


def row(key: str, value: float, unit: str, baseline: str, how: str) -> dict[str, Any]:
    """Return one measured figure."""
    return {"key": key, "value": round(value, 4), "unit": unit, "baseline": baseline, "how": how}
