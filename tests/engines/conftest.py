"""A model of every family, each made once for all tests of engines."""

from functools import cache
from typing import Any

import pytest
from tests.support.families import make


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("families")
    return cache(lambda name: make(name, root / name))
