"""Recaptioning through Ray against vLLM's own offline generation, on the same requests.

    python -m tests.benchmarks.run recaption

Both sides use one engine with one thread and the same options, and are timed after it started. The
Ray side is timed from the first moment its queue is filled to the last unit written, including
reading, decoding, guards and commits; bare vLLM from the call to its return, with all pictures
decoded before.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

ROUNDS = 3
UNITS, ROWS = 8, 256
MAX_TOKENS = 64
PROMPT = "plain"


def rows() -> list[dict[str, Any]]:
    """Measure both sides in turn."""
    from consomme.base.sample import Turn, place_images
    from consomme.curate.caption.prompts import resolve_prompts
    from consomme.engines.vllm_engine import EngineOptions, close_engine, open_engine
    from consomme.execution.session import shared_ray
    from consomme.models.chat import ChatEncoder
    from consomme.models.weights import open_processor
    from consomme.pipelines.prepare import run as prepare
    from consomme.pipelines.prepare.recipe import PrepareRecipe
    from consomme.pipelines.recaption import run as recaption
    from consomme.pipelines.recaption.recipe import RecaptionRecipe
    from consomme.storage.model_folder import model_folder
    from consomme.storage.units import plan_units, read_unit
    from consomme.vision.decode import decode

    nano = model_folder("package://models/nano")
    with tempfile.TemporaryDirectory() as scratch, shared_ray():
        data = prepare.run(
            PrepareRecipe(name="data", root=scratch, source={"name": "scenes", "num": UNITS * ROWS})
        )
        units = plan_units([f"{data.url}/data"], "data", ROWS)
        pictures = [
            decode(sample.images[0].data) for unit in units for _, sample in read_unit(unit)[0]
        ]
        (prompt,) = resolve_prompts([PROMPT])
        ids = ChatEncoder(*open_processor(nano)).unexpanded_prompt_ids(
            place_images((Turn(role="user", content=prompt.text),), 1)
        )
        requests = [
            {"prompt_token_ids": ids, "multi_modal_data": {"image": picture}}
            for picture in pictures
        ]

        def through_ray() -> float:
            done = recaption.run(
                RecaptionRecipe(
                    name="captions",
                    root=scratch,
                    inputs=(f"{data.url}/data",),
                    model=nano,
                    unit_rows=ROWS,
                    max_tokens=MAX_TOKENS,
                    canary_fraction=0.0,
                )
            )
            assert done.counts["samples"] == UNITS * ROWS
            files = Path(done.url, "data").rglob("*.parquet")
            ended = max(path.stat().st_mtime for path in files)
            gauges = json.loads(Path(done.url, "gauges.json").read_text())
            busy = [when for when, number in gauges["series"]["running"] if number]
            shutil.rmtree(done.url)
            return ended - gauges["began"] - min(busy)

        def bare() -> float:
            import vllm

            opened = open_engine(nano, EngineOptions())
            params = vllm.SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0)
            opened.llm.generate(requests[:8], params, use_tqdm=False)
            began = time.monotonic()
            found = opened.llm.generate(requests, params, use_tqdm=False)
            seconds = time.monotonic() - began
            assert len(found) == UNITS * ROWS
            close_engine(opened.llm)
            return seconds

        ratios = [bare() / through_ray() for _ in range(ROUNDS)]
    how = (
        f"requests/s, 1 engine, {UNITS * ROWS:,} scenes in {UNITS} units; median of {ROUNDS}"
        f" rounds, from {min(ratios):.2f} to {max(ratios):.2f}"
    )
    return [
        {
            "key": "recaption.ray_over_vllm",
            "value": round(statistics.median(ratios), 3),
            "unit": "ratio",
            "baseline": "vllm LLM.generate on all requests at once",
            "how": how,
        }
    ]
