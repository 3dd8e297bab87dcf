"""Average fine-tuned models, choosing what goes in.

ray job submit --working-dir . -- uv run jobs/soup.py recipes/soup/greedy.yaml name=mine
"""

from consomme.cli import main
from consomme.pipelines import soup

if __name__ == "__main__":
    main(soup.SoupRecipe, soup.run)
