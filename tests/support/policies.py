"""How long tests of storage retry."""

from consomme.storage.stores.retries import RetryPolicy

PATIENT = RetryPolicy(base_s=0.001, cap_s=0.01, total_s=120.0)
"""For faults that pass: a machine that stands still for seconds is no storage that is away."""

HASTY = RetryPolicy(base_s=0.001, cap_s=0.01, total_s=4.0)
"""For faults that stay."""
