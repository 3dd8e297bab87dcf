"""The registry with every tagger of consomme imported."""

from consomme.curate.tag import image_models, judges, layout, objects, pictures, text
from consomme.curate.tag.tagger import TAGGERS

__all__ = ["TAGGERS", "image_models", "judges", "layout", "objects", "pictures", "text"]
