"""Train on text-only, one-image and three-image samples on several ranks; see `ranks`.

    python mixed_ranks.py FOLDER OUT DEVICE RANK WORLD CASE…

A case is `PARALLELISM-ROWS-PART`: rows are padded or packed, the part is what is trained. At two
ranks, the second one has samples without an image only. `zero3all` is ZeRO-3 that gathers every
parameter, as it does in models that are larger than these.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.support.families import noise
from tests.support.image_conversations import CASES, SIZES, Case
from tests.support.ranks import HOW

NUM_STEPS = 5
SAVED = 2
PARTS = ("all", "language")
BY_NAME = {case.name: case for case in CASES}
WITH_IMAGES = ("one first", "three first", "over turns", "in mid-sentence")


def sample_of(case: Case, number: int) -> Any:
    """A case as a sample with encoded images."""
    from consomme.base.sample import ImageFile, Sample

    images = []
    for index in range(case.num_images):
        stream = io.BytesIO()
        noise(10 * number + index, *SIZES[index]).save(stream, "PNG")
        images.append(ImageFile(data=stream.getvalue(), name=f"{index}.png"))
    return Sample(sample_id=str(number), images=tuple(images), turns=case.turns, source="mixed")


def step_samples(chat: Any, step: int) -> list[Any]:
    """Eight samples: every other one is a text, in the last step all of them."""
    from consomme.base.sample import Turn
    from consomme.pipelines.train.samples import PreparedSample, encode

    found = []
    for number in range(8):
        has_image = number % 2 == 0 and step < NUM_STEPS - 1
        case = BY_NAME[WITH_IMAGES[(step + number // 2) % 4] if has_image else "text alone"]
        sample = sample_of(case, 100 * step + number)
        if not has_image:
            question = Turn(role="user", content=f"what is {'very ' * number}{step}?")
            answer = Turn(role="assistant", content="a star and " * (step + 1) + "a square")
            sample = dataclasses.replace(sample, turns=(question, answer))
        made = PreparedSample(sample=sample, num_tokens=0)
        encoded = encode(chat, made)
        found.append(
            dataclasses.replace(
                made, num_tokens=len(encoded.input_ids), num_labelled=encoded.num_tokens
            )
        )
    return found


def gather_every_parameter() -> None:
    """DeepSpeed keeps small parameters gathered, which are all there are in a tiny model."""
    from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload

    inner = DeepSpeedZeRoOffload.mark_persistent_parameters
    DeepSpeedZeRoOffload.mark_persistent_parameters = lambda self, *_: inner(self, 0, 0)


def train(
    opened: tuple[Any, Any], case: str, rank: int, world: int, scratch: Path, *, resumes: bool
) -> list[float]:
    """Return losses and, last, the sum of the absolute values of all weights."""
    import torch

    from consomme.pipelines.train.batches import Collator
    from consomme.pipelines.train.feed import RankBatch
    from consomme.train.batch_check import SINGLE, check_batches, row_layout
    from consomme.train.filler import make_filler
    from consomme.train.loop import ScheduleConfig, StepReport, fit, sum_nll
    from consomme.train.parallel.registry import PARALLELISMS
    from consomme.train.parts import FROZEN, FULL, Part, Trainability
    from consomme.train.trainable import freeze_unused, set_trainable
    from tests.support.conversations import batcher_of

    how, rows, part = case.split("-")
    if how == "zero3all":
        how = "zero3"
        gather_every_parameter()
    torch.manual_seed(0)
    original, processor = opened
    model = copy.deepcopy(original)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_gate"):
                # Zero in a model that was not trained: it would see no image at all.
                parameter.fill_(0.7)
    chat, batcher = batcher_of(model, processor)
    packs = rows == "packed"
    check = check_batches(model, chat, batcher, packs=packs)
    layout = row_layout(check, batcher, micro_batch=2, pack_tokens=400 if packs else None)
    filler = make_filler(
        chat,
        model.config,
        check.filler_way,
        is_in_every_pass=world > 1,
        has_row=check.way != SINGLE,
    )
    assert filler is not None
    collator = Collator(batcher=batcher, chat=chat, layout=layout, filler=filler)
    trainability = Trainability(
        vision_encoder=FULL if part == "all" else FROZEN,
        projector=FULL if part == "all" else FROZEN,
        language_model=FULL if part == "all" else Part(state="lora", rank=2, alpha=4),
    )
    every = range(model.config.get_text_config().num_hidden_layers)
    groups = set_trainable(model, trainability, every, lr=1e-3, weight_decay=0.1).groups
    # The first sample has no image: nothing of the vision encoder may be taken for unused.
    first = collator.collate(step_samples(chat, 0)[1:2])
    image = batcher.collate([filler.row])
    freeze_unused(model, lambda bare: sum_nll(bare, first) + sum_nll(bare, image))
    names = [name for name, _ in model.named_parameters()]
    sharded: Any = PARALLELISMS.build(HOW[how])(model, groups, torch.device("cpu"))

    def batches(step: int) -> list[Any]:
        samples = step_samples(chat, step)
        if packs and world == 2:
            # Packing fills rows by length; the second rank is to have texts only.
            shares = [[[[0, 2, 4, 6]]], [[[1, 3, 5, 7]]]]
        else:
            shares = layout.split(
                [one.num_tokens for one in samples], world, [one.num_images for one in samples]
            )
        fillers = [
            next((samples[k] for rows in every for (k, *_) in rows), None)
            for every in zip(*shares, strict=True)
        ]
        passes = [[[samples[k] for k in row] for row in one] for one in shares[rank]]
        return collator.micro_batches(RankBatch(passes=passes, fillers=fillers, state={}))

    losses: list[float] = []

    def after_step(report: StepReport) -> None:
        losses.append(report.loss)
        if report.step == SAVED and not resumes:
            scratch.mkdir(parents=True, exist_ok=True)
            sharded.save(scratch)

    if resumes:
        sharded.load(scratch)
    fit(
        sharded,
        batches,
        ScheduleConfig(num_steps=NUM_STEPS),
        start=SAVED if resumes else 0,
        after_step=after_step,
    )
    sharded.trainable_names = frozenset(names)
    weights = sharded.trainable_state_dict()
    return [*losses, sum(float(one.double().abs().sum()) for one in weights.values())]


def main() -> None:
    import torch
    import torch.distributed as dist

    from consomme.models.weights import open_model
    from consomme.train.parallel.strategy import BACKENDS

    folder, out, device = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    rank, world = map(int, sys.argv[4:6])
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group(
        BACKENDS[device], init_method=f"file://{out}/meet-{world}", rank=rank, world_size=world
    )
    opened = open_model(folder)
    found: dict[str, Any] = {}
    for case in sys.argv[6:]:
        name, _, ranks = case.partition("@")
        scratch = out / f"{name}-{ranks or world}"
        found[case] = train(opened, name, rank, world, scratch, resumes=bool(ranks))
        dist.barrier()
    if rank == 0:
        (out / f"losses-{world}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    from consomme.base.process import end

    main()
    end(0)
