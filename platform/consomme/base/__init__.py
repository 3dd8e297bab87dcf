"""Shared foundations: errors, schema, registry, recipe, sample, manifest, telemetry.

Nothing here imports torch or ray, so that the command line starts quickly and tests take
milliseconds.
"""
