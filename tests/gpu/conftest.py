"""Shared by the GPU tests; all of them are skipped without a GPU."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all that lies here, and skip it without CUDA."""
    absent = pytest.mark.skip(reason="needs CUDA: there is no GPU here")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(absent)


@pytest.fixture(scope="session")
def gpu_ray() -> Iterator[None]:
    """Let tests of stages share one local Ray, which finds the GPU by itself."""
    from consomme.execution.session import shared_ray

    with shared_ray():
        yield
