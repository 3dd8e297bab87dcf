"""Request targets: what a list or a `Location` says is what the server gets, byte for byte."""

import pytest
from tests.support.raw_server import RawServer, response

from consomme.storage.fetch import Fetched, Fetcher, FetchPolicy, FetchProblem
from consomme.storage.web.url import parse_url

PICTURE = b"\x89PNG not really, but nobody looks here"

AS_WRITTEN = [
    "/a.png",
    "/",
    "/?",
    "/a?",
    "/a.png?sig=a%2Fb",
    "/a.png?sig=a%2fb%3D&x=%20+%2B",
    "/p%28x%29.png",
    "/p(x).png",
    "/http%3A%2F%2Fhost%2Fa.png",
    "/http://host/a.png",
    "/x;v=1,2/@:!$&'()*+,;=",
    "/%7Euser/~user",
    "/%41%5a",
    "/caf%E9.png",
    "/100%",
    "/%zz%",
    "/a//b///c",
    "//a/b",
    "/a/./b/../c",
    "/a/%2e%2E/b",
    "/a.png?",
    "/a.png??x=?",
    "/a.png?x=1&x=1&&=",
    '/a"b<c>{d}|e^f`g[h]\\i',
    "/a?q[]=1|2",
    "/" + "x" * 6000,
]
"""Targets that HTTP can carry as they are."""

ENCODED = {
    "/a b.png": "/a%20b.png",
    "/ü/ツ.png?ü=ö": "/%C3%BC/%E3%83%84.png?%C3%BC=%C3%B6",
    "/ü%20%C3%BC": "/%C3%BC%20%C3%BC",
    "/a.png#part": "/a.png",
    "/a.png?x#a?b": "/a.png?x",
    "": "/",
    "?x=1": "/?x=1",
    "#x": "/",
    "/a.png  \n": "/a.png",
}
"""What HTTP cannot carry: percent-encoded as UTF-8; fragments are not sent."""


def serve(location: bytes = b"") -> RawServer:
    def answer(target: bytes) -> bytes:
        if target == b"/robots.txt":
            return response(404)
        if target == b"/dir/from?x=1":
            return response(302, [(b"Location", location)])
        return response(body=PICTURE)

    return RawServer(answer)


POLICY = FetchPolicy(private_hosts=("localhost",), num_tries=1)


def test_the_targets_of_a_list_are_sent_as_written() -> None:
    with serve() as server:
        base = f"http://localhost:{server.port}"
        for written, sent in (dict(zip(AS_WRITTEN, AS_WRITTEN, strict=True)) | ENCODED).items():
            server.requests.clear()
            (found,) = Fetcher(POLICY).fetch([base + written])
            assert isinstance(found, Fetched), (written, found)
            assert server.targets == [sent.encode()], written
            assert found.url == base + sent
            host = f"\r\nHost: localhost:{server.port}\r\n".encode()
            assert all(host in request for request in server.requests)


@pytest.mark.parametrize("form", ["{target}", "http://localhost:{port}{target}"])
def test_the_targets_of_redirects_are_sent_as_written(form: str) -> None:
    for target in AS_WRITTEN:
        if target.startswith("//") and form == "{target}":
            continue  # This would name another host.
        with serve() as server:
            location = form.format(port=server.port, target=target).encode()
            server.answer = serve(location).answer
            (found,) = Fetcher(POLICY).fetch([f"http://localhost:{server.port}/dir/from?x=1"])
        assert isinstance(found, Fetched), (target, found)
        assert server.targets[1:] == [target.encode()], target


@pytest.mark.parametrize(
    ("location", "sent"),
    [
        (b"/caf\xe9.png", "/caf%E9.png"),
        (b"/caf\xc3\xa9.png?\xff", "/caf%C3%A9.png?%FF"),
        (b"/a b.png", "/a%20b.png"),
        (b"b.png", "/dir/b.png"),
        (b"../b.png", "/b.png"),
        (b"../../../b.png?y=..", "/b.png?y=.."),
        (b"./%2e/b", "/dir/%2e/b"),
        (b"x/..", "/dir/"),
        (b"?y=%2F", "/dir/from?y=%2F"),
        (b"?", "/dir/from?"),
        (b"/a.png#there", "/a.png"),
        (b"  /a.png  ", "/a.png"),
        (b";v=1", "/dir/;v=1"),
    ],
)
def test_references_in_redirects(location: bytes, sent: str) -> None:
    with serve(location) as server:
        (found,) = Fetcher(POLICY).fetch([f"http://localhost:{server.port}/dir/from?x=1"])
    assert isinstance(found, Fetched)
    assert server.targets[1:] == [sent.encode()]


@pytest.mark.parametrize(
    ("base", "reference", "expected"),
    [
        # RFC 3986, section 5.4, as far as it concerns the web.
        ("http://a/b/c/d;p?q", "g", "http://a/b/c/g"),
        ("http://a/b/c/d;p?q", "./g", "http://a/b/c/g"),
        ("http://a/b/c/d;p?q", "g/", "http://a/b/c/g/"),
        ("http://a/b/c/d;p?q", "/g", "http://a/g"),
        ("http://a/b/c/d;p?q", "//g", "http://g/"),
        ("http://a/b/c/d;p?q", "?y", "http://a/b/c/d;p?y"),
        ("http://a/b/c/d;p?q", "g?y", "http://a/b/c/g?y"),
        ("http://a/b/c/d;p?q", "#s", "http://a/b/c/d;p?q"),
        ("http://a/b/c/d;p?q", "g#s/../x", "http://a/b/c/g"),
        ("http://a/b/c/d;p?q", ";x", "http://a/b/c/;x"),
        ("http://a/b/c/d;p?q", "", "http://a/b/c/d;p?q"),
        ("http://a/b/c/d;p?q", ".", "http://a/b/c/"),
        ("http://a/b/c/d;p?q", "..", "http://a/b/"),
        ("http://a/b/c/d;p?q", "../../../../g", "http://a/g"),
        ("http://a/b/c/d;p?q", "g.", "http://a/b/c/g."),
        ("http://a/b/c/d;p?q", "..g", "http://a/b/c/..g"),
        ("http://a/b/c/d;p?q", "g;x=1/../y", "http://a/b/c/y"),
        ("http://a/b/c/d;p?q", "g?y/../x", "http://a/b/c/g?y/../x"),
        ("https://a:8443/b", "//[2001:db8::1]:99/c", "https://[2001:db8::1]:99/c"),
    ],
)
def test_references_are_resolved_as_rfc_3986_says(base: str, reference: str, expected: str) -> None:
    assert str(parse_url(reference.encode(), parse_url(base))) == expected


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://example.org/a", "found ftp"),
        ("javascript:alert(1)", "found javascript"),
        ("/a.png", "no scheme"),
        ("example.org/a.png", "no scheme"),
        ("http:///a", "no host"),
        ("http:a", "no host"),
        ("http://example.org:x/", "the port"),
        ("http://example.org:99999/", "the port"),
        ("http://exa mple.org/", "not a host name"),
        ("http://a..b/", "not a host name"),
        ("http://example.org/a\nb", "a line break"),
        ("http://example.org/\r\nX: y", "a line break"),
        ("http://user:hunter2@example.org/", "user or password"),
        ("http://hunter2@example.org/", "user or password"),
        ("http://user:hunter2%40example.org/", "the port"),
        ("http://user%3Ahunter2%40example.org/", "not a host name"),
        ("http://good.example\\@127.0.0.1/", "user or password"),
    ],
)
def test_urls_that_are_never_sent_and_whose_secrets_are_not_told(url: str, why: str) -> None:
    with serve(url.encode().replace(b"\n", b"\x01").replace(b"\r", b"\x01")) as server:
        (listed,) = Fetcher(POLICY).fetch([url])
        assert isinstance(listed, FetchProblem)
        assert listed.reason == "url_refused"
        assert why in listed.detail
        assert "hunter2" not in listed.detail
        if "://" in url and "\n" not in url:
            (redirected,) = Fetcher(POLICY).fetch([f"http://localhost:{server.port}/dir/from?x=1"])
            assert redirected == listed
