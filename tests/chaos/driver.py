"""A run to be killed: read, decode and hash pictures on a real Ray, commit unit by unit.

    python driver.py ROOT INPUTS [key=value …]

It is a pipeline like any other verb's, with a stage that needs no model, so that hundreds of starts
fit into an hour. Exit codes are the command line's.
"""

import hashlib
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from consomme.base.manifest import Manifest
from consomme.base.schema import runtime
from consomme.cli import main
from consomme.execution.driver import run_job
from consomme.execution.job import ActorPool, Job
from consomme.execution.planning import plan_shards
from consomme.execution.runs import Run
from consomme.execution.session import ray_session
from consomme.execution.stage import DecodedSample, Outcome, UnitStage
from consomme.storage.shards import Shard, find_shards, shards_fingerprint


@dataclass(frozen=True, kw_only=True)
class PixelsRecipe:
    """Hashes of the pixels of every sample."""

    name: str = "pixels"
    root: str = runtime("runs")
    inputs: tuple[str, ...] = ()
    unit_rows: int = 8
    unit_seconds: float = runtime(0.0)
    """Extra time per unit, so that there are moments to be killed at."""

    killers: tuple[str, ...] = ()
    """Samples whose pictures end the process, as a bug in a decoder would."""

    num_actors: int = runtime(2)
    num_readers: int = runtime(0)


class PixelStage(UnitStage):
    """Hash the pixels."""

    def __init__(self, unit_seconds: float, killers: Sequence[str]) -> None:
        self.unit_seconds, self.killers = unit_seconds, set(killers)

    def work(self, samples: Sequence[DecodedSample]) -> Outcome:
        time.sleep(self.unit_seconds)
        if any(item.sample.sample_id in self.killers for item in samples):
            os.kill(os.getpid(), signal.SIGSEGV)
            time.sleep(60)
        return Outcome(
            table=pa.table(
                {
                    "row": pa.array([item.row for item in samples], pa.int32()),
                    "sample_id": pa.array([item.sample.sample_id for item in samples], pa.string()),
                    "caption": pa.array([item.sample.caption for item in samples], pa.string()),
                    "pixels": pa.array(
                        [hashlib.sha256(item.images[0].tobytes()).hexdigest() for item in samples],
                        pa.string(),
                    ),
                }
            ),
            sums={"pixels": sum(item.images[0].width * item.images[0].height for item in samples)},
        )


def run(recipe: PixelsRecipe) -> Manifest:
    shards = find_shards(recipe.inputs)
    inputs = {"data": shards_fingerprint(shards)}
    return Run.open("pixels", recipe, shards, inputs=inputs).once(_pixels)


def _pixels(run: Run[Sequence[Shard]]) -> Manifest:
    recipe = run.recipe
    with ray_session():
        job = Job(
            name="pixels",
            plan=plan_shards(run.folder, run.resolved, recipe.unit_rows),
            folder=run.folder,
            kind="pixels",
            stage=partial(PixelStage, recipe.unit_seconds, list(recipe.killers)),
            pool=ActorPool(max_actors=recipe.num_actors, cpus=0.3, num_readers=recipe.num_readers),
        )
        run_job(job)
    return run.finish(counts=run.folder.total_counts(), outputs={"pixels": "data"})


if __name__ == "__main__":
    main(PixelsRecipe, run)
