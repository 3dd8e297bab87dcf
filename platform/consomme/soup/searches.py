"""All searches for a soup: importing this module fills their registry."""

from consomme.soup import pairs, selections, weights_search
from consomme.soup.search import SEARCHES

__all__ = ["SEARCHES", "pairs", "selections", "weights_search"]
