"""Opt-out headers: which pictures are taken, and which are left to their owners."""

from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

import pytest
from tests.support.raw_server import RawServer, response

from consomme.storage.fetch import Fetched, Fetcher, FetchPolicy, FetchProblem

PICTURE = b"\x89PNG not really, but nobody looks here"

FORBIDDEN = [
    # Each line is one response; its header lines are separated by `|`.
    "noai",
    "noimageai",
    "noml",
    "noindex",
    "noimageindex",
    "none",
    "NoAI",
    " noai ",
    "noindex, nofollow",
    "nofollow,noai",
    "nofollow|noai",
    "noai|all",
    "all, noai",
    "noai, max-snippet: 5",
    "max-snippet: 5, noai",
    "max-snippet:-1, max-image-preview:large, max-video-preview:-1, noimageai",
    "consomme: noai",
    "Consomme: NOAI",
    "consomme:none",
    "consomme/1.0: noai",
    "*: noai",
    "consomme: noai, max-snippet:-1",
    "consomme: max-snippet:-1, noai",
    "otherbot: noindex, consomme: noai",
    "otherbot: all|consomme: noindex",
    "otherbot: noai|noai",
    "unavailable_after: 25 Jun 2010 15:00:00 PST",
    "unavailable_after: Friday, 25-Jun-10 15:00:00 GMT",
    "unavailable_after: Fri, 25 Jun 2010 15:00:00 GMT",
    "unavailable_after: 2010-06-25T15:00:00Z",
    "unavailable_after: 2010-06-25",
    "unavailable_after: Fri, 25 Jun 2999 15:00:00 GMT, noai",
    "unavailable_after: Friday, 25-Jun-60 15:00:00 GMT, consomme: noai",
    "consomme: unavailable_after: Fri, 25 Jun 2010 15:00:00 GMT",
    "noai, unavailable_after: 25 Jun 2999 15:00:00 GMT",
    "noindex nofollow",
    "noai; noimageai",
    ",, noai,",
    "something-new: 5, noai",
    "TDM-Reservation: 1",
]

ALLOWED = [
    "",
    "all",
    "index, follow",
    "nofollow",
    "noarchive, nosnippet",
    "max-snippet: 5",
    "max-image-preview: none",
    "max-image-preview:none, max-snippet:0",
    "otherbot: noai",
    "otherbot: noindex, nofollow",
    "otherbot: none|consomme: nofollow",
    "otherbot: noai, max-snippet:-1",
    "otherbot: unavailable_after: 25 Jun 2010 15:00:00 GMT",
    "myconsomme: noai",
    "consomme-images: noai",
    "consomme: all, otherbot: noai",
    "unavailable_after: 25 Jun 2999 15:00:00 PST",
    "unavailable_after: Friday, 25-Jun-60 15:00:00 GMT",
    "unavailable_after: some day",
    "noaircraft, xnoai, no-ai",
    "TDM-Reservation: 0",
]
"""A year of two digits is one of the next 50 years, else a past one."""


@pytest.fixture(scope="module")
def server() -> Iterator[RawServer]:
    def answer(target: bytes) -> bytes:
        kind, _, tag = target[1:].partition(b"/")
        lines = unquote_to_bytes(tag).split(b"|") if tag else []
        headers = [
            (b"TDM-Reservation", line.partition(b":")[2].strip())
            if line.startswith(b"TDM")
            else (b"x-ROBOTS-tag", line)
            for line in lines
        ]
        if kind == b"to":
            return response(302, [*headers, (b"Location", b"/picture/")])
        if kind == b"robots.txt":
            return response(404, [(b"X-Robots-Tag", b"noindex")])
        return response(body=PICTURE, headers=headers)

    with RawServer(answer) as server:
        yield server


def fetch(
    server: RawServer, tags: list[str], kind: str = "picture", **changes: object
) -> list[str]:
    """Return the reason for each response with such headers; empty if the picture was taken."""
    policy = FetchPolicy(
        user_agent="Consomme/2.0", private_hosts=("localhost",), num_tries=1, **changes
    )
    escaped = ["".join(f"%{octet:02X}" for octet in tag.encode()) for tag in tags]
    found = Fetcher(policy).fetch([f"http://localhost:{server.port}/{kind}/{e}" for e in escaped])
    return ["" if isinstance(item, Fetched) else item.reason for item in found]


def test_every_form_of_a_no_is_heard_and_no_other(server: RawServer) -> None:
    assert len(FORBIDDEN) >= 20
    assert dict(zip(FORBIDDEN, fetch(server, FORBIDDEN), strict=True)) == dict.fromkeys(
        FORBIDDEN, "url_opted_out"
    )
    assert dict(zip(ALLOWED, fetch(server, ALLOWED), strict=True)) == dict.fromkeys(ALLOWED, "")


def test_a_no_of_a_redirect_counts(server: RawServer) -> None:
    assert fetch(server, ["noai", "nofollow"], kind="to") == ["url_opted_out", ""]


def test_the_recipe_says_which_directives_are_a_no(server: RawServer) -> None:
    tags = ["noai", "none", "nocache", "TDM-Reservation: 1"]
    assert fetch(server, tags, opt_out=("NoCache",)) == ["", "", "url_opted_out", ""]
    assert fetch(server, tags, opt_out=()) == ["", "", "", ""]


def test_what_was_said_is_quoted(server: RawServer) -> None:
    policy = FetchPolicy(private_hosts=("localhost",))
    (found,) = Fetcher(policy).fetch([f"http://localhost:{server.port}/picture/none,noai"])
    assert isinstance(found, FetchProblem)
    assert found.detail == "X-Robots-Tag: noai, none"
