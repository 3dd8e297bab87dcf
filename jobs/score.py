r"""Score samples by caption perplexity and image gain.

ray job submit --runtime-env cluster/runtime-env.yaml -- \
    python jobs/score.py recipes/score/points.yaml name=mine
"""

from consomme.cli import main
from consomme.pipelines.score.recipe import ScoreRecipe
from consomme.pipelines.score.run import run

if __name__ == "__main__":
    main(ScoreRecipe, run)
