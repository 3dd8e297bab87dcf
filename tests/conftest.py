"""Settings shared by all tests."""

from hypothesis import settings

# The same cases every time and no timing failures: a slow machine is not a bug.
settings.register_profile("consomme", deadline=None, derandomize=True, database=None)
settings.load_profile("consomme")
