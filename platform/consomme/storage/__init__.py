"""One way to open anything, and the formats and records kept there.

Readers turn shards into samples and rejects, writers turn samples into shards, the ledger makes a
run's output appear exactly once. Nothing here imports torch or ray.
"""
