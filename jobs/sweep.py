r"""Try values of any keys of a train recipe, and compare the trained models.

ray job submit --runtime-env cluster/runtime-env.yaml -- \
    python jobs/sweep.py recipes/sweep/layers.yaml name=mine
"""

from consomme.cli import main
from consomme.pipelines.sweep.recipe import SweepRecipe
from consomme.pipelines.sweep.run import run

if __name__ == "__main__":
    main(SweepRecipe, run)
