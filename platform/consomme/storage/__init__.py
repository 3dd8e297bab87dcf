"""Storage: stores, file formats, units, sidecars, views and the ledger of a run.

Readers turn shards into samples and rejects, writers turn samples into shards, and the ledger makes
each unit of output visible exactly once. Nothing here imports torch or ray.
"""
