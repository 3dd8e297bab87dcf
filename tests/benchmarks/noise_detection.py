"""How well scores separate noisy captions from clean ones, for SmolLM2 and for the nano VLM.

    python -m tests.benchmarks.run noise_detection

SmolLM2-135M has no vision encoder: it scores emoji names and scene captions against damaged ones by
fluency. The nano VLM scores every kind of web noise, by perplexity and by image gain.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]
LANGUAGE_SAMPLES = 140
SCENES = 1500
WORDS = {"shuffled": "shuffled ones", "spam": "of shop spam", "file_name": "file names"}


def row(key: str, value: float, baseline: str, how: str) -> Row:
    """Return one figure: an area under the ROC curve."""
    return {"key": key, "value": round(value, 4), "unit": "AUC", "baseline": baseline, "how": how}


def shuffled(text: str, rng: random.Random) -> str:
    """Shuffle the words of a text, or the letters of a single word."""
    words = text.split()
    parts = words if len(words) > 1 else list(text)
    for _ in range(10):
        mixed = rng.sample(parts, len(parts))
        if mixed != parts:
            break
    return (" " if len(words) > 1 else "").join(mixed)


def language_rows() -> list[Row]:
    """Separate captions from shuffled ones, spam and file names by SmolLM2's perplexity."""
    from tests.support import smollm2

    from consomme.curate.keep.noise_metrics import auc_by_kind
    from consomme.curate.perplexity import token_nll
    from consomme.datasets.sources import EmojiSource, SceneSource
    from consomme.datasets.web_noise import add_noise
    from consomme.engines.scoring.requests import Score, ScoringRequest
    from consomme.engines.scoring.transformers import TransformersScorer

    figures = []
    with tempfile.TemporaryDirectory() as scratch:
        scorer = TransformersScorer(smollm2.make(Path(scratch, "smollm2")), token_nll, threads=2)
        for data, source in (
            ("scenes", SceneSource(num=LANGUAGE_SAMPLES)),
            ("emoji", EmojiSource(every=12)),
        ):
            samples = list(source())
            texts = {"": [s.caption for s in samples]}
            rng = random.Random(0)
            texts["shuffled"] = [shuffled(s.caption, rng) for s in samples]
            for kind in ("spam", "file_name"):
                noisy = add_noise(samples, fraction=1.0, seed=0, kinds=(kind,))
                texts[kind] = [s.caption for s in noisy]
            kinds = [kind for kind, some in texts.items() for _ in some]
            requests = [
                ScoringRequest.of_caption("Describe the picture in one sentence.", text)
                for some in texts.values()
                for text in some
            ]
            texts_N = [text for some in texts.values() for text in some]
            scores = scorer.score(requests)
            assert all(isinstance(score, Score) for score in scores), scores
            nats_N = np.array([s.nll / s.num_tokens for s in scores])
            bits_N = np.array(
                [s.nll / np.log(2) / len(t.encode()) for s, t in zip(scores, texts_N, strict=True)]
            )
            aucs = {
                "perplexity": auc_by_kind(nats_N, kinds),
                "bits_per_byte": auc_by_kind(bits_N, kinds),
            }
            middle = {k: float(np.exp(np.median(nats_N[np.array(kinds) == k]))) for k in texts}
            for kind in texts:
                for score, by_kind in aucs.items():
                    if kind:
                        how = (
                            f"SmolLM2-135M, {data}: {len(samples)} captions against as many"
                            f" {WORDS[kind]}; median perplexity {middle['']:.0f} and"
                            f" {middle[kind]:.0f}"
                        )
                        key = f"noise_detection.smollm2.{data}.{kind}.{score}"
                        figures.append(row(key, by_kind[kind], "0.5", how))
    return figures


def nano_rows() -> list[Row]:
    """Separate clean captions from each kind of web noise by the nano VLM's scores."""
    from consomme.curate.keep.noise_metrics import auc_by_kind
    from consomme.curate.perplexity import token_nll
    from consomme.datasets.sources import EmojiSource, SceneSource
    from consomme.datasets.web_noise import KINDS, NEAR_DUPLICATE, add_noise
    from consomme.engines.scoring.requests import Score, ScoringRequest
    from consomme.engines.scoring.transformers import TransformersScorer
    from consomme.storage.model_folder import model_folder
    from consomme.vision.decode import decode

    scorer = TransformersScorer(model_folder("package://models/nano"), token_nll, threads=2)
    kinds_used = [kind for kind in KINDS if kind != NEAR_DUPLICATE]
    figures = []
    sources: Sequence[tuple[str, Any]] = (
        ("scenes", SceneSource(num=SCENES)),
        ("emoji", EmojiSource(styles=("noto",))),
    )
    for data, source in sources:
        noisy = add_noise(list(source()), fraction=0.7, seed=0, kinds=kinds_used)
        results = scorer.score(
            [
                ScoringRequest.of_caption(
                    "describe the image.", s.caption, decode(s.images[0].data)
                )
                for s in noisy
            ]
        )
        pairs = [(s, f) for s, f in zip(noisy, results, strict=True) if isinstance(f, Score)]
        kinds = ["" if s.meta["noise"] == "clean" else str(s.meta["noise"]) for s, _ in pairs]
        perplexity_N = np.array([f.nll / f.num_tokens for _, f in pairs])
        text_N = np.array([f.nll_text / f.num_tokens for _, f in pairs])
        with_image = auc_by_kind(perplexity_N, kinds)
        text_only = auc_by_kind(text_N, kinds)
        gain = auc_by_kind(perplexity_N - text_N, kinds)
        for kind in with_image:
            how = (
                f"nano VLM, {data}: {kinds.count(kind)} captions {kind.replace('_', ' ')} against"
                f" {kinds.count('')} good ones"
            )
            for score, by_kind in (
                ("text_only_perplexity", text_only),
                ("perplexity", with_image),
                ("image_gain", gain),
            ):
                key = f"noise_detection.nano.{data}.{kind}.{score}"
                figures.append(row(key, by_kind[kind], "0.5", how))
    return figures


def rows() -> list[Row]:
    """Measure both models."""
    return [*language_rows(), *nano_rows()]
