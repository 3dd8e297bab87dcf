r"""Score samples by caption perplexity and image gain.

ray job submit --runtime-env cluster/runtime-env.yaml -- \
    python jobs/score.py recipes/score/points.yaml name=mine
"""

from consomme.cli import main
from consomme.pipelines import score

if __name__ == "__main__":
    main(score.ScoreRecipe, score.run)
