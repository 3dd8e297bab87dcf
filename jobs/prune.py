r"""Remove layers of a language model that matter least.

ray job submit --runtime-env cluster/runtime-env.yaml -- \
    python jobs/prune.py recipes/prune/nano.yaml name=mine
"""

from consomme.cli import main
from consomme.pipelines.prune.recipe import PruneRecipe
from consomme.pipelines.prune.run import run

if __name__ == "__main__":
    main(PruneRecipe, run)
