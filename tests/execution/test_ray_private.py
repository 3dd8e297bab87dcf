"""Ray's private names are where consomme looks for them, and nowhere else in its code."""

import importlib
import re
from pathlib import Path

import pytest

import consomme
from consomme.execution.ray_private import NAMES, OVERRIDDEN, ray_private

PACKAGE = Path(consomme.__file__).parent


@pytest.mark.parametrize("name", NAMES)
def test_it_is_there(name: str) -> None:
    assert ray_private(name) is not None


@pytest.mark.parametrize("path", OVERRIDDEN)
def test_overridden_methods_are_there(path: str) -> None:
    module, _, name = path.partition(":")
    for method in OVERRIDDEN[path]:
        assert callable(getattr(getattr(importlib.import_module(module), name), method))


def test_no_other_file_uses_private_names() -> None:
    pattern = re.compile(r"\bray(\.\w+)*\._\w+|from ray(\.\w+)*\._\w+")
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if pattern.search(path.read_text())
    }
    assert found == {"execution/ray_private.py"}
