"""Faults of object stores: each is either retried or reported with what to do."""

import datetime
import hashlib
import logging
import os
import pickle
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.support.faulty_proxy import FaultyProxy
from tests.support.policies import HASTY, PATIENT
from tests.support.s3_server import BUCKET, S3Server

from consomme.base.errors import ClusterError, DataError, RecipeError
from consomme.storage.stores import s3 as object_store
from consomme.storage.stores import s3_client
from consomme.storage.stores.open import open_store
from consomme.storage.stores.s3 import S3Store

MIB = 2**20
NOW = datetime.datetime.now(datetime.UTC)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multipart uploads from 6 MiB on, so that tests of them stay quick."""
    monkeypatch.setattr(object_store, "MULTIPART_BYTES", 6 * MIB)
    monkeypatch.setattr(object_store, "PART_BYTES", 5 * MIB)


# --- faults on the way -----------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["slow_down", "error", "conflict", "reset", "stall", "cut"])
def test_a_fault_that_passes_is_survived_by_every_call(
    store: S3Store, proxy: FaultyProxy, fault: str
) -> None:
    body = bytes(range(256)) * 100
    for call in (
        lambda: store.write("a/f", body),
        lambda: store.size("a/f"),
        lambda: list(store.list()),
        lambda: store.create("a/g", b"x"),
        lambda: store.delete("a/g"),
        lambda: store.delete_many(["a/g", "a/h"]),
        lambda: store.remove_orphans(),
    ):
        proxy.force(fault, fault)
        call()
    proxy.force(fault, fault, method="GET")
    assert store.read("a/f") == body
    proxy.force(fault, method="GET")
    assert store.read("a/f", 1000, 500) == body[1000:1500]
    assert [file.path for file in store.list()] == ["a/f"]
    assert proxy.counts[fault] >= 13


def test_a_create_whose_answer_was_lost_knows_its_own_object(
    store: S3Store, proxy: FaultyProxy
) -> None:
    proxy.force("drop_answer", method="PUT")
    assert store.create("lock", b"mine")
    assert proxy.counts["drop_answer"] == 1
    assert store.read("lock") == b"mine"
    proxy.force("drop_answer", "drop_answer", "slow_down", method="PUT")
    assert not store.create("lock", b"mine")


def test_a_create_whose_answer_was_lost_does_not_claim_the_same_bytes_of_another(
    store: S3Store, proxy: FaultyProxy
) -> None:
    store.create("lock", b"same")
    for fault in ("drop_answer", "reset", "error"):
        proxy.force(fault, method="PUT")
        assert not store.create("lock", b"same")


@pytest.mark.usefixtures("small_parts")
def test_uploads_in_parts_survive_lost_answers(
    store: S3Store, proxy: FaultyProxy, s3_server: S3Server
) -> None:
    data = random.Random(1).randbytes(11 * MIB)
    proxy.force("drop_answer", "reset", method="PUT", part="partNumber")
    proxy.force("drop_answer", method="POST", part="uploadId")
    assert store.create("large", data)
    assert store.read("large") == data
    proxy.force("drop_answer", method="POST", part="uploadId")
    assert not store.create("large", data)
    store.write("large", data[: 7 * MIB])
    assert store.size("large") == 7 * MIB
    uploads = s3_server.client().list_multipart_uploads(Bucket=BUCKET, Prefix=store.folder)
    assert uploads.get("Uploads", []) == []


@pytest.mark.usefixtures("small_parts")
def test_a_multipart_upload_that_was_removed_is_sent_again(
    store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = random.Random(1).randbytes(11 * MIB)
    other, removals = S3Store(store.bucket, store.folder), []
    decide = S3Store._send_conditional

    def sweep_first(self: S3Store, *place: Any, **options: Any) -> bool:
        if not removals:
            removals.append(other.remove_orphans())
        return decide(self, *place, **options)

    monkeypatch.setattr(S3Store, "_send_conditional", sweep_first)
    store.write("large", data)
    assert removals == [1]
    assert hashlib.sha256(store.read("large")).digest() == hashlib.sha256(data).digest()


@pytest.mark.usefixtures("small_parts")
def test_an_upload_in_parts_that_fails_leaves_nothing(
    hasty: S3Store, proxy: FaultyProxy, s3_server: S3Server
) -> None:
    proxy.force(*["error"] * 100_000, method="PUT", part="partNumber=2")
    with pytest.raises(ClusterError, match=r"large: gave up after \d+ tries in 4 s"):
        hasty.write("large", bytes(11 * MIB))
    assert not hasty.exists("large")
    uploads = s3_server.client().list_multipart_uploads(Bucket=BUCKET, Prefix=hasty.folder)
    assert uploads.get("Uploads", []) == []


def test_uploads_that_were_broken_off_are_swept_up(store: S3Store, s3_server: S3Server) -> None:
    client = s3_server.client()
    for name in ("a/x", "a/y", "ab"):
        client.create_multipart_upload(Bucket=BUCKET, Key=f"{store.folder}/{name}")
    client.create_multipart_upload(Bucket=BUCKET, Key=f"{store.folder}-other/x")
    assert S3Store(store.bucket, f"{store.folder}/a").remove_orphans() == 2
    assert store.remove_orphans() == 1
    assert store.remove_orphans() == 0
    assert S3Store(store.bucket, f"{store.folder}-other").remove_orphans() == 1


@pytest.mark.usefixtures("small_parts")
def test_conditional_writes_that_met_are_decided_by_trying_again(
    store: S3Store, proxy: FaultyProxy, s3_server: S3Server
) -> None:
    proxy.force("conflict", "drop_answer", method="PUT")
    assert store.create("small", b"x")
    proxy.force("conflict", method="POST", part="uploadId")
    before = proxy.counts["POST"]
    assert store.create("large", bytes(7 * MIB))
    # S3 requires the parts again, not just the request that completes them.
    assert proxy.counts["POST"] - before == 4
    # The first upload is completed but its response is lost; the second one is then superfluous.
    proxy.force("drop_answer", "conflict", method="POST", part="uploadId")
    assert store.create("larger", bytes(8 * MIB))
    assert store.size("larger") == 8 * MIB
    assert proxy.counts["conflict"] == 3
    uploads = s3_server.client().list_multipart_uploads(Bucket=BUCKET, Prefix=store.folder)
    assert uploads.get("Uploads", []) == []


def test_a_storage_that_says_nothing_is_not_waited_for_without_end(
    s3_server: S3Server, s3_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "_READ_TIMEOUT_S", 0.2)
    with FaultyProxy(s3_server.url, stall_s=600) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = S3Store(BUCKET, s3_root.rpartition("/")[2], PATIENT)
        proxy.force("stall", method="PUT")
        assert store.create("x", b"1")
        proxy.force("stall", method="GET")
        assert store.read("x") == b"1"


def test_one_of_many_wins_through_a_bad_network(store: S3Store, proxy: FaultyProxy) -> None:
    proxy.faults = {"drop_answer": 0.15, "reset": 0.1, "slow_down": 0.1, "cut": 0.1, "error": 0.05}
    with ThreadPoolExecutor(4) as pool:
        for turn in range(30):
            # Pairs, because the server delays the losers of a race for seconds.
            won = list(pool.map(lambda _, turn=turn: store.create(f"{turn}", b"same"), range(2)))
            assert sorted(won) == [False, True]
    assert proxy.counts["drop_answer"] > 5


def test_a_storage_that_stays_down_is_an_error_to_come_back_from(
    hasty: S3Store, proxy: FaultyProxy
) -> None:
    proxy.faults = {"slow_down": 1.0}
    before = proxy.counts["requests"]
    with pytest.raises(ClusterError, match=r"/a/f: gave up after \d+ tries.*SlowDown") as raised:
        hasty.read("a/f")
    # The client library does not retry by itself.
    tries = int(str(raised.value).partition("after ")[2].partition(" ")[0])
    assert proxy.counts["requests"] - before == tries


def test_deletes_that_fail_one_by_one_are_tried_again(
    store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    class Client:
        def delete_objects(self, Delete: dict[str, Any], **_: Any) -> dict[str, Any]:
            asked.append([item["Key"].rpartition("/")[2] for item in Delete["Objects"]])
            failed = Delete["Objects"][: 2 - len(asked)]
            return {"Errors": [{**item, "Code": "SlowDown", "Message": ""} for item in failed]}

    monkeypatch.setattr(object_store, "s3_client", Client)
    store.delete_many(["a", "b", "c"])
    assert asked == [["a", "b", "c"], ["a"]]


# --- what a user can mend --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"AWS_ACCESS_KEY_ID": "wrong"}, r"/x: the credentials are wrong or have expired"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "the credentials are wrong or have expired"),
        ({"AWS_PROFILE": "nobody"}, "no credentials were found; set AWS_PROFILE"),
    ],
)
def test_wrong_credentials_are_said_once_and_not_tried_again(
    s3_root: str, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], message: str
) -> None:
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match=message):
        open_store(s3_root).write("x", b"")


def test_no_credentials_at_all(
    s3_root: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(RecipeError, match="no credentials were found; set AWS_PROFILE"):
        open_store(s3_root).read("x")


@pytest.mark.usefixtures("s3_root")
def test_a_wrong_bucket_and_a_wrong_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"s3://nobucket-here/: there is no such bucket"):
        list(open_store("s3://nobucket-here").list())
    with pytest.raises(RecipeError, match="Invalid bucket name"):
        open_store("s3://no bucket").read("x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ClusterError, match=r"gave up.*127\.0\.0\.1:9"):
        S3Store("bucket", "", HASTY).read("x")


@pytest.mark.usefixtures("s3_root")
def test_a_mistyped_endpoint_is_answered_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://s3.exmaple.invalid:9000")
    began = time.monotonic()
    with pytest.raises(RecipeError, match=r"cannot be resolved.*check the spelling of the endp"):
        S3Store("mistyped", "").read("x")
    assert time.monotonic() - began < 20


def test_a_server_that_lists_in_another_order_is_refused(
    store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = {
        "ResponseMetadata": {"HTTPHeaders": {"server": "Other"}},
        "Contents": [
            {"Key": f"{store.folder}/{name}", "Size": 0, "LastModified": NOW} for name in "ba"
        ],
    }
    client = type("Client", (), {"list_objects_v2": lambda self, **_: answer})
    monkeypatch.setattr(object_store, "s3_client", client)
    with pytest.raises(DataError, match=r"Other.* lists 'a' after 'b'"):
        list(store.list())


def test_a_sweep_that_is_not_allowed_ends_no_run(
    store: S3Store,
    proxy: FaultyProxy,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with caplog.at_level(logging.WARNING):
        assert store.remove_orphans() == 0
    assert "AbortIncompleteMultipartUpload" in caplog.text


def test_a_store_holds_no_secret_and_no_connection(s3_root: str) -> None:
    store = open_store(s3_root)
    store.write("x", b"1")
    sent = pickle.dumps(store)
    assert os.environ["AWS_SECRET_ACCESS_KEY"].encode() not in sent
    code = "import pickle, sys; print(pickle.loads(sys.stdin.buffer.read()).read('x'))"
    done = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, check=True)
    assert done.stdout.strip() == b"b'1'"


def test_local_files_need_no_cloud_library() -> None:
    code = (
        "import sys; import consomme.storage.stores.open, consomme.storage.units\n"
        "consomme.storage.stores.open.open_store('/tmp')\n"
        "assert not {'boto3', 'botocore', 'google.cloud'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
