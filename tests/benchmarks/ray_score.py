"""Scoring under Ray against the bare engine: one actor, the same units, without start-up.

    python -m tests.benchmarks.run score

Both sides read, decode and score the same units with one thread, in turn. Both are timed from the
end of their first unit to the end of the last one, which excludes the start of Ray and of the
model.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

ROUNDS = 4
UNITS, ROWS = 9, 256
PROMPT = "describe the image."


GPU_UNITS, GPU_ROWS = 16, 96
ACTORS = (1, 2)


def rate(recipe: Any, num_units: int) -> float:
    """Score under Ray; return samples per second, without each actor's first unit."""
    from consomme.pipelines.score import run as score

    done = score.run(recipe)
    assert done.counts["samples"] == num_units * recipe.unit_rows
    files = Path(done.url, "data").rglob("*.parquet")
    ends = sorted(path.stat().st_mtime for path in files)
    assert len(ends) == num_units, ends
    shutil.rmtree(done.url)
    num_left_out = recipe.actors_per_gpu
    seconds = ends[-1] - ends[num_left_out - 1]
    return float((num_units - num_left_out) * recipe.unit_rows / seconds)


def gpu_rows() -> list[dict[str, Any]]:
    """Score with a model of a billion parameters under Ray: one actor on the GPU, then two."""
    from tests.benchmarks import scoring

    from consomme.execution.session import shared_ray
    from consomme.pipelines.prepare import run as prepare
    from consomme.pipelines.prepare.recipe import PrepareRecipe
    from consomme.pipelines.score.recipe import ScoreRecipe

    scoring.use_gpu()
    with tempfile.TemporaryDirectory() as scratch, shared_ray():
        model = scoring.random_vlm("large", Path(scratch) / "large")
        data = prepare.run(
            PrepareRecipe(
                name="data",
                root=scratch,
                source={"name": "scenes", "num": GPU_UNITS * GPU_ROWS},
                rows_per_shard=GPU_ROWS,
            )
        )
        rates = [
            rate(
                ScoreRecipe(
                    name="scores",
                    root=scratch,
                    inputs=(f"{data.url}/data",),
                    model=str(model),
                    unit_rows=GPU_ROWS,
                    actors_per_gpu=number,
                    min_actors=number,
                ),
                GPU_UNITS,
            )
            for number in ACTORS
        ]
    how = "through Ray, large model, 1 caption per picture: " + ", ".join(
        f"{one:.1f} samples/s with {number}" for number, one in zip(ACTORS, rates, strict=True)
    )
    return [
        {
            "key": "score.gpu_two_actors",
            "value": round(rates[1] / rates[0], 3),
            "unit": "ratio",
            "baseline": "one actor on the GPU",
            "how": how,
        }
    ]


def rows() -> list[dict[str, Any]]:
    """Measure both sides in turn."""
    from consomme.curate.perplexity import token_nll
    from consomme.engines.scoring.requests import ScoringRequest
    from consomme.engines.scoring.transformers import TransformersScorer
    from consomme.execution.session import shared_ray
    from consomme.pipelines.prepare import run as prepare
    from consomme.pipelines.prepare.recipe import PrepareRecipe
    from consomme.pipelines.score.recipe import ScoreRecipe
    from consomme.storage.model_folder import model_folder
    from consomme.storage.units import plan_units, read_unit
    from consomme.vision.decode import decode

    nano = model_folder("package://models/nano")
    scorer = TransformersScorer(nano, token_nll)
    with tempfile.TemporaryDirectory() as scratch, shared_ray():
        data = prepare.run(
            PrepareRecipe(name="data", root=scratch, source={"name": "scenes", "num": UNITS * ROWS})
        )

        rows_after = (UNITS - 1) * ROWS

        def bare() -> float:
            ends = []
            for unit in plan_units([f"{data.url}/data"], "data", ROWS):
                samples = [sample for _, sample in read_unit(unit)[0]]
                scorer.score(
                    [
                        ScoringRequest.of_caption(PROMPT, s.caption, decode(s.images[0].data))
                        for s in samples
                    ]
                )
                ends.append(time.monotonic())
            return ends[-1] - ends[0]

        recipe = ScoreRecipe(
            name="scores",
            root=scratch,
            inputs=(f"{data.url}/data",),
            model=nano,
            unit_rows=ROWS,
            num_actors=1,
        )
        ratios = [bare() * rate(recipe, UNITS) / rows_after for _ in range(ROUNDS)]
    how = (
        f"samples/s, 1 actor, {(UNITS - 1) * ROWS:,} scenes after the first unit; median of"
        f" {ROUNDS} rounds, from {min(ratios):.2f} to {max(ratios):.2f}"
    )
    return [
        {
            "key": "score.ray_over_bare",
            "value": round(statistics.median(ratios), 3),
            "unit": "ratio",
            "baseline": "bare engine",
            "how": how,
        }
    ]
