r"""Measure a model on benchmarks.

ray job submit --runtime-env cluster/runtime-env.yaml -- \
    python jobs/evaluate.py recipes/evaluate/nano.yaml name=mine
"""

from consomme.cli import main
from consomme.pipelines import evaluate

if __name__ == "__main__":
    main(evaluate.EvaluateRecipe, evaluate.run)
