"""Bodies in content codings, whole, cut, damaged, and far larger than they look."""

import gzip
import zlib

import pytest
from tests.support.raw_server import RawServer, response

from consomme.storage.fetch import Fetched, Fetcher, FetchPolicy, FetchProblem

PICTURE = bytes(range(256)) * 700


def raw_deflate(data: bytes) -> bytes:
    deflate = zlib.compressobj(wbits=-15)
    return deflate.compress(data) + deflate.flush()


def fetch(coding: bytes, body: bytes) -> Fetched | FetchProblem:
    def answer(target: bytes) -> bytes:
        if target == b"/robots.txt":
            return response(404)
        return response(body=body, headers=[(b"Content-Encoding", coding)])

    with RawServer(answer, in_pieces=lambda target: len(body) < 3000) as server:
        policy = FetchPolicy(private_hosts=("localhost",), num_tries=1, max_mb=1.0)
        (found,) = Fetcher(policy).fetch([f"http://localhost:{server.port}/a.png"])
        assert b"\r\nAccept-Encoding: gzip, deflate\r\n" in server.requests[-1]
    return found


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        (b"", PICTURE),
        (b"identity", PICTURE),
        (b"gzip", gzip.compress(PICTURE)),
        (b"X-GZIP", gzip.compress(PICTURE)),
        (b"gzip", gzip.compress(PICTURE[:1000]) + gzip.compress(PICTURE[1000:])),
        (b"gzip", gzip.compress(PICTURE) + bytes(20)),
        (b"deflate", zlib.compress(PICTURE)),
        (b"deflate", raw_deflate(PICTURE)),
    ],
)
def test_bodies_are_decoded(coding: bytes, body: bytes) -> None:
    found = fetch(coding, body)
    assert isinstance(found, Fetched)
    assert found.data == PICTURE


@pytest.mark.parametrize(
    ("coding", "body", "reason", "detail"),
    [
        (b"br", b"\x0b\x02\x80....", "url_not_image", "Content-Encoding: br"),
        (b"zstd", b"\x28\xb5\x2f\xfd....", "url_not_image", "Content-Encoding: zstd"),
        (b"gzip, br", b"....", "url_not_image", "Content-Encoding: gzip, br"),
        (b"gzip", gzip.compress(PICTURE)[:-9], "url_unreachable", "ends too early"),
        (b"gzip", b"\x1f", "url_unreachable", "ends too early"),
        (b"gzip", PICTURE, "url_unreachable", "damaged"),
        (b"deflate", zlib.compress(PICTURE)[:-1], "url_unreachable", "ends too early"),
        (b"gzip", gzip.compress(bytes(50 << 20)), "url_too_large", "more than 1048576 bytes"),
    ],
)
def test_bodies_that_cannot_be_had_are_named(
    coding: bytes, body: bytes, reason: str, detail: str
) -> None:
    found = fetch(coding, body)
    assert isinstance(found, FetchProblem)
    assert found.reason == reason
    assert detail in found.detail
