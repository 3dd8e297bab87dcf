r"""Decide which samples stay, and write a view of them.

ray job submit --runtime-env cluster/runtime-env.yaml -- \
    python jobs/filter.py recipes/filter/points.yaml name=mine
"""

from consomme.cli import main
from consomme.pipelines import filter

if __name__ == "__main__":
    main(filter.FilterRecipe, filter.run)
