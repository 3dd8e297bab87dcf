"""Prepare the process before our classes import transformers, whoever imports them first.

They are named in checkpoints of Ray and in pickles, so a worker may import them before anything has
called `import_transformers`.
"""

from consomme.models.media_packages import patch_media_packages

patch_media_packages()
