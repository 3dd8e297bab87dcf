"""Hyperparameter sweeps: search spaces, searchers, and early stopping."""
