"""Settings and models shared by all tests."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

# Tests run beside each other, and two threads that wait for each other on a busy core take ten
# times as long as one. Commands that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if TYPE_CHECKING:
    from tests.support.s3_server import S3Server

# The same cases every time and no timing failures: a slow machine is not a bug.
pytest_plugins = ["tests.support.runs"]

settings.register_profile("consomme", deadline=None, derandomize=True, database=None)
settings.load_profile("consomme")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import files without tests on Ray, where nothing else is asked for."""
    asked = str(config.getoption("markexpr"))
    is_unasked = (
        asked.startswith("ray")
        and " or " not in asked
        and collection_path.name.startswith("test_")
        and "mark.ray" not in collection_path.read_text()
    )
    return is_unasked or None


@pytest.fixture(autouse=True)
def _no_word_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget whether the hub may be asked, which preparing for vLLM keeps for the whole process."""
    monkeypatch.delenv("CONSOMME_HUB_OFFLINE", raising=False)


@pytest.fixture(scope="session")
def debug_vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the debug model; not to be written to."""
    from consomme.models.debug import make_debug_vlm

    return make_debug_vlm(tmp_path_factory.mktemp("debug") / "vlm")


@pytest.fixture(scope="session")
def lent_ray(s3_server: "S3Server") -> Iterator[None]:
    """Let all tests of this process share one local Ray, and end it with them.

    Its workers have the credentials of the S3 server, as those of a cluster have.
    """
    from consomme.execution.session import shared_ray

    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.env().items():
            patch.setenv(name, value)
        with shared_ray():
            yield


@pytest.fixture
def one_ray(lent_ray: None) -> Iterator[dict[str, str]]:
    """Have the shared Ray running; the environment lets a command that is started join it."""
    from consomme.execution.session import ray_session

    with ray_session():
        import ray

        yield {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}


@pytest.fixture(scope="session")
def s3_server() -> "Iterator[S3Server]":
    """A real S3 server; started when a test first asks for it, one for all of them."""
    from tests.support.s3_server import seaweedfs

    with seaweedfs() as server:
        yield server


@pytest.fixture
def s3_root(s3_server: "S3Server", monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of an empty folder on the S3 server; the environment is set so that it can be opened."""
    from tests.support.s3_server import BUCKET

    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex[:8]}"
