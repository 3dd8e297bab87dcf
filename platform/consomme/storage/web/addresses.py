"""Which hosts may be connected to: every spelling of an address is read here, not by the library.

HTTP libraries and the C library differ in what they take for an address: `127.1`, `0x7f000001`,
`2130706433` and `①②⑦.0.0.1` are all the loopback to some of them. So a host is first brought into
one spelling, by the rules of browsers (WHATWG URL, host parsing), and judged in that one.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

import idna
from aiohttp.abc import AbstractResolver

if TYPE_CHECKING:
    from aiohttp.abc import ResolveResult

_HOST_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")

_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
"""The only part of IPv6 that is in use for public hosts."""

_NAT64 = ipaddress.ip_network("64:ff9b::/96")

_NOT_PUBLIC = tuple(
    ipaddress.ip_network(text)
    for text in (
        # Which of these Python's `is_global` knows depends on its patch release.
        "192.0.0.0/24",
        "192.88.99.0/24",
        "2001::/23",
        "2001:db8::/32",
        "3fff::/20",
        # Not reserved, but what it answers inside of Azure is the machine's own configuration.
        "168.63.129.16/32",
    )
)


class RefusedAddressError(OSError):
    """A host resolves to addresses that may not be connected to."""


def canonical_host(text: str) -> str:
    """Return a host in its one spelling: an address, or a host name in ASCII and lower case.

    Args:
        text: The host of a URL; an IPv6 address is in brackets.

    Raises:
        ValueError: It is neither an address nor a host name.
    """
    if text.startswith("["):
        return _ipv6(text)
    try:
        name = unquote_to_bytes(text).decode("utf-8")
        name = name.lower() if name.isascii() else _to_ascii(name)
    except (UnicodeError, idna.IDNAError) as error:
        raise ValueError("the host is not a host name") from error
    name = name.removesuffix(".")
    if _NUMBER.fullmatch(name.rpartition(".")[2]):
        return _ipv4(name)
    if len(name) > 253 or not _HOST_NAME.fullmatch(name):
        # What stands here may be a password, if a sign beside it is percent-encoded.
        shown = "the host" if "@" in name else repr(name[:300])
        raise ValueError(f"{shown} is not a host name")
    return name


def _to_ascii(name: str) -> str:
    """Map digits, dots and letters of all scripts as browsers do, then encode the labels."""
    mapped = idna.uts46_remap(name, std3_rules=False, transitional=False)
    labels = mapped.split(".")
    return ".".join(
        label if label.isascii() else "xn--" + label.encode("punycode").decode() for label in labels
    )


def _ipv6(text: str) -> str:
    inside = text[1:-1]
    if not text.endswith("]") or "%" in inside:
        # An address with a zone is one of this machine's own networks.
        raise ValueError(
            "the host is not a public IPv6 address: it has a zone or no closing bracket"
        )
    try:
        return str(ipaddress.IPv6Address(inside))
    except ValueError as error:
        raise ValueError("the host is not an IPv6 address") from error


def _ipv4(name: str) -> str:
    """Read an IPv4 address of one to four parts, each decimal, octal or hexadecimal."""
    parts = name.split(".")
    try:
        *heads, tail = [_part(part) for part in parts]
    except ValueError:
        heads, tail = [256], 0
    if len(parts) > 4 or any(head > 255 for head in heads) or tail >= 256 ** (5 - len(parts)):
        raise ValueError(f"{name[:50]!r} is not an IPv4 address")
    value = tail + sum(head << 8 * (3 - index) for index, head in enumerate(heads))
    return str(ipaddress.IPv4Address(value))


def _part(part: str) -> int:
    if not _NUMBER.fullmatch(part):
        raise ValueError(part)
    if part.startswith("0x"):
        return int(part[2:] or "0", 16)
    # A decimal of thousands of digits is out of range too; Python refuses to read it.
    return int(part, 8 if part.startswith("0") and part != "0" else 10)


def is_address(host: str) -> bool:
    """Check whether a canonical host is an address."""
    return ":" in host or host.rpartition(".")[2].isdigit()


def is_public(address: str) -> bool:
    """Check that an IP address is globally reachable; embedded IPv4 addresses are unwrapped."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        wrapped = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if ip in _NAT64:
            wrapped = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if wrapped:
            return is_public(str(wrapped))
        if ip not in _GLOBAL_UNICAST:
            return False
    if any(ip in network for network in _NOT_PUBLIC if network.version == ip.version):
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def canonical_hosts(hosts: Sequence[str]) -> frozenset[str]:
    """Return the canonical spelling of hosts that a recipe lists; brackets may be left out.

    Raises:
        ValueError: One of them is not a host.
    """
    return frozenset(
        canonical_host(f"[{host}]" if ":" in host and not host.startswith("[") else host)
        for host in hosts
    )


class PublicResolver(AbstractResolver):
    """Resolves host names to public addresses only; aiohttp connects to what it returns.

    So the address that was checked is the one that is connected to, whatever the name resolves to
    a moment later.

    Args:
        private_hosts: Hosts that may have private addresses.
    """

    def __init__(self, private_hosts: Sequence[str] = ()) -> None:
        self._private_hosts = canonical_hosts(private_hosts)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Resolve a host name.

        Raises:
            RefusedAddressError: The host has no public address.
            OSError: The name does not resolve.
        """
        infos = await asyncio.get_running_loop().getaddrinfo(
            host, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
        )
        resolved: list[ResolveResult] = [
            {
                "hostname": host,
                "host": str(address[0]),
                "port": int(address[1]),
                "family": found,
                "proto": proto,
                "flags": socket.AI_NUMERICHOST,
            }
            for found, _, proto, _, address in infos
            if found in (socket.AF_INET, socket.AF_INET6)
        ]
        if host.removesuffix(".").lower() in self._private_hosts:
            return resolved
        public = [entry for entry in resolved if is_public(entry["host"])]
        if not public:
            addresses = ", ".join(sorted({entry["host"] for entry in resolved}))
            raise RefusedAddressError(f"{host} is {addresses}, which is not a public address")
        return public

    async def close(self) -> None:
        """Nothing is kept open."""
