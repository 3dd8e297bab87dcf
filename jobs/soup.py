r"""Average fine-tuned models, choosing what goes in.

ray job submit --runtime-env cluster/runtime-env.yaml -- \
    python jobs/soup.py recipes/soup/greedy.yaml name=mine
"""

from consomme.cli import main
from consomme.pipelines.soup.recipe import SoupRecipe
from consomme.pipelines.soup.run import run

if __name__ == "__main__":
    main(SoupRecipe, run)
