r"""Write the embedded data sets as shards to work on.

ray job submit --runtime-env cluster/runtime-env.yaml -- \
    python jobs/prepare.py recipes/prepare/noisy_emoji.yaml name=mine
"""

from consomme.cli import main
from consomme.pipelines import prepare

if __name__ == "__main__":
    main(prepare.PrepareRecipe, prepare.run)
