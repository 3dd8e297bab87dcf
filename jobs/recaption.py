r"""Write new captions for the samples of a view.

ray job submit --runtime-env cluster/runtime-env.yaml -- \
    python jobs/recaption.py recipes/recaption/plain.yaml name=mine
"""

from consomme.cli import main
from consomme.pipelines.recaption.recipe import RecaptionRecipe
from consomme.pipelines.recaption.run import run

if __name__ == "__main__":
    main(RecaptionRecipe, run)
