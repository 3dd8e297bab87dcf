r"""Train a model on a view, all of it or chosen layers only.

ray job submit --runtime-env cluster/runtime-env.yaml -- \
    python jobs/train.py recipes/train/full.yaml name=mine
"""

from consomme.cli import main
from consomme.pipelines import train

if __name__ == "__main__":
    main(train.TrainRecipe, train.run)
