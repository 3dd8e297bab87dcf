r"""Decide which samples stay, and write a view of them.

ray job submit --runtime-env cluster/runtime-env.yaml -- \
    python jobs/filter.py recipes/filter/points.yaml name=mine
"""

from consomme.cli import main
from consomme.pipelines.filter.recipe import FilterRecipe
from consomme.pipelines.filter.run import run

if __name__ == "__main__":
    main(FilterRecipe, run)
