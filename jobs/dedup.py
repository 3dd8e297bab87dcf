r"""Find copies of pictures, exact and near, and write a view of the best of each.

ray job submit --runtime-env cluster/runtime-env.yaml -- \
    python jobs/dedup.py recipes/dedup/near.yaml name=mine
"""

from consomme.cli import main
from consomme.pipelines.dedup.recipe import DedupRecipe
from consomme.pipelines.dedup.run import run

if __name__ == "__main__":
    main(DedupRecipe, run)
