"""Download images from untrusted URLs, politely and safely.

Only http and https, and only public addresses: the address that was checked is the one that is
connected to, at every redirect. Time, size and number of redirects are bounded. robots.txt
(RFC 9309) and opt-out headers are respected, and each host gets few requests at once. Every URL
gives exactly one result: the bytes, or a problem with one of the reject reasons.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import random
import socket
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from protego import Protego
from yarl import URL

from consomme.base.bounds import NonNegativeInt, PositiveFloat, PositiveInt
from consomme.base.checked import Checked

_CHUNK_BYTES = 1 << 16
_MAX_ROBOTS_BYTES = 500 * 1024
"""Only this much of a robots.txt is read; RFC 9309 asks crawlers for at least as much."""

_BUSY_STATUS = (429, 503)
_REDIRECT_STATUS = (301, 302, 303, 307, 308)


@dataclass(frozen=True, kw_only=True)
class FetchPolicy(Checked):
    """Limits and manners of the downloader."""

    user_agent: str = "consomme"
    """The `User-Agent` header; robots.txt rules are looked up for it."""

    timeout_s: PositiveFloat = 20.0
    """Timeout in seconds of one request, to the last byte; each redirect is a new request."""

    connect_timeout_s: PositiveFloat = 5.0
    """Timeout in seconds for establishing a connection."""

    max_mb: PositiveFloat = 32.0
    """Largest image in megabytes (2**20 bytes)."""

    max_redirects: NonNegativeInt = 5
    """Redirects followed per URL."""

    concurrency: PositiveInt = 64
    """Concurrent requests per worker."""

    per_host: PositiveInt = 4
    """Concurrent requests to one host."""

    num_tries: PositiveInt = 2
    """Tries per URL if the server is busy, times out or drops the connection; any other answer is
    final."""

    respect_robots: bool = True
    """Whether to obey robots.txt, which is read once per host."""

    opt_out: tuple[str, ...] = ("noai", "noimageai", "noindex", "noimageindex")
    """Directives in `X-Robots-Tag` that forbid the use of an image."""

    private_hosts: tuple[str, ...] = ()
    """Host names that may resolve to private addresses, such as your own server."""


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A downloaded body."""

    data: bytes
    url: str
    """The URL after redirects."""

    content_type: str = ""


@dataclass(frozen=True, kw_only=True)
class FetchProblem:
    """Why a URL could not be downloaded."""

    reason: str
    """One of `consomme.base.sample.REJECT_REASONS`."""

    detail: str


class RefusedAddressError(OSError):
    """A host resolves to addresses that may not be connected to."""


class Fetcher:
    """Downloads lists of URLs; keeps parsed robots.txt files between calls.

    Args:
        policy: Limits and manners.
    """

    def __init__(self, policy: FetchPolicy) -> None:
        self.policy = policy
        self._robots: dict[str, Protego | FetchProblem] = {}

    def fetch(self, urls: Sequence[str]) -> list[Fetched | FetchProblem]:
        """Download URLs concurrently.

        Returns:
            One result per URL, in order.
        """
        return asyncio.run(self._fetch_all(urls))

    async def _fetch_all(self, urls: Sequence[str]) -> list[Fetched | FetchProblem]:
        policy = self.policy
        connector = aiohttp.TCPConnector(
            limit=policy.concurrency,
            limit_per_host=policy.per_host,
            resolver=PublicResolver(policy.private_hosts),
            use_dns_cache=True,
        )
        timeout = aiohttp.ClientTimeout(
            total=policy.timeout_s, sock_connect=policy.connect_timeout_s
        )
        async with aiohttp.ClientSession(
            connector=connector,
            timeout=timeout,
            headers={"User-Agent": policy.user_agent, "Accept": "image/*,*/*;q=0.5"},
            # No cookies are kept.
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        ) as session:
            fetches = _FetchSession(session, policy, self._robots)
            return await asyncio.gather(*(fetches.get(url) for url in urls))


@dataclass
class _FetchSession:
    session: aiohttp.ClientSession
    policy: FetchPolicy
    robots: dict[str, Protego | FetchProblem]
    host_slots: dict[str, asyncio.Semaphore] = field(init=False)
    robots_locks: dict[str, asyncio.Lock] = field(init=False)
    slots: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self.host_slots = defaultdict(lambda: asyncio.Semaphore(self.policy.per_host))
        self.robots_locks = defaultdict(asyncio.Lock)
        self.slots = asyncio.Semaphore(self.policy.concurrency)

    async def get(self, text: str) -> Fetched | FetchProblem:
        """Download one URL, with retries."""
        problem = FetchProblem(reason="url_unreachable", detail="never tried")
        for attempt in range(self.policy.num_tries):
            if attempt:
                await asyncio.sleep(random.uniform(0.2, 1.0) * 2**attempt)
            result = await self._get_once(text)
            if isinstance(result, Fetched):
                return result
            problem, is_final = result
            if is_final:
                break
        return problem

    async def _get_once(self, text: str) -> Fetched | tuple[FetchProblem, bool]:
        """Try once; with a problem comes whether it is final."""
        try:
            return await self._follow_redirects(text)
        except TimeoutError:
            return _problem("url_timeout", f"no answer within {self.policy.timeout_s:g} s"), False
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, RefusedAddressError):
                return _problem("url_refused", str(error.os_error)), True
            return _problem("url_unreachable", str(error)), False
        except aiohttp.InvalidURL as error:
            return _problem("url_refused", str(error)), True
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return _problem("url_unreachable", f"{type(error).__name__}: {error}"), False

    async def _follow_redirects(self, text: str) -> Fetched | tuple[FetchProblem, bool]:
        try:
            url = URL(text.strip())
        except ValueError as error:
            return _problem("url_refused", f"not a URL: {error}"), True
        for _ in range(self.policy.max_redirects + 1):
            refusal = refusal_reason(url, self.policy.private_hosts)
            if refusal:
                return _problem("url_refused", refusal), True
            if self.policy.respect_robots:
                problem = await self._check_robots(url)
                if problem:
                    return problem, True
            async with self._request(url) as response:
                if response.status not in _REDIRECT_STATUS:
                    return await self._read_body(response)
                location = response.headers.get("Location", "")
                if not location:
                    return _problem("url_status", f"{response.status} without a Location"), True
                url = url.join(URL(location))
        return _problem("url_status", f"more than {self.policy.max_redirects} redirects"), True

    @contextlib.asynccontextmanager
    async def _request(self, url: URL) -> AsyncIterator[aiohttp.ClientResponse]:
        # Waiting for the host's slot first keeps a slow host from occupying all slots.
        async with self.host_slots[url.host or ""], self.slots:
            async with self.session.get(url, allow_redirects=False) as response:
                yield response

    async def _read_body(
        self, response: aiohttp.ClientResponse
    ) -> Fetched | tuple[FetchProblem, bool]:
        if response.status != 200:
            text = f"{response.status} {response.reason or ''}".strip()
            return _problem("url_status", text), response.status not in _BUSY_STATUS
        directives = {
            word.strip().lower()
            for line in response.headers.getall("X-Robots-Tag", [])
            for word in line.rpartition(":")[2].split(",")
        }
        opt_outs = sorted(directives & set(self.policy.opt_out))
        if opt_outs:
            return _problem("url_opted_out", f"X-Robots-Tag: {', '.join(opt_outs)}"), True
        max_bytes = int(self.policy.max_mb * 2**20)
        body = bytearray()
        if (response.content_length or 0) > max_bytes:
            size = f"{response.content_length} bytes announced, at most {max_bytes}"
            return _problem("url_too_large", size), True
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            body += chunk
            if len(body) > max_bytes:
                return _problem("url_too_large", f"more than {max_bytes} bytes"), True
        return Fetched(data=bytes(body), url=str(response.url), content_type=response.content_type)

    async def _check_robots(self, url: URL) -> FetchProblem | None:
        """Check a URL against its host's robots.txt; None if it may be fetched."""
        origin = str(url.origin())
        async with self.robots_locks[origin]:
            if origin not in self.robots:
                self.robots[origin] = await self._read_robots(url.origin())
        rules = self.robots[origin]
        if isinstance(rules, FetchProblem):
            return rules
        if rules.can_fetch(str(url), self.policy.user_agent):
            return None
        return _problem("url_opted_out", f"{origin}/robots.txt forbids it")

    async def _read_robots(self, origin: URL) -> Protego | FetchProblem:
        """Read robots.txt. By RFC 9309 a 4xx allows everything, a failing server nothing."""
        url = origin / "robots.txt"
        try:
            for _ in range(self.policy.max_redirects + 1):
                refusal = refusal_reason(url, self.policy.private_hosts)
                if refusal:
                    return _problem("url_refused", refusal)
                async with self._request(url) as response:
                    if response.status in _REDIRECT_STATUS and response.headers.get("Location"):
                        url = url.join(URL(response.headers["Location"]))
                        continue
                    if response.status >= 500 or response.status in _BUSY_STATUS:
                        text = f"{url} answers {response.status}; its rules cannot be read now"
                        return _problem("url_unreachable", text)
                    body = bytearray()
                    if response.status == 200:
                        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                            body += chunk
                            if len(body) >= _MAX_ROBOTS_BYTES:
                                break
                    # `utf-8-sig` drops a byte order mark, which would hide the first line.
                    text = body[:_MAX_ROBOTS_BYTES].decode("utf-8-sig", "replace")
                    return Protego.parse(text)
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, RefusedAddressError):
                return _problem("url_refused", str(error.os_error))
            return _problem("url_unreachable", f"{url}: {error}")
        except aiohttp.InvalidURL as error:
            return _problem("url_refused", str(error))
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return _problem("url_unreachable", f"{url}: {type(error).__name__}: {error}")
        return _problem("url_status", f"{url}: more than {self.policy.max_redirects} redirects")


class PublicResolver(AbstractResolver):
    """Resolves host names to public addresses only; aiohttp connects to what it returns.

    Args:
        private_hosts: Host names that may have private addresses.
    """

    def __init__(self, private_hosts: Sequence[str] = ()) -> None:
        self._private_hosts = frozenset(private_hosts)
        self._inner = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Resolve a host name.

        Raises:
            RefusedAddressError: The host has no public address.
            OSError: The name does not resolve.
        """
        resolved = await self._inner.resolve(host, port, family)
        if host in self._private_hosts:
            return resolved
        public = [entry for entry in resolved if is_public(entry["host"])]
        if not public:
            addresses = ", ".join(sorted({entry["host"] for entry in resolved}))
            raise RefusedAddressError(f"{host} is {addresses}, which is not a public address")
        return public

    async def close(self) -> None:
        """Release the inner resolver."""
        await self._inner.close()


def refusal_reason(url: URL, private_hosts: Sequence[str] = ()) -> str:
    """Explain why a URL may not be fetched; empty if it may. No name is resolved here."""
    if url.scheme not in ("http", "https"):
        return f"found {url.scheme or 'no scheme'}, expected http or https"
    if not url.host:
        return "no host"
    if url.user or url.password:
        return "it holds a user or password"
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(url.host)
        if url.host not in private_hosts and not is_public(url.host):
            return f"{url.host} is not a public address"
    return ""


def is_public(address: str) -> bool:
    """Check that an IP address is globally reachable; embedded IPv4 addresses are unwrapped."""
    ip: Any = ipaddress.ip_address(address.partition("%")[0])
    if ip.version == 6:
        wrapped = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if ip in _NAT64:
            wrapped = ipaddress.ip_address(int(ip) & 0xFFFFFFFF)
        if wrapped:
            return is_public(str(wrapped))
    return bool(ip.is_global) and not ip.is_multicast and not ip.is_reserved


_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def _problem(reason: str, detail: str) -> FetchProblem:
    return FetchProblem(reason=reason, detail=detail[:300])
