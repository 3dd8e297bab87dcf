"""Sweeps: which recipes to try, in which order, and when to give one up."""
