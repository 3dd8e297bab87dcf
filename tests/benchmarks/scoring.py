"""The scoring engine against the script that POINTS released and a plain batched loop.

    python -m tests.benchmarks.scoring CONTESTANT MODEL DATA FOLDER     # one process each

All three score the same captions with the same model, with the picture and without, in float32 with
one thread. Each runs in its own process, three times in turn, so that time and peak memory are its
own. Models: the nano VLM, whose vocabulary is small, and a randomly initialized model with a
vocabulary of 50,000 and 196 tokens per picture, where logits take a realistic share of time and
memory. Data: pictures with one caption each, and pictures with five, because emoji have names in
five languages.

On a GPU the same is measured in one process with a randomly initialized model of a billion
parameters in bfloat16.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

NUM = {"nano": 220, "wide": 45, "large": 480}
"""Number of captions by model; multiples of five."""

NUM_SLOW = {"large": 60}
"""Fewer captions for the script that scores one at a time."""

WARM = 10
ROUNDS = 3
GPU_ROUNDS = 2
PROMPT = "describe the image."
BATCH = 16
DEVICE = torch.device("cpu")
DTYPE = torch.float32
"""`use_gpu` changes both."""


def use_gpu() -> None:
    """Use the GPU and bfloat16 from now on in this process."""
    global DEVICE, DTYPE
    DEVICE, DTYPE = torch.device("cuda"), torch.bfloat16


def random_vlm(name: str, folder: Path) -> Path:
    """Write a randomly initialized model of a realistic size with the nano VLM's tokenizer."""
    from consomme.models.imports import import_transformers
    from consomme.models.weights import open_model
    from consomme.storage.model_folder import model_folder

    hf = import_transformers()
    _, processor = open_model(model_folder("package://models/nano"))
    from tests.benchmarks.training import LLAMA_1B, Shape, vision_config

    shapes = {
        "wide": Shape(
            text={
                "vocab_size": 50_000, "hidden_size": 384, "intermediate_size": 1024,
                "num_hidden_layers": 8, "num_attention_heads": 6, "num_key_value_heads": 2,
            },
            vision_width=192, vision_layers=6, image_px=224,
        ),
        "large": LLAMA_1B,
    }  # fmt: skip
    shape = shapes[name]
    side = shape.image_px
    for key, value in (
        ("size", {"height": side, "width": side}),
        ("crop_size", {"height": side, "width": side}),
    ):
        setattr(processor.image_processor, key, value)
    processor.patch_size = shape.patch_px
    config = hf.LlavaConfig(
        vision_config=vision_config(shape),
        text_config=hf.LlamaConfig(max_position_embeddings=2048, **shape.text),
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=shape.num_image_tokens,
        tie_word_embeddings=shape.text.get("tie_word_embeddings", False),
    )
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = hf.LlavaForConditionalGeneration(config)
    model.to(DTYPE).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@functools.cache
def data(kind: str, num: int) -> tuple[list[Any], list[str]]:
    """Return pictures and captions: `one` caption per picture, or `five` consecutive ones."""
    from consomme.datasets.sources import EmojiSource, SceneSource
    from consomme.vision.decode import decode

    if kind == "one":
        scenes, emoji = SceneSource(num=num // 2)(), EmojiSource(styles=("noto",))()
        samples = [sample for pair in zip(scenes, emoji, strict=False) for sample in pair]
        return [decode(sample.images[0].data) for sample in samples], [
            sample.caption for sample in samples
        ]
    images, captions = [], []
    for sample in EmojiSource(styles=("noto",))():
        image = decode(sample.images[0].data)
        names = [sample.caption, *sample.meta["names"].values()]
        images += [image] * len(names)
        captions += names
        if len(captions) >= num:
            break
    return images[:num], captions[:num]


def conversations(folder: str, captions: Sequence[str]) -> tuple[Any, Any, list[dict[str, str]]]:
    """Open the model; render each caption's conversation and prompt, with and without picture."""
    from tests.support.messages import to_messages

    from consomme.base.sample import Turn
    from consomme.models.weights import open_model

    model, processor = open_model(folder, DTYPE)
    model.to(DEVICE)
    found = []
    for caption in captions:
        turns = (Turn(role="user", content=PROMPT), Turn(role="assistant", content=caption))
        texts = {}
        for kind, has_image in (("seen", True), ("blind", False)):
            render = processor.apply_chat_template
            texts[kind] = render(to_messages(turns, has_image=has_image), tokenize=False)
            texts[f"{kind} prompt"] = render(
                to_messages(turns[:1], has_image=has_image),
                tokenize=False,
                add_generation_prompt=True,
            )
        found.append(texts)
    return model, processor, found


@torch.inference_mode()
def points(folder: str, images: Sequence[Any], captions: Sequence[str]) -> list[float]:
    """Score like the POINTS script: one sample at a time, all logits, bfloat16 probabilities."""
    model, processor, texts = conversations(folder, captions)
    sums = []
    for image, text in zip(images, texts, strict=True):
        for kind in ("seen", "blind"):
            some = {"images": [[image]]} if kind == "seen" else {}
            prompt = processor(text=[text[f"{kind} prompt"]], **some, return_tensors="pt")
            inputs = processor(text=[text[kind]], **some, return_tensors="pt").to(DEVICE, DTYPE)
            begin = prompt["input_ids"].shape[1]
            logits = model(**inputs).logits
            chances = torch.softmax(logits[0, begin - 1 : -1].float(), dim=-1)
            ids = inputs["input_ids"][0, begin:]
            taken = chances.gather(1, ids[:, None]).to(torch.bfloat16)
            sums.append(float(-taken.float().log().sum()))
    return sums


@torch.inference_mode()
def batched(folder: str, images: Sequence[Any], captions: Sequence[str]) -> list[float]:
    """Score in padded batches of 16 in input order, with log-softmax over all logits."""
    model, processor, texts = conversations(folder, captions)
    processor.tokenizer.padding_side = "right"
    sums: dict[str, list[float]] = {"seen": [], "blind": []}
    for at in range(0, len(texts), BATCH):
        part = texts[at : at + BATCH]
        for kind in ("seen", "blind"):
            some = {"images": [[i] for i in images[at : at + BATCH]]} if kind == "seen" else {}
            inputs = processor(
                text=[text[kind] for text in part], **some, padding=True, return_tensors="pt"
            ).to(DEVICE, DTYPE)
            # All prompts have the same number of placeholders, so their lengths need no picture.
            extra = int((inputs["input_ids"][0] == model.config.image_token_index).sum()) - 1
            logits = model(**inputs).logits.float().log_softmax(dim=-1)
            for k, text in enumerate(part):
                prompt = processor.tokenizer(text[f"{kind} prompt"])["input_ids"]
                begin = len(prompt) + (extra if kind == "seen" else 0)
                end = int(inputs["attention_mask"][k].sum())
                ids = inputs["input_ids"][k, begin:end]
                sums[kind].append(
                    float(-logits[k, begin - 1 : end - 1].gather(1, ids[:, None]).sum())
                )
    return [value for pair in zip(sums["seen"], sums["blind"], strict=True) for value in pair]


def ours(folder: str, images: Sequence[Any], captions: Sequence[str]) -> list[float]:
    """Score with consomme's engine, as an actor does."""
    from consomme.curate.perplexity import token_nll
    from consomme.engines.scoring.requests import ScoringRequest
    from consomme.engines.scoring.transformers import TransformersScorer

    scorer = TransformersScorer(folder, token_nll)
    questions = [
        replace(ScoringRequest.of_caption(PROMPT, caption, image), key=id(image))
        for image, caption in zip(images, captions, strict=True)
    ]
    return [value for s in scorer.score(questions) for value in (s.nll, s.nll_text)]


DATA = {"five": "5 captions per picture", "one": "1 caption per picture"}
SUFFIXES = {
    ("wide", "five"): "",
    ("wide", "one"): "_one_caption",
    ("nano", "five"): "_nano",
    ("nano", "one"): "_nano_one_caption",
    ("large", "five"): "",
    ("large", "one"): "_one_caption",
}
CONTESTANTS = {"points": points, "batched": batched, "ours": ours}


def run(name: str, model: str, kind: str, folder: str) -> dict[str, Any]:
    """Time one contestant in this process, without the time of loading the model.

    A short run is subtracted to exclude loading. Memory is the peak of the process, or on a GPU of
    all tensors.
    """
    on_gpu = DEVICE.type == "cuda"
    if not on_gpu:
        torch.set_num_threads(1)
    num = NUM_SLOW.get(model, NUM[model]) if name == "points" else NUM[model]
    images, captions = data(kind, num)
    score = CONTESTANTS[name]
    score(folder, images[:WARM], captions[:WARM])
    sums, times = [], []
    if on_gpu:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    for part in (WARM, len(images)):
        began = time.monotonic()
        sums = score(folder, images[:part], captions[:part])
        times.append(time.monotonic() - began)
    if on_gpu:
        peak_mb = torch.cuda.max_memory_allocated() / 2**20
    else:
        status = Path("/proc/self/status").read_text()
        peak_mb = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024
    return {
        "nats": sum(sums),
        "rate": (len(images) - WARM) / (times[1] - times[0]),
        "peak_mb": peak_mb,
    }


def rows() -> list[dict[str, Any]]:
    """Measure all contestants with both models on both kinds of data."""
    from consomme.storage.model_folder import model_folder

    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folders = {
            "wide": str(random_vlm("wide", Path(scratch) / "wide")),
            "nano": model_folder("package://models/nano"),
        }
        cells = [(model, kind) for model in folders for kind in DATA]
        for _ in range(ROUNDS):
            for model, kind in cells:
                for name in CONTESTANTS:
                    done = subprocess.run(
                        [
                            sys.executable,
                            "-m",
                            "tests.benchmarks.scoring",
                            name,
                            model,
                            kind,
                            folders[model],
                        ],
                        # Engines would use a GPU if they see one.
                        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
                        check=True,
                        stdout=subprocess.PIPE,
                        text=True,
                    )
                    result = json.loads(done.stdout.splitlines()[-1])
                    found.setdefault((model, kind, name), []).append(result)

    return ratios(found, "score.", agreement=1e-4)


def gpu_rows() -> list[dict[str, Any]]:
    """Measure all contestants with the large model, in this process on the GPU."""
    use_gpu()
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = str(random_vlm("large", Path(scratch) / "large"))
        for _ in range(GPU_ROUNDS):
            for kind in DATA:
                for name in CONTESTANTS:
                    result = run(name, "large", kind, folder)
                    found.setdefault(("large", kind, name), []).append(result)
    # The contents of a batch affect bfloat16 rounding, so the tolerance is wider.
    return ratios(found, "score.gpu_", agreement=1e-2)


def ratios(
    found: dict[tuple[str, str, str], list[dict[str, Any]]], prefix: str, *, agreement: float
) -> list[dict[str, Any]]:
    """Return the ratios of our rate to the others', by medians over the rounds.

    The two contestants that do not round probabilities must agree to the relative tolerance
    `agreement`.
    """

    def middle(model: str, kind: str, name: str, what: str) -> float:
        return statistics.median(one[what] for one in found[model, kind, name])

    made = []
    for model, kind in dict.fromkeys((model, kind) for model, kind, _ in found):
        ends = [found[model, kind, name][0]["nats"] for name in ("batched", "ours")]
        assert abs(ends[0] - ends[1]) < agreement * ends[1], ends
        how = f"{model} model, {DATA[kind]}: " + ", ".join(
            f"{name} {middle(model, kind, name, 'rate'):.1f} samples/s,"
            f" {middle(model, kind, name, 'peak_mb'):,.0f} MB"
            for name in CONTESTANTS
        )
        suffix = SUFFIXES[model, kind]
        for key, name, baseline in (
            ("vs_points_script", "points", "one sample at a time, full logits"),
            ("vs_batched_loop", "batched", f"transformers in batches of {BATCH}"),
        ):
            ratio = middle(model, kind, "ours", "rate") / middle(model, kind, name, "rate")
            made.append(
                {
                    "key": prefix + key + suffix,
                    "value": round(ratio, 3),
                    "unit": "ratio",
                    "baseline": baseline,
                    "how": how,
                }
            )
    return made


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(*sys.argv[1:])) + "\n")
