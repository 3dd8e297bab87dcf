"""VLMs: assembly, loading, chat templates, weights; torch and transformers, as in `engines`."""

from consomme.models.torchvision_shim import allow_torchvision

# Every import of transformers below this package goes through here first.
allow_torchvision()
