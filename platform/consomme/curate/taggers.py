"""All taggers that ship with consomme; importing this fills the registry."""

from consomme.curate import tag_judges, tag_objects, tag_pictures, tag_text
from consomme.curate.tagging import TAGGERS

__all__ = ["TAGGERS", "tag_judges", "tag_objects", "tag_pictures", "tag_text"]
