"""Evaluation through Ray against vLLM's own offline generation, and two actors against one.

    python -m tests.benchmarks.run evaluate

Both sides use one engine with one thread and the same options, and are timed after it started. The
Ray side is timed from the first moment its queue is filled to the last unit written, including
decoding and commits; bare vLLM from the call to its return, with all images decoded before. Actors
are compared by the time from the first unit of a benchmark to its last one.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

ROUNDS = 3
UNITS, ROWS = 8, 256
ACTOR_UNITS, ACTOR_ROWS = 24, 32
MAX_TOKENS = 64
QUESTION = "describe the image."
NANO = "package://models/nano"


def write_questions(path: Path, num: int) -> str:
    """A file of scenes to be captioned."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from consomme.datasets.scenes import caption, encode, make_scene, render

    scenes = [make_scene(seed) for seed in range(num)]
    rows = [
        {"image": encode(render(scene)), "question": QUESTION, "answer": caption(scene)}
        for scene in scenes
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def evaluated(scratch: str, file: str, number: int, **options: Any) -> Path:
    """Evaluate with an empty cache; returns the run folder."""
    from consomme.pipelines.evaluate import run as evaluate
    from consomme.pipelines.evaluate.recipe import EvaluateRecipe

    benchmark = {"name": "open", "file": file, "prompt": "{question}", "max_tokens": MAX_TOKENS}
    done = evaluate.run(
        EvaluateRecipe(
            name="answers",
            root=f"{scratch}/runs-{number}",
            models={"nano": NANO},
            benchmarks=(benchmark,),
            **options,
        )
    )
    assert done.counts["samples"] == done.metrics["evaluate/nano/questions/num_questions"]
    return Path(done.url)


def unit_times(run: Path) -> list[float]:
    """When each unit was written."""
    return sorted(path.stat().st_mtime for path in (run / "data").rglob("*.parquet"))


def rows(units: int = UNITS, rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """Measure both sides in turn."""
    from consomme.execution.session import shared_ray

    with tempfile.TemporaryDirectory() as scratch, shared_ray():
        file = write_questions(Path(scratch, "questions.parquet"), units * ROWS)
        ratios = []
        for number in range(rounds):
            through = through_ray(scratch, file, number)
            ratios.append(bare(file) / through)
        speedups = [two_actors(scratch, 1000 + 10 * number) for number in range(rounds)]
    return [
        {
            "key": "evaluate.ray_over_vllm",
            "value": round(statistics.median(ratios), 3),
            "unit": "ratio",
            "baseline": "vllm LLM.generate on all requests at once",
            "how": f"requests/s, 1 engine, {units * ROWS:,} scenes in {units} units; median of"
            f" {rounds} rounds, from {min(ratios):.2f} to {max(ratios):.2f}",
        },
        {
            "key": "evaluate.two_actors",
            "value": round(statistics.median(speedups), 2),
            "unit": "times",
            "baseline": "one actor",
            "how": f"requests/s of two actors on one benchmark of {ACTOR_UNITS * ACTOR_ROWS:,}"
            f" scenes in {ACTOR_UNITS} units, transformers in float32, one thread each; median of"
            f" {rounds} rounds, from {min(speedups):.2f} to {max(speedups):.2f}",
        },
    ]


def through_ray(scratch: str, file: str, number: int) -> float:
    """Seconds from the first request to the last unit."""
    run = evaluated(
        scratch, file, number, unit_items=ROWS, engine={"name": "vllm", "dtype": "float32"}
    )
    gauges = json.loads((run / "gauges.json").read_text())
    busy = [when for when, running in gauges["series"]["running"] if running]
    return unit_times(run)[-1] - gauges["began"] - min(busy)


def bare(file: str) -> float:
    """Seconds of vLLM alone, for the same requests."""
    import vllm

    from consomme.base.sample import place_images
    from consomme.engines.vllm_engine import EngineOptions, close_engine, open_engine
    from consomme.evaluate.benchmarks import BENCHMARKS
    from consomme.models.chat import ChatEncoder
    from consomme.models.weights import open_processor
    from consomme.storage.model_folder import model_folder

    nano = model_folder(NANO)
    items = BENCHMARKS.build({"name": "open", "file": file, "prompt": "{question}"}).items()
    ids = ChatEncoder(*open_processor(nano)).unexpanded_prompt_ids(
        place_images(items[0].turns, len(items[0].images))
    )
    requests = [
        {"prompt_token_ids": ids, "multi_modal_data": {"image": item.images[0]}} for item in items
    ]
    opened = open_engine(nano, EngineOptions(dtype="float32"))
    params = vllm.SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0)
    opened.llm.generate(requests[:8], params, use_tqdm=False)
    began = time.monotonic()
    found = opened.llm.generate(requests, params, use_tqdm=False)
    seconds = time.monotonic() - began
    assert len(found) == len(items)
    close_engine(opened.llm)
    return seconds


def two_actors(scratch: str, number: int) -> float:
    """Times as many requests per second with two actors as with one."""
    file = write_questions(Path(scratch, "questions.parquet"), ACTOR_UNITS * ACTOR_ROWS)
    rates = []
    for actors in (1, 2):
        run = evaluated(
            scratch,
            file,
            number + actors,
            unit_items=ACTOR_ROWS,
            num_actors=actors,
            min_actors=actors,
        )
        # From the moment that each actor has done something.
        times = unit_times(run)[2:]
        rates.append((len(times) - 1) / (times[-1] - times[0]))
    return rates[1] / rates[0]
