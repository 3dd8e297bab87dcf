"""Engines that score texts given pictures, with prefixes that requests share computed once."""
