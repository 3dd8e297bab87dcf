"""All taggers that ship with consomme; importing this fills the registry."""

from consomme.curate.tag import judges, objects, pictures, text
from consomme.curate.tag.tagger import TAGGERS

__all__ = ["TAGGERS", "judges", "objects", "pictures", "text"]
