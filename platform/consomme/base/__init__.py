"""Contracts every other part builds on: errors, registry, recipe, sample, manifest, telemetry.

Nothing here imports torch or ray, so that the command line starts quickly and a test of a
contract costs milliseconds.
"""
