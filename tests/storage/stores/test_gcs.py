"""Faults of Google Cloud Storage; its regular behaviour is in test_stores.py."""

import sys
from collections.abc import Iterator

import pytest
from tests.support.faulty_proxy import FaultyProxy
from tests.support.policies import HASTY, PATIENT
from tests.support.s3_server import BUCKET, fake_gcs

from consomme.base.errors import ClusterError, RecipeError
from consomme.storage.stores import gcs
from consomme.storage.stores.gcs import GcsStore
from consomme.storage.stores.open import open_store


@pytest.fixture(scope="module")
def gcs_env() -> Iterator[dict[str, str]]:
    with fake_gcs() as env:
        yield env


@pytest.fixture
def gcs_proxy(gcs_env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    with FaultyProxy(gcs_env["STORAGE_EMULATOR_HOST"], stall_s=0.05) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        yield proxy


@pytest.mark.parametrize("fault", ["slow_down", "reset", "stall", "cut"])
def test_gcs_survives_faults_too(gcs_proxy: FaultyProxy, fault: str) -> None:
    store = GcsStore(BUCKET, f"faults-{fault}", PATIENT)
    body = bytes(range(256)) * 100
    for call in (
        lambda: store.write("a", body),
        lambda: store.size("a"),
        lambda: list(store.list()),
        lambda: store.create("b", b""),
        lambda: store.delete("b"),
    ):
        gcs_proxy.force(fault, fault)
        call()
    gcs_proxy.force(fault, fault)
    assert store.read("a") == body
    gcs_proxy.force(fault)
    assert store.read("a", 1000, 500) == body[1000:1500]
    gcs_proxy.faults = {"error": 1.0}
    with pytest.raises(ClusterError, match=r"gs://.*/a: gave up after \d+ tries in 4 s"):
        GcsStore(BUCKET, f"faults-{fault}", HASTY).read("a")


def test_a_gcs_create_whose_answer_was_lost_knows_its_own_object(gcs_proxy: FaultyProxy) -> None:
    store = GcsStore(BUCKET, "lost", PATIENT)
    gcs_proxy.force("drop_answer", method="POST")
    assert store.create("lock", b"same")
    gcs_proxy.force("drop_answer", method="POST")
    assert not store.create("lock", b"same")
    assert gcs_proxy.counts["drop_answer"] == 2


def test_gcs_says_what_a_user_can_mend(
    gcs_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_env["STORAGE_EMULATOR_HOST"])
    with pytest.raises(RecipeError, match="gs://nobucket/x: there is no such bucket"):
        open_store("gs://nobucket").write("x", b"")
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    gcs._library.cache_clear()
    with pytest.raises(RecipeError, match=r"pip install 'consomme\[gcs\]'"):
        open_store("gs://bucket")
    gcs._library.cache_clear()


def test_a_mistyped_gcs_endpoint_is_answered_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://storage.exmaple.invalid")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "test")
    with pytest.raises(RecipeError, match=r"cannot be resolved.*check the spelling of the endp"):
        GcsStore("mistyped", "").read("x")
