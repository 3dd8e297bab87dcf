"""The guard against private addresses: what is connected to, whatever an address is spelled like.

An audit hook sees every connection that this process makes, below any HTTP library.
"""

import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from tests.support.raw_server import RawServer, response

from consomme.base.errors import RecipeError
from consomme.storage.fetch import Fetched, Fetcher, FetchPolicy, FetchProblem, is_public
from consomme.storage.web.addresses import canonical_host

PICTURE = b"\x89PNG not really, but nobody looks here"

_connections: list[tuple[Any, ...]] | None = None


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect" and _connections is not None:
        _connections.append(arguments[1])


sys.addaudithook(_watch)


@pytest.fixture
def connections() -> Iterator[list[tuple[Any, ...]]]:
    """Addresses that the test connects to."""
    global _connections
    _connections = []
    yield _connections
    _connections = None


@pytest.fixture(scope="module")
def server() -> Iterator[RawServer]:
    def answer(target: bytes) -> bytes:
        if target == b"/robots.txt":
            return response(404)
        if target.startswith(b"/to/"):
            host = bytes.fromhex(target.rpartition(b"/")[2].decode())
            location = b"http://" + host + b":%d/stolen" % made.port
            return response(302, [(b"Location", location)])
        return response(body=PICTURE)

    with RawServer(answer) as made:
        yield made


LOOPBACK = [
    "127.0.0.1",
    "127.0.0.1.",
    "127.1",
    "127.0.1",
    "127.000.000.001",
    "2130706433",
    "2130706433.",
    "017700000001",
    "0177.0.0.1",
    "0177.1",
    "0x7f000001",
    "0X7F.0x0.0x00.0x1",
    "0x7f.1",
    "127.0x1",
    "127.255.255.254",
    "%31%32%37.0.0.1",
    "%30x7f.1",
    "0",
    "0.0.0.0",
    "0x",
    "00",
    "１２７.0.0.1",
    "①②⑦.⓪.⓪.①",
    "127。0．0｡1",
    "0\u00adx7f.1",
    "２１３０７０６４３３",
    "𝟘x7f.1",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[::]",
    "[::127.0.0.1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[0:0:0:0:0:FFFF:7F00:0001]",
    "[64:ff9b::127.0.0.1]",
    "[64:ff9b:1::7f00:1]",
    "[2002:7f00:1::]",
    "[2001:0:4136:e378:8000:63bf:80ff:fffe]",
    "[fe80::1%25lo]",
    "[::1%25lo]",
    "localhost",
    "LOCALHOST.",
    "ｌｏｃａｌｈｏｓｔ",
    "loc%61lhost",
]
"""Spellings of this machine's own addresses."""

NO_HOSTS = [
    "127.0.0.1.5", "256.0.0.1", "4294967296", "1.2.3.256", "09.0.0.1", "0x7g.1", "1..1", "..", ".",
    "127.0.0.1%00.example.org", "127.0.0.1\\.example.org", "[::1", "::1", "[::1]x", "[v1.x]", "[]",
    "9" * 5000, "0x" + "f" * 5000, "a.b.127", "exa\u2024mple\u0000.org", "x" * 64 + ".org",
    "\ufffd.org",
]  # fmt: skip


def refused(url: str, **changes: object) -> FetchProblem:
    policy = FetchPolicy(**{"num_tries": 1, "timeout_s": 2.0, **changes})
    (found,) = Fetcher(policy).fetch([url])
    assert isinstance(found, FetchProblem), url
    assert found.reason == "url_refused", (url, found)
    return found


def test_no_spelling_of_an_own_address_is_connected_to(
    server: RawServer, connections: list[tuple[Any, ...]]
) -> None:
    server.requests.clear()
    for host in LOOPBACK + NO_HOSTS:
        refused(f"http://{host}:{server.port}/stolen")
        refused(f"http://{host}:{server.port}/stolen", respect_robots=False)
    assert not server.requests
    assert not connections


def test_nor_by_a_redirect(server: RawServer, connections: list[tuple[Any, ...]]) -> None:
    # What is longer, or holds a NUL, is no header for aiohttp, so it leads nowhere either.
    for host in LOOPBACK + [host for host in NO_HOSTS if len(host) < 1000 and "\0" not in host]:
        if host.lower().startswith(("localhost", "ｌ", "loc%")):
            continue  # This one host is allowed here.
        server.requests.clear()
        code = host.encode().hex()
        refused(f"http://localhost:{server.port}/to/{code}", private_hosts=("localhost",))
        assert len(server.targets) == 1, host
    assert {address[0] for address in connections} <= {"127.0.0.1", "::1"}


def test_nor_by_the_redirect_of_a_robots_txt(connections: list[tuple[Any, ...]]) -> None:
    def answer(target: bytes) -> bytes:
        location = b"http://127.1:%d/stolen" % server.port
        return response(302, [(b"Location", location)])

    with RawServer(answer) as server:
        refused(f"http://localhost:{server.port}/a", private_hosts=("localhost",))
        assert len(server.requests) == 1


class Names:
    """Answers of a name server that belongs to somebody else, one after the other."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.ask_system = socket.getaddrinfo

    def __call__(self, host: str, port: int, *arguments: Any, **named: Any) -> list[Any]:
        if host != "pictures.example":
            return self.ask_system(host, port, *arguments, **named)
        addresses = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [
            (
                socket.AF_INET6 if ":" in address else socket.AF_INET,
                socket.SOCK_STREAM,
                6,
                "",
                (address, port, 0, 0) if ":" in address else (address, port),
            )
            for address in addresses
        ]


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["10.0.0.1", "192.168.1.1"],
        ["169.254.169.254"],
        ["::1"],
        ["::ffff:127.0.0.1"],
        ["fe80::1"],
        ["fd00:ec2::254"],
        ["fec0::1"],
        ["100.100.100.200"],
        ["168.63.129.16"],
        ["0.0.0.0"],
    ],
)
def test_a_name_that_leads_to_private_addresses_is_not_connected_to(
    addresses: list[str],
    server: RawServer,
    connections: list[tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", Names(addresses))
    found = refused(f"http://pictures.example:{server.port}/a")
    assert "not a public address" in found.detail
    assert not connections


def test_the_address_that_was_checked_is_the_one_connected_to(
    server: RawServer, connections: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name may lead elsewhere when it is asked again: the answer is used once it is checked."""
    server.requests.clear()
    names = Names(["127.0.0.1", "192.0.2.7", "240.0.0.1", "8.8.8.8"], ["127.0.0.1"])
    monkeypatch.setattr(socket, "getaddrinfo", names)
    policy = FetchPolicy(num_tries=3, timeout_s=2.0, connect_timeout_s=0.3, respect_robots=False)
    (found,) = Fetcher(policy).fetch([f"http://pictures.example:{server.port}/a"])
    assert isinstance(found, FetchProblem)
    assert {address[0] for address in connections} <= {"8.8.8.8"}
    assert connections, "the public address of several was tried"
    assert not server.requests


def test_private_hosts_are_named_in_any_spelling(server: RawServer) -> None:
    for allowed, host in [
        ("LocalHost.", "localhost"),
        ("localhost", "LOCALHOST."),
        ("127.0.0.1", "127.1"),
        ("127.1", "2130706433"),
    ]:
        policy = FetchPolicy(num_tries=1, private_hosts=(allowed,))
        (found,) = Fetcher(policy).fetch([f"http://{host}:{server.port}/a"])
        assert isinstance(found, Fetched), (allowed, host, found)
    refused(f"http://127.0.0.2:{server.port}/a", private_hosts=("127.0.0.1", "localhost"))


def test_private_hosts_by_their_address_in_ipv6() -> None:
    with RawServer(lambda target: response(body=PICTURE), address="::1") as server:
        for host in ("::1", "[::1]"):
            policy = FetchPolicy(num_tries=1, private_hosts=(host,), respect_robots=False)
            (found,) = Fetcher(policy).fetch([f"http://[0::1]:{server.port}/a"])
            assert isinstance(found, Fetched), found


def test_a_recipe_with_hosts_or_agents_that_are_none_is_refused() -> None:
    with pytest.raises(RecipeError, match="private_hosts: found 'http://x/'"):
        FetchPolicy(private_hosts=("http://x/",))
    for agent in ("", "(+https://example.org)", "a\r\nX-Evil: b"):
        with pytest.raises(RecipeError, match="user_agent: found"):
            FetchPolicy(user_agent=agent)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("8.8.8.8", "8.8.8.8"),
        ("134744072", "8.8.8.8"),
        ("0x8.010.2056", "8.8.8.8"),
        ("[2606:4700:4700:0::1111]", "2606:4700:4700::1111"),
        ("Example.ORG.", "example.org"),
        ("under_score.example.org", "under_score.example.org"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("B%C3%9CCHER.example", "xn--bcher-kva.example"),
        ("faß.example", "xn--fa-hia.example"),
        ("ドメイン名例。example", "xn--eckwd4c7cu47r2wf.example"),
        ("💩.example", "xn--ls8h.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("1e100.net", "1e100.net"),
        ("4chan.example", "4chan.example"),
        ("0xdeadbeef.example", "0xdeadbeef.example"),
        ("www.0x7f.example", "www.0x7f.example"),
        ("-a-.example", "-a-.example"),
    ],
)
def test_hosts_have_one_spelling(host: str, expected: str) -> None:
    assert canonical_host(host) == expected


def test_public_addresses() -> None:
    for address in ("8.8.8.8", "1.1.1.1", "93.184.215.14", "2606:4700:4700::1111", "2a00:1450::1",
                    "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"):  # fmt: skip
        assert is_public(address), address
    for address in ("192.0.0.192", "198.18.0.1", "203.0.113.1", "192.88.99.1", "255.255.255.255",
                    "239.1.2.3", "ff02::1", "2001:db8::1", "3fff::1", "5f00::1", "100::1",
                    "2001:2::1", "4000::1"):  # fmt: skip
        assert not is_public(address), address
