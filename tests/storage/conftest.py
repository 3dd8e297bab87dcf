"""S3 through a proxy that injects faults."""

from collections.abc import Iterator

import pytest
from tests.support.faulty_proxy import FaultyProxy
from tests.support.policies import HASTY, PATIENT
from tests.support.s3_server import BUCKET, S3Server

from consomme.storage.stores import retries
from consomme.storage.stores.s3 import S3Store


@pytest.fixture(autouse=True)
def _no_outage_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process knows of a bucket would carry over from test to test."""
    monkeypatch.setattr(retries, "_outages", {})


@pytest.fixture
def proxy(
    s3_server: S3Server, s3_root: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FaultyProxy]:
    """A proxy in front of the S3 server, and an environment that uses it."""
    with FaultyProxy(s3_server.url, stall_s=0.05) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture
def store(s3_root: str, proxy: FaultyProxy) -> S3Store:
    """An S3 store behind the proxy, with short waits."""
    return S3Store(BUCKET, s3_root.rpartition("/")[2], PATIENT)


@pytest.fixture
def hasty(store: S3Store) -> S3Store:
    """The same store, which gives up after four seconds."""
    return S3Store(store.bucket, store.folder, HASTY)
