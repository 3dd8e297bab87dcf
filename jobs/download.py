r"""Fetch the pictures of URL lists and write shards.

ray job submit --runtime-env cluster/runtime-env.yaml -- \
    python jobs/download.py recipes/download/urls.yaml name=mine
"""

from consomme.cli import main
from consomme.pipelines.download.recipe import DownloadRecipe
from consomme.pipelines.download.run import run

if __name__ == "__main__":
    main(DownloadRecipe, run)
