"""Settings and models shared by all tests."""

from pathlib import Path

import pytest
from hypothesis import settings

# The same cases every time and no timing failures: a slow machine is not a bug.
settings.register_profile("consomme", deadline=None, derandomize=True, database=None)
settings.load_profile("consomme")


@pytest.fixture(scope="session")
def debug_vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the debug model; not to be written to."""
    from consomme.models.debug import make_debug_vlm

    return make_debug_vlm(tmp_path_factory.mktemp("debug") / "vlm")
