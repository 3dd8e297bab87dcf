r"""Run a chain of verbs from one recipe: score, filter, recaption, train, evaluate, soup.

ray job submit --runtime-env cluster/runtime-env.yaml -- \
    python jobs/loop.py recipes/quickstart.yaml name=mine
"""

from consomme.cli import main
from consomme.pipelines.loop.recipe import LoopRecipe
from consomme.pipelines.loop.run import run

if __name__ == "__main__":
    main(LoopRecipe, run)
