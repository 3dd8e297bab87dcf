r"""Describe samples in columns: language, main object, class, embedding, verdicts.

ray job submit --runtime-env cluster/runtime-env.yaml -- \
    python jobs/tag.py recipes/tag/text.yaml name=mine
"""

from consomme.cli import main
from consomme.pipelines.tag.recipe import TagRecipe
from consomme.pipelines.tag.run import run

if __name__ == "__main__":
    main(TagRecipe, run)
