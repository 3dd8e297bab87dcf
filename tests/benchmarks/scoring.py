"""Scoring captions: consomme's engine against the script POINTS released and a plain batched loop.

    python tests/benchmarks/scoring.py CONTESTANT MODEL DATA FOLDER     # one process each

All three score the same captions with the same model, with the picture and without, in float32 with
one thread; each runs in a process of its own, three times in turn, so that time and peak of memory
are its own. The models: the nano VLM, whose vocabulary is small, and a model of random weights with
a vocabulary of 50,000 and 196 tokens per picture, where logits weigh what they do in real ones. The
data: pictures with one caption each, and pictures with five, as emoji have names in five languages.
"""

from __future__ import annotations

import json
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

NUM = {"nano": 220, "wide": 45}
"""Captions; multiples of five."""

WARM = 10
ROUNDS = 3
PROMPT = "describe the image."
BATCH = 16


def wide(folder: Path) -> Path:
    """Write a model with a real vocabulary's size, which speaks as the nano VLM does."""
    from consomme.models.weights import open_scorer
    from consomme.pipelines.checkpoints import model_folder

    _, processor = open_scorer(model_folder("package://models/nano"))
    import transformers as hf

    for key, value in (
        ("size", {"shortest_edge": 224}),
        ("crop_size", {"height": 224, "width": 224}),
    ):
        setattr(processor.image_processor, key, value)
    processor.patch_size = 16
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(
            hidden_size=192, intermediate_size=768, num_hidden_layers=6, num_attention_heads=3,
            image_size=224, patch_size=16,
        ),
        text_config=hf.LlamaConfig(
            vocab_size=50_000, hidden_size=384, intermediate_size=1024, num_hidden_layers=8,
            num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=2048,
        ),
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=196,
    )  # fmt: skip
    torch.manual_seed(0)
    hf.LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def data(kind: str, num: int) -> tuple[list[Any], list[str]]:
    """Pictures and captions: `one` caption for each picture, or `five`, neighbours, for each."""
    from consomme.datasets.sources import EmojiSource, SceneSource
    from consomme.vision.decode import decode

    if kind == "one":
        scenes, emoji = SceneSource(num=num // 2)(), EmojiSource(styles=("noto",))()
        samples = [sample for pair in zip(scenes, emoji, strict=False) for sample in pair]
        return [decode(sample.image) for sample in samples], [sample.caption for sample in samples]
    images, captions = [], []
    for sample in EmojiSource(styles=("noto",))():
        image = decode(sample.image)
        names = [sample.caption, *sample.meta["names"].values()]
        images += [image] * len(names)
        captions += names
        if len(captions) >= num:
            break
    return images[:num], captions[:num]


def conversations(folder: str, captions: Sequence[str]) -> tuple[Any, Any, list[dict[str, str]]]:
    """Model, processor, and for each caption its text with picture and without, and where it is."""
    from consomme.base.sample import Turn
    from consomme.models.dialogue import messages
    from consomme.models.weights import open_scorer

    model, processor = open_scorer(folder)
    found = []
    for caption in captions:
        turns = (Turn(role="user", content=PROMPT), Turn(role="assistant", content=caption))
        texts = {}
        for kind, has_image in (("seen", True), ("blind", False)):
            render = processor.apply_chat_template
            texts[kind] = render(messages(turns, has_image=has_image), tokenize=False)
            texts[f"{kind} prompt"] = render(
                messages(turns[:1], has_image=has_image), tokenize=False, add_generation_prompt=True
            )
        found.append(texts)
    return model, processor, found


@torch.inference_mode()
def points(folder: str, images: Sequence[Any], captions: Sequence[str]) -> list[float]:
    """One sample at a time; softmax over all logits, in bfloat16 before the logarithm."""
    model, processor, texts = conversations(folder, captions)
    sums = []
    for image, text in zip(images, texts, strict=True):
        for kind in ("seen", "blind"):
            some = {"images": [[image]]} if kind == "seen" else {}
            prompt = processor(text=[text[f"{kind} prompt"]], **some, return_tensors="pt")
            inputs = processor(text=[text[kind]], **some, return_tensors="pt")
            begin = prompt["input_ids"].shape[1]
            logits = model(**inputs).logits
            chances = torch.softmax(logits[0, begin - 1 : -1].float(), dim=-1)
            ids = inputs["input_ids"][0, begin:]
            taken = chances.gather(1, ids[:, None]).to(torch.bfloat16)
            sums.append(float(-taken.float().log().sum()))
    return sums


@torch.inference_mode()
def batched(folder: str, images: Sequence[Any], captions: Sequence[str]) -> list[float]:
    """Batches of 16 in the order they come, padded; log-softmax over all logits."""
    model, processor, texts = conversations(folder, captions)
    processor.tokenizer.padding_side = "right"
    sums: dict[str, list[float]] = {"seen": [], "blind": []}
    for at in range(0, len(texts), BATCH):
        part = texts[at : at + BATCH]
        for kind in ("seen", "blind"):
            some = {"images": [[i] for i in images[at : at + BATCH]]} if kind == "seen" else {}
            inputs = processor(
                text=[text[kind] for text in part], **some, padding=True, return_tensors="pt"
            )
            # Placeholders are the same in all prompts, so their lengths need no picture.
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
    """Score as an actor does."""
    from consomme.curate.perplexity import token_nll
    from consomme.engines.questions import Question
    from consomme.engines.transformers_scorer import TransformersScorer

    scorer = TransformersScorer(folder, token_nll)
    questions = [
        replace(Question.about(PROMPT, caption, image), key=id(image))
        for image, caption in zip(images, captions, strict=True)
    ]
    return [value for s in scorer.score(questions) for value in (s.nll, s.nll_text)]


DATA = {"five": "5 captions per picture", "one": "1 caption per picture"}
SUFFIXES = {
    ("wide", "five"): "",
    ("wide", "one"): "_one_caption",
    ("nano", "five"): "_nano",
    ("nano", "one"): "_nano_one_caption",
}
CONTESTANTS = {"points": points, "batched": batched, "ours": ours}


def run(name: str, model: str, kind: str, folder: str) -> dict[str, Any]:
    """Time one contestant in this process; loading the model is left out by doing little first."""
    torch.set_num_threads(1)
    images, captions = data(kind, NUM[model])
    score = CONTESTANTS[name]
    score(folder, images[:WARM], captions[:WARM])
    sums, times = [], []
    for part in (WARM, len(images)):
        began = time.monotonic()
        sums = score(folder, images[:part], captions[:part])
        times.append(time.monotonic() - began)
    status = Path("/proc/self/status").read_text()
    return {
        "nats": sum(sums),
        "rate": (len(images) - WARM) / (times[1] - times[0]),
        "peak_mb": int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024,
    }


def rows() -> list[dict[str, Any]]:
    """Measure all with both models, on both kinds of data."""
    from consomme.pipelines.checkpoints import model_folder

    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folders = {
            "wide": str(wide(Path(scratch) / "wide")),
            "nano": model_folder("package://models/nano"),
        }
        cells = [(model, kind) for model in folders for kind in DATA]
        for _ in range(ROUNDS):
            for model, kind in cells:
                for name in CONTESTANTS:
                    done = subprocess.run(
                        [sys.executable, str(Path(__file__)), name, model, kind, folders[model]],
                        check=True,
                        stdout=subprocess.PIPE,
                        text=True,
                    )
                    result = json.loads(done.stdout.splitlines()[-1])
                    found.setdefault((model, kind, name), []).append(result)

    def middle(model: str, kind: str, name: str, what: str) -> float:
        return statistics.median(one[what] for one in found[model, kind, name])

    made = []
    for model, kind in cells:
        # The script of POINTS rounds; the other two have to agree.
        ends = [found[model, kind, name][0]["nats"] for name in ("batched", "ours")]
        assert abs(ends[0] - ends[1]) < 1e-4 * ends[1], ends
        how = f"{model} model, {DATA[kind]}: " + ", ".join(
            f"{name} {middle(model, kind, name, 'rate'):.1f} samples/s,"
            f" {middle(model, kind, name, 'peak_mb'):,.0f} MB"
            for name in CONTESTANTS
        )
        suffix = SUFFIXES[model, kind]
        for key, name, baseline in (
            ("score.vs_points_script", "points", "one sample at a time, full logits"),
            ("score.vs_batched_loop", "batched", f"transformers in batches of {BATCH}"),
        ):
            ratio = middle(model, kind, "ours", "rate") / middle(model, kind, name, "rate")
            made.append(
                {
                    "key": key + suffix,
                    "value": round(ratio, 3),
                    "unit": "ratio",
                    "baseline": baseline,
                    "how": how,
                }
            )
    return made


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(*sys.argv[1:])) + "\n")
