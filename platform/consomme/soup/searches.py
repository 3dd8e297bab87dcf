"""All searches for a soup: importing this module fills their registry."""

from consomme.soup import selections, weights_search
from consomme.soup.search import SEARCHES

__all__ = ["SEARCHES", "selections", "weights_search"]
