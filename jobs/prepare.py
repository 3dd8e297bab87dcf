r"""Write the embedded data sets as shards to work on.

ray job submit --runtime-env cluster/runtime-env.yaml -- \
    python jobs/prepare.py recipes/prepare/noisy_emoji.yaml name=mine
"""

from consomme.cli import main
from consomme.pipelines.prepare.recipe import PrepareRecipe
from consomme.pipelines.prepare.run import run

if __name__ == "__main__":
    main(PrepareRecipe, run)
