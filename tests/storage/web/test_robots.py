"""robots.txt, served byte by byte: what is fetched is what RFC 9309 lets a crawler fetch."""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from tests.support.raw_server import RawServer, response

from consomme.storage.fetch import Fetched, Fetcher, FetchPolicy, FetchProblem
from consomme.storage.web.robots import RobotsRules, product_token

PICTURE = b"\x89PNG not really, but nobody looks here"


@dataclass
class Site:
    robots: bytes = b""
    """The whole response to the request for robots.txt."""

    def answer(self, target: bytes) -> bytes:
        if target == b"/robots.txt":
            return self.robots
        return response(body=PICTURE)


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[RawServer, Site]]:
    site = Site()
    with RawServer(site.answer, in_pieces=lambda target: target == b"/robots.txt") as server:
        yield server, site


def fetch(server: RawServer, targets: list[str], **changes: object) -> dict[str, bool]:
    """Fetch some targets by a new fetcher; the problems of those that fail are robots.txt's."""
    policy = FetchPolicy(
        **{"private_hosts": ("localhost",), "timeout_s": 10.0, "num_tries": 1, **changes}
    )
    urls = [f"http://localhost:{server.port}{target}" for target in targets]
    server.requests.clear()
    found = Fetcher(policy).fetch(urls)
    for item in found:
        if isinstance(item, FetchProblem):
            assert "robots.txt" in item.detail
    fetched = {target: isinstance(f, Fetched) for target, f in zip(targets, found, strict=True)}
    assert sorted(server.targets) == sorted(t.encode() for t in targets if fetched[t])
    return fetched


ALL = b"User-agent: *\nDisallow: /no\n"

CASES: dict[str, tuple[bytes, str, str]] = {
    # robots.txt; targets that may be fetched; targets that may not.
    "empty file": (b"", "/a /no", ""),
    "one group": (ALL, "/a /n /No", "/no /no/b /nobody /no?x"),
    "byte order mark": (b"\xef\xbb\xbf" + ALL, "/a", "/no"),
    "CRLF": (ALL.replace(b"\n", b"\r\n"), "/a", "/no"),
    "CR alone": (ALL.replace(b"\n", b"\r"), "/a", "/no"),
    "no line end at the end": (ALL.strip(), "/a", "/no"),
    "UTF-16 with its mark": (b"\xff\xfe" + ALL.decode().encode("utf-16-le"), "/a", "/no"),
    "keys in any case, blanks around": (b"\t USER-AGENT \t:  * \nDISALLOW:/no \t", "/a", "/no"),
    "comments": (b"# x\nUser-agent: * # all\n#y\nDisallow: /no#more\n", "/a", "/no /nomore"),
    "blank line inside of a group": (b"User-agent: *\n\n\nDisallow: /no\n\nDisallow: /ne", "/a",
                                     "/no /ne"),
    "blank line between agents": (b"User-agent: consomme\n\nUser-agent: b\nDisallow: /no", "/a",
                                  "/no"),
    "unknown records end no group": (
        b"User-agent: consomme\nSitemap: /s\nDisallow: /no\nHost: x\nSpecial: y\nDisallow: /ne",
        "/a", "/no /ne"),
    "nor do they between agents": (
        b"User-agent: consomme\nCrawl-delay: 5\nUser-agent: b\nDisallow: /no", "/a", "/no"),
    "two groups of one agent": (
        b"User-agent: consomme\nDisallow: /no\n\nUser-agent: b\nDisallow: /a\n\n"
        b"User-agent: Consomme\nDisallow: /ne", "/a", "/no /ne"),
    "two groups for all": (ALL + b"User-agent: b\nDisallow: /\nUser-agent: *\nDisallow: /ne", "/a",
                           "/no /ne"),
    "our group replaces the one for all": (ALL + b"User-agent: consomme\nDisallow: /ne", "/a /no",
                                           "/ne"),
    "also if it is empty": (ALL + b"User-agent: consomme\n", "/a /no", ""),
    "also if it disallows nothing": (ALL + b"User-agent: consomme\nDisallow:\n", "/a /no", ""),
    "also before it": (b"User-agent: consomme\nAllow: /\n" + ALL, "/a /no", ""),
    "agents with a version": (ALL + b"User-agent: consomme/2.0\nDisallow: /ne", "/no", "/ne"),
    "another agent's name holds ours": (
        b"User-agent: consomme-images\nDisallow: /\n\nUser-agent: myconsomme\nDisallow: /", "/a",
        ""),
    "another agent's name is a part of ours": (
        b"User-agent: con\nDisallow: /\nUser-agent: somme\nDisallow: /", "/a", ""),
    "a word of our comment is no name of ours": (
        b"User-agent: example\nDisallow: /\nUser-agent: https\nDisallow: /", "/a", ""),
    "rules without an agent": (b"Disallow: /\nUser-agent: *\nDisallow: /no", "/a", "/no"),
    "an empty rule": (b"User-agent: *\nDisallow:", "/a", ""),
    "the longest match, disallow": (b"User-agent: *\nAllow: /p\nDisallow: /page", "/pa", "/pages"),
    "the longest match, allow": (b"User-agent: *\nDisallow: /p\nAllow: /page", "/pages", "/pa"),
    "the longest match, in any order": (
        b"User-agent: *\nAllow: /page\nDisallow: /\nDisallow: /page/no", "/page/a", "/a /page/no"),
    "equally long: allow": (b"User-agent: *\nDisallow: /page\nAllow: /page", "/page", ""),
    "wildcards count as octets": (b"User-agent: *\nAllow: /page\nDisallow: /*.html", "/page",
                                  "/page.html"),
    "wildcard": (b"User-agent: *\nDisallow: /*/no*.jpg", "/no.jpg /a/n.jpg",
                 "/a/no.jpg /a/b/noo.jpg"),
    "wildcard over slashes and queries": (b"User-agent: *\nDisallow: /*no", "/a",
                                          "/a/b/no /a?no /a?b=/no"),
    "many wildcards": (b"User-agent: *\nDisallow: /" + b"*a" * 40 + b"b", "/" + "a" * 60,
                       "/" + "a" * 60 + "b"),
    "only a wildcard": (b"User-agent: *\nDisallow: *", "", "/a"),
    "begins with a wildcard": (b"User-agent: *\nDisallow: *.gif$", "/a.gifs", "/a.gif"),
    "anchor": (b"User-agent: *\nDisallow: /*.gif$", "/a.gif?x /a.gif/", "/a.gif"),
    "anchor without a wildcard": (b"User-agent: *\nDisallow: /no$", "/no/ /no$x /nob", "/no"),
    "allow of the root alone": (b"User-agent: *\nDisallow: /\nAllow: /$", "/", "/a"),
    "a dollar in the middle is one": (b"User-agent: *\nDisallow: /a$b", "/a", "/a$b"),
    "an escaped star is a star": (b"User-agent: *\nDisallow: /with-a-%2A.html", "/with-a-x.html",
                                  "/with-a-*.html /with-a-%2A.html"),
    "an escaped dollar is a dollar": (b"User-agent: *\nDisallow: /no%24", "/no", "/no$ /no%24"),
    "no index page by itself": (b"User-agent: *\nDisallow: /\nAllow: /index.html", "/index.html",
                                 "/"),
    # RFC 9309, section 2.2.2.
    "reserved, in the query": (b"User-agent: *\nDisallow: /foo/bar?baz=https://foo.bar",
                               "/foo/bar?baz=http",
                               "/foo/bar?baz=https%3A%2F%2Ffoo.bar /foo/bar?baz=https://foo.bar"),
    "reserved, escaped in the rule": (
        b"User-agent: *\nDisallow: /foo/bar?baz=https%3A%2F%2Ffoo.bar", "/foo/bar?baz=http",
        "/foo/bar?baz=https%3A%2F%2Ffoo.bar /foo/bar?baz=https://foo.bar"),
    "reserved, behind a wildcard": (
        b"User-agent: *\nDisallow: /*=https://foo\nDisallow: /*%2Fbar", "/a/bar",
        "/a?b=https%3A%2F%2Ffoo /a?b=https://foo /a%2Fbar /a?b=%2fbar"),
    "letters beyond ASCII": ("User-agent: *\nDisallow: /foo/bar/ツ".encode(), "/foo/bar/%E3%83%83",
                             "/foo/bar/%E3%83%84 /foo/bar/%e3%83%84"),
    "letters beyond ASCII, escaped": (b"User-agent: *\nDisallow: /foo/bar/%E3%83%84", "/foo/bar/",
                                      "/foo/bar/%E3%83%84"),
    "unreserved, escaped": (b"User-agent: *\nDisallow: /foo/bar/%62%61%7A", "/foo/bar/%42az",
                            "/foo/bar/baz /foo/bar/%62a%7a"),
    "Latin-1 letters": (b"User-agent: *\nDisallow: /caf\xe9", "/cafe", "/caf%E9"),
    "an escaped slash is none in a path": (b"User-agent: *\nDisallow: /a/b", "/a%2Fb", "/a/b"),
    "case counts in paths": (b"User-agent: *\nDisallow: /No", "/no", "/No"),
    "control characters end no line": (b"User-agent: *\nDisallow: /x\x0b\x1c\xc2\x85/no", "/no",
                                        ""),
    "no path": (b"User-agent: *\nDisallow: no", "/no", ""),
    "not text at all": (bytes(range(256)) * 3, "/a", ""),
    "a web page": (b"<html><body>User-agent: *<br>Disallow: /</body></html>", "/a", ""),
    "dot segments lead to what is forbidden": (
        ALL, "/a/../b", "/a/../no /a/%2e%2E/no /./no /no/../a"),
    "misspelled, as Google takes it": (b"useragent: *\ndisalow: /no\nDisallow /ne", "/a",
                                       "/no /ne"),
    "a page of comments first": (b"# hello\n" * 500 + ALL, "/a", "/no"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_fetched_is_what_the_rfc_allows(served: tuple[RawServer, Site], name: str) -> None:
    server, site = served
    robots, allowed, refused = CASES[name]
    site.robots = response(body=robots)
    expected = dict.fromkeys(allowed.split(), True) | dict.fromkeys(refused.split(), False)
    agent = "consomme/1.0 (+https://example.org/con somme)"
    assert fetch(server, list(expected), user_agent=agent) == expected


@pytest.mark.parametrize(
    ("robots", "is_fetched"),
    [
        *((response(status, body=b"User-agent: *\nDisallow: /"), True)
          for status in (400, 401, 403, 404, 410, 418, 451)),
        *((response(status), False) for status in (300, 304, 429, 500, 502, 503, 504, 599)),
        (response(204), True),
        (response(206, body=ALL), True),
        (response(body=b"User-agent: *\nDisallow: /", length=1000), False),
        (b"", False),
        (b"not HTTP at all\r\n\r\n", False),
        (response(headers=[(b"Content-Encoding", b"br")], body=b"?"), False),
        (response(headers=[(b"Content-Encoding", b"new")], body=b"?"), False),
        (response(headers=[(b"Content-Encoding", b"gzip")], body=gzip.compress(ALL)), True),
        (response(headers=[(b"Content-Encoding", b"gzip")],
                  body=gzip.compress(b"User-agent: *\nDisallow: /")), False),
    ],
)  # fmt: skip
def test_the_status_of_robots_txt(
    served: tuple[RawServer, Site], robots: bytes, is_fetched: bool
) -> None:
    server, site = served
    site.robots = robots
    assert fetch(server, ["/a"]) == {"/a": is_fetched}


@pytest.mark.parametrize("num_redirects", [1, 5, 6])
def test_redirects_of_robots_txt_are_followed(num_redirects: int) -> None:
    def answer(target: bytes) -> bytes:
        number = int(target.rpartition(b"-")[2]) if b"-" in target else 0
        if target != b"/robots.txt" and b"-" not in target:
            return response(body=PICTURE)
        if number == num_redirects:
            return response(body=ALL)
        return response(301, [(b"Location", b"/elsewhere/robots-%d" % (number + 1))])

    with RawServer(answer) as server:
        policy = FetchPolicy(private_hosts=("localhost",), num_tries=1, max_redirects=0)
        urls = [f"http://localhost:{server.port}{path}" for path in ("/a", "/no", "/elsewhere/no")]
        found = Fetcher(policy).fetch(urls)
    reasons = [f.reason if isinstance(f, FetchProblem) else "" for f in found]
    # The rules hold for the host that was asked, whose paths they name.
    opted_out = ["", "url_opted_out", ""]
    assert reasons == (opted_out if num_redirects <= 5 else ["url_unreachable"] * 3)


def test_a_cut_line_says_nothing() -> None:
    def rules(num_bytes: int) -> RobotsRules:
        start = b"User-agent: *\n#"
        body = start + b"x" * (num_bytes - len(start) - len(b"\nDisallow: /\n")) + b"\nDisallow: /"
        return RobotsRules((body + b"\n")[:num_bytes] + b"only/this", "consomme")

    assert not rules(500 << 10).allows("/a"), "a line that is whole counts"
    assert rules((500 << 10) + 1).allows("/a"), "its end is beyond what is read"


@pytest.mark.parametrize(
    ("agent", "token"),
    [
        ("consomme", "consomme"),
        ("consomme (+https://example.org/contact)", "consomme"),
        ("Research-Bot/2.1 (+https://example.org/bot)", "research-bot"),
        ("Mozilla/5.0 (compatible; Some_Bot/1.0; +http://example.org)", "some_bot"),
        ("img2dataset", "img2dataset"),
        ("(nothing)", ""),
    ],
)
def test_the_name_by_which_we_are_addressed(agent: str, token: str) -> None:
    assert product_token(agent) == token
