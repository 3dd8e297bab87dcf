"""A run to be killed while it waits for one task, in Ray's own code.

python waiting.py RECIPE
"""

import time
from dataclasses import dataclass

from consomme.base.manifest import Manifest
from consomme.base.schema import runtime
from consomme.cli import main
from consomme.execution.runs import Run
from consomme.execution.session import ray_session


@dataclass(frozen=True, kw_only=True)
class WaitingRecipe:
    """Nothing to do."""

    name: str = "waiting"
    root: str = runtime("runs")


def run(recipe: WaitingRecipe) -> Manifest:
    return Run.open("waiting", recipe, None).once(_wait)


def _wait(run: Run[None]) -> Manifest:
    with ray_session():
        import ray

        ray.get(ray.remote(num_cpus=0.1)(asleep).remote())
    return run.finish()


def asleep() -> None:
    time.sleep(300)


if __name__ == "__main__":
    main(WaitingRecipe, run)
