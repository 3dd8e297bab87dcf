r"""Measure a model on benchmarks.

ray job submit --runtime-env cluster/runtime-env.yaml -- \
    python jobs/evaluate.py recipes/evaluate/nano.yaml name=mine
"""

from consomme.cli import main
from consomme.pipelines.evaluate.recipe import EvaluateRecipe
from consomme.pipelines.evaluate.run import run

if __name__ == "__main__":
    main(EvaluateRecipe, run)
