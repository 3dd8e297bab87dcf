"""Measure a model on benchmarks.

ray job submit --working-dir . -- uv run jobs/evaluate.py recipes/evaluate/nano.yaml name=mine
"""

from consomme.cli import main
from consomme.pipelines import evaluate

if __name__ == "__main__":
    main(evaluate.EvaluateRecipe, evaluate.run)
