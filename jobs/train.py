r"""Train a model on a view, all of it or chosen layers only.

ray job submit --runtime-env cluster/runtime-env.yaml -- \
    python jobs/train.py recipes/train/full.yaml name=mine
"""

from consomme.cli import main
from consomme.pipelines.train.recipe import TrainRecipe
from consomme.pipelines.train.run import run

if __name__ == "__main__":
    main(TrainRecipe, run)
