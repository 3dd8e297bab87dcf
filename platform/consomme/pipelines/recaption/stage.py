"""The stage of `recaption`: request texts, apply guards, merge, and record the provenance.

Every random choice about a sample (whether it is recaptioned, its prompt, its seed, whether it is a
canary) is derived from its id. So the requests do not depend on how a run is cut into units or
resumed.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from consomme.base.sample import Sample, Turn, turn_to_json
from consomme.datasets.truth import CAPTION_TRUTHS, CaptionTruth
from consomme.execution.stage import DecodedSample, Gauge, Outcome, UnitStage, reject_of
from consomme.storage.captions import CAPTION_BEFORE
from consomme.storage.model_folder import model_folder

if TYPE_CHECKING:
    from consomme.curate.caption.prompts import CaptionPrompt
    from consomme.engines.generation.requests import (
        Generation,
        GenerationFailure,
        QueueLoad,
        Request,
    )
    from consomme.pipelines.recaption.recipe import RecaptionRecipe
    from consomme.storage.ledger.run_folder import RunFolder

# Shapes: N samples.

_CHOICE, _PROMPT, _SEED = 101, 102, 103
"""Offsets of the recipe's seed, which make these choices independent of each other."""

TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
QUEUE_INTERVAL_S = 0.5


class CaptionStage(UnitStage):
    """Generate one text per sample; starts one engine per actor."""

    is_shared = True

    def __init__(
        self,
        recipe: RecaptionRecipe,
        model: str,
        model_hash: str,
        *,
        folder: RunFolder | None = None,
    ) -> None:
        """Start the engine.

        Args:
            recipe: Of the run.
            model: Folder of the model on this machine, or its name on a server.
            model_hash: Of its content, adapter included.
            folder: Of the run; the first actor writes the result of its self-check there.
        """
        from consomme.curate.caption.merges import MERGES
        from consomme.engines.generation.registry import GENERATION_ENGINES
        from consomme.pipelines.recaption.recipe import sampling_of

        self.recipe, self.model_hash = recipe, model_hash
        self.merge = MERGES.build(recipe.merge, "merge")
        self.guards = recipe.guards
        self.truth = CAPTION_TRUTHS.build(recipe.truth, "truth")
        open_engine = GENERATION_ENGINES.build(recipe.engine, "engine")
        path = model if open_engine.is_remote else model_folder(model)
        self.engine = open_engine(
            path, sampling_of(recipe), model_hash=model_hash, template=recipe.template
        )
        if folder is not None:
            folder.keep_self_check(self.engine)
        self.queue = QueueMonitor(self.engine.queue_load)

    def gauges(self) -> list[Gauge]:
        """Lengths of the engine's queue since the last call."""
        return self.queue.take()

    def work(self, samples: Sequence[DecodedSample]) -> Outcome:
        """Recaption samples of one unit."""
        from consomme.base.hashing import hash_ids, mix_hash
        from consomme.curate.caption.canary import choose_canaries, choose_partners
        from consomme.curate.caption.prompts import sample_prompts
        from consomme.engines.generation.requests import GenerationFailure

        if not samples:
            return self._outcome([], [], [], {}, [])
        recipe = self.recipe
        hash_N = hash_ids([item.sample.sample_id for item in samples])
        share_N = mix_hash(hash_N, recipe.seed + _CHOICE) / 2.0**64
        seeds = [int(value) % 2**31 for value in mix_hash(hash_N, recipe.seed + _SEED)]
        requested = [n for n in range(len(samples)) if share_N[n] < recipe.fraction]
        prompts = sample_prompts(recipe.prompts, hash_N, recipe.seed + _PROMPT)
        canaries: list[int] = []
        if recipe.shows_picture and recipe.canary_fraction:
            among_N = choose_canaries(hash_N, recipe.canary_fraction, recipe.seed)
            canaries = [n for n in requested if among_N[n]]
        partners = choose_partners(hash_N, canaries, _image_hashes(samples))
        requests = [self._request(samples[n], prompts[n], seeds[n]) for n in requested]
        for n in canaries:
            requests.append(
                self._request(samples[n], prompts[n], seeds[n], blank(samples[n].images))
            )
        for n, other in partners.items():
            requests.append(self._request(samples[n], prompts[n], seeds[n], samples[other].images))
        answers = iter(self.engine.generate(requests))
        generations: dict[int, Generation | GenerationFailure] = {
            n: next(answers) for n in requested
        }
        canary_texts = {"blank": {n: _text_of(next(answers)) for n in canaries}}
        canary_texts["swap"] = {n: _text_of(next(answers)) for n in partners}
        rejects = [
            (samples[n].row, reject_of(samples[n].sample, answer.reason, answer.detail))
            for n, answer in generations.items()
            if isinstance(answer, GenerationFailure)
        ]
        kept = [
            n for n in range(len(samples)) if not isinstance(generations.get(n), GenerationFailure)
        ]
        rows = []
        for n in kept:
            answer = generations.get(n)
            assert not isinstance(answer, GenerationFailure)
            row = self._row(samples[n], prompts[n], seeds[n], answer)
            rows.append(
                row | {f"canary_{kind}": texts.get(n) for kind, texts in canary_texts.items()}
            )
        return self._outcome([samples[n] for n in kept], rows, rejects, canary_texts, kept)

    def _request(
        self,
        item: DecodedSample,
        prompt: CaptionPrompt,
        seed: int,
        images: tuple[Image.Image, ...] | None = None,
    ) -> Request:
        from consomme.engines.generation.requests import Request

        caption = _caption_of(item.sample.turns)
        before = str(item.sample.meta.get(CAPTION_BEFORE, caption))
        text = prompt.fill(original=before, written=caption)
        return Request(
            turns=(Turn(role="user", content=text),),
            images=(images or item.images) if self.recipe.shows_picture else (),
            seed=seed,
            pattern=prompt.pattern or None,
        )

    def _row(
        self, item: DecodedSample, prompt: CaptionPrompt, seed: int, answer: Generation | None
    ) -> dict[str, Any]:
        """Return the columns of one sample; `answer` is None if it was not recaptioned."""
        sample = item.sample
        text = answer.text.strip() if answer else None
        before = _caption_of(sample.turns)
        guard = None
        if answer and text is not None:
            guard = self.guards(text, answer.finish_reason, prompt=prompt.text, original=before)
        is_new = answer is not None and guard is None
        turns = sample.turns
        if is_new and text is not None:
            turns = self.merge(
                turns,
                text,
                prompt=prompt.text,
                question_for_caption=self.recipe.caption_question,
            )
        return {
            "row": item.row,
            "sample_id": sample.sample_id,
            "turns": [turn_to_json(turn) for turn in turns],
            "caption": _caption_of(turns),
            "written": text,
            "parent_caption": before,
            "guard": guard,
            "is_new": is_new,
            "num_tokens": answer.num_tokens if answer else 0,
            "prompt_id": prompt.prompt_id if answer else None,
            "prompt_hash": prompt.text_hash if answer else None,
            "seed": seed if answer else None,
        }

    def _outcome(
        self,
        samples: Sequence[DecodedSample],
        rows: Sequence[dict[str, Any]],
        rejects: list[Any],
        canary_texts: dict[str, dict[int, str | None]],
        numbers: Sequence[int],
    ) -> Outcome:
        recipe, size = self.recipe, len(rows)
        columns = {name: pa.array([row[name] for row in rows], kind) for name, kind in OWN.items()}
        columns |= {
            "round": pa.array([recipe.round] * size, pa.int32()),
            "model_hash": pa.array([self.model_hash] * size, pa.string()),
            "merge": pa.array([recipe.merge["name"]] * size, pa.string()),
            "temperature": pa.array([recipe.temperature] * size, pa.float32()),
            "top_p": pa.array([recipe.top_p] * size, pa.float32()),
            "max_tokens": pa.array([recipe.max_tokens] * size, pa.int32()),
            "engine": pa.array([self.engine.version] * size, pa.string()),
        }
        flagged = [row["guard"] for row in rows if row["guard"]]
        counts = {f"guard/{reason}": flagged.count(reason) for reason in sorted(set(flagged))}
        requested = [
            (item.sample, row)
            for item, row in zip(samples, rows, strict=True)
            if row["written"] is not None
        ]
        counts |= {"asked": len(requested), "new": sum(row["is_new"] for row in rows)}
        # Of the current caption, which is the old one if a guard flagged the new one.
        words = [len(row["caption"].split()) for _, row in requested]
        sums = {
            "num_tokens": float(sum(row["num_tokens"] for row in rows)),
            "words": float(sum(words)),
            "words_squared": float(sum(number**2 for number in words)),
            "words_before": float(sum(len(row["parent_caption"].split()) for _, row in requested)),
            **_claims(requested, self.truth),
            **_canary_sums(rows, canary_texts, numbers),
        }
        return Outcome(table=pa.table(columns), rejects=rejects, counts=counts, sums=sums)


OWN: dict[str, pa.DataType] = {
    "row": pa.int32(),
    "sample_id": pa.string(),
    "turns": TURNS,
    "caption": pa.string(),
    "written": pa.string(),
    "parent_caption": pa.string(),
    "guard": pa.string(),
    "is_new": pa.bool_(),
    "num_tokens": pa.int32(),
    "prompt_id": pa.string(),
    "prompt_hash": pa.string(),
    "seed": pa.int64(),
    "canary_blank": pa.string(),
    "canary_swap": pa.string(),
}
"""Columns with a value per sample."""


class QueueMonitor:
    """Samples the length of an engine's queue, in a thread."""

    def __init__(self, load: Callable[[], QueueLoad], interval_s: float = QUEUE_INTERVAL_S) -> None:
        self._load, self._interval_s = load, interval_s
        self._seen: list[Gauge] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._sample, name="queue", daemon=True).start()

    def _sample(self) -> None:
        while True:
            time.sleep(self._interval_s)
            load, now = self._load(), time.time()
            with self._lock:
                self._seen += [(now, "running", load.running), (now, "waiting", load.waiting)]

    def take(self) -> list[Gauge]:
        """Return the measurements since the last call."""
        with self._lock:
            seen, self._seen = self._seen, []
        return seen


def _image_hashes(samples: Sequence[DecodedSample]) -> NDArray[np.uint64]:
    """Hash the images, so that a canary is not shown its own image under another id."""
    digests = []
    for item in samples:
        digest = blake2b(digest_size=8)
        for image in item.sample.images:
            digest.update(image.data)
        digests.append(digest.digest())
    return np.frombuffer(b"".join(digests), np.uint64)


def blank(images: Sequence[Image.Image]) -> tuple[Image.Image, ...]:
    """Return grey images of the same sizes."""
    return tuple(Image.new("RGB", image.size, (127, 127, 127)) for image in images)


def _caption_of(turns: Sequence[Turn]) -> str:
    """Return the caption: the first assistant turn."""
    return next((turn.text for turn in turns if turn.role == "assistant"), "")


def _text_of(answer: Generation | GenerationFailure) -> str | None:
    from consomme.engines.generation.requests import Generation

    return answer.text.strip() if isinstance(answer, Generation) else None


def _canary_sums(
    rows: Sequence[dict[str, Any]],
    canary_texts: dict[str, dict[int, str | None]],
    numbers: Sequence[int],
) -> dict[str, float]:
    """Count the canaries, and those with the same text for another image."""
    from consomme.curate.caption.canary import same_caption

    texts = dict(zip(numbers, (row["written"] for row in rows), strict=True))
    sums: dict[str, float] = {}
    for kind, seen in canary_texts.items():
        pairs = [(texts[n], text) for n, text in seen.items() if n in texts and text is not None]
        sums[f"canary_{kind}"] = float(len(pairs))
        sums[f"canary_{kind}_same"] = float(sum(same_caption(first, text) for first, text in pairs))
    return sums


def _claims(
    requested: Sequence[tuple[Sample, dict[str, Any]]], truth: CaptionTruth
) -> dict[str, float]:
    """Sum true, false and missing claims before and after, where the truth is known."""
    sums: dict[str, float] = {}
    for sample, row in requested:
        before = truth(sample, row["parent_caption"])
        after = truth(sample, row["caption"])
        if before is None or after is None:
            continue
        sums["judged"] = sums.get("judged", 0.0) + 1
        for when, verdict in (("before", before), ("after", after)):
            for what, number in zip(("true", "false", "missing"), verdict, strict=True):
                sums[f"{when}_{what}"] = math.fsum((sums.get(f"{when}_{what}", 0.0), number))
    return sums
