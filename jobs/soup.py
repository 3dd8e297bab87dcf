r"""Average fine-tuned models, choosing what goes in.

ray job submit --runtime-env cluster/runtime-env.yaml -- \
    python jobs/soup.py recipes/soup/greedy.yaml name=mine
"""

from consomme.cli import main
from consomme.pipelines import soup

if __name__ == "__main__":
    main(soup.SoupRecipe, soup.run)
