"""VLMs: assembly, loading, chat templates, weights; torch and transformers, as in `engines`."""

from consomme.base.process import kept_for_good
from consomme.models.imports import allow_torchvision

with kept_for_good():
    # Every import of transformers below this package goes through here first.
    allow_torchvision()
    # What all of its models need, and most of the time that it takes.
    import transformers.modeling_utils  # noqa: F401
