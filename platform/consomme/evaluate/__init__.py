"""Evaluation of models: benchmarks, metrics with intervals, and a cache of results."""
