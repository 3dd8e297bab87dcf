r"""Assemble a VLM from a vision encoder, a connector and a language model.

ray job submit --runtime-env cluster/runtime-env.yaml -- \
    python jobs/assemble.py recipes/assemble/nano.yaml name=mine
"""

from consomme.cli import main
from consomme.pipelines.assemble.recipe import AssembleRecipe
from consomme.pipelines.assemble.run import run

if __name__ == "__main__":
    main(AssembleRecipe, run)
