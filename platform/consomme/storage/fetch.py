"""Fetch pictures from the web, politely and without being led anywhere else.

One decision is made here: what a stranger's URL may make us do. Only http and https, only public
addresses (the address that was checked is the one that is connected to, at every redirect), a bound
on time, size and redirects; robots.txt and opt-out headers are respected; few requests per host at
once. Every URL comes back once, as bytes or as a problem out of the vocabulary of rejects.
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
from urllib.robotparser import RobotFileParser

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

_CHUNK = 1 << 16
_ROBOTS_BYTES = 500 * 1024
"""What RFC 9309 asks a crawler to read of a robots.txt at least."""

_BUSY = (429, 503)
_REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True, kw_only=True)
class FetchPolicy:
    """How to behave on the web."""

    user_agent: str = "consomme"
    """Who we say we are, and whom robots.txt rules are looked up for."""

    timeout_s: float = 20.0
    """Seconds for one request, from its turn to the last byte; each redirect is one."""

    connect_timeout_s: float = 5.0
    """Seconds until a connection must stand."""

    max_mb: float = 32.0
    """Megabytes (2**20) of one picture."""

    max_redirects: int = 5
    """Redirects that are followed."""

    concurrency: int = 64
    """Requests under way at once, per worker."""

    per_host: int = 4
    """Of these to one host."""

    num_tries: int = 2
    """Tries per URL when a server is busy, silent or breaks off; other answers are final."""

    respect_robots: bool = True
    """Whether robots.txt is asked for, once per host."""

    opt_out: tuple[str, ...] = ("noai", "noimageai", "noindex", "noimageindex")
    """Directives in `X-Robots-Tag` that mean no."""

    private_hosts: tuple[str, ...] = ()
    """Names of hosts that may have private addresses, such as a server of your own."""


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A body."""

    data: bytes
    url: str
    """Where it came from in the end."""

    content_type: str = ""


@dataclass(frozen=True, kw_only=True)
class FetchProblem:
    """Why there is none."""

    reason: str
    """A word from `consomme.base.sample.REJECT_REASONS`."""

    detail: str


class RefusedAddressError(OSError):
    """The address is none we may talk to."""


class Fetcher:
    """Fetches lists of URLs; remembers robots.txt between them.

    Args:
        policy: How to behave.
    """

    def __init__(self, policy: FetchPolicy) -> None:
        self.policy = policy
        self._robots: dict[str, RobotFileParser | FetchProblem] = {}

    def fetch(self, urls: Sequence[str]) -> list[Fetched | FetchProblem]:
        """Fetch each URL.

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
            # A cookie is a memory that pictures do not need.
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        ) as session:
            visit = _Visit(session, policy, self._robots)
            return await asyncio.gather(*(visit.get(url) for url in urls))


@dataclass
class _Visit:
    session: aiohttp.ClientSession
    policy: FetchPolicy
    robots: dict[str, RobotFileParser | FetchProblem]
    hosts: dict[str, asyncio.Semaphore] = field(init=False)
    locks: dict[str, asyncio.Lock] = field(init=False)
    all: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self.hosts = defaultdict(lambda: asyncio.Semaphore(self.policy.per_host))
        self.locks = defaultdict(asyncio.Lock)
        self.all = asyncio.Semaphore(self.policy.concurrency)

    async def get(self, text: str) -> Fetched | FetchProblem:
        """Fetch one URL, trying again if that may help."""
        problem = FetchProblem(reason="url_unreachable", detail="never tried")
        for number in range(self.policy.num_tries):
            if number:
                await asyncio.sleep(random.uniform(0.2, 1.0) * 2**number)
            found = await self._try(text)
            if isinstance(found, Fetched):
                return found
            problem, is_final = found
            if is_final:
                break
        return problem

    async def _try(self, text: str) -> Fetched | tuple[FetchProblem, bool]:
        """Fetch once; a problem says whether it is final."""
        try:
            return await self._follow(text)
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

    async def _follow(self, text: str) -> Fetched | tuple[FetchProblem, bool]:
        try:
            url = URL(text.strip())
        except ValueError as error:
            return _problem("url_refused", f"not a URL: {error}"), True
        for _ in range(self.policy.max_redirects + 1):
            refusal = refused(url, self.policy.private_hosts)
            if refusal:
                return _problem("url_refused", refusal), True
            if self.policy.respect_robots:
                banned = await self._banned(url)
                if banned:
                    return banned, True
            async with self._request(url) as answer:
                if answer.status not in _REDIRECTS:
                    return await self._body(answer)
                place = answer.headers.get("Location", "")
                if not place:
                    return _problem("url_status", f"{answer.status} without a Location"), True
                url = url.join(URL(place))
        return _problem("url_status", f"more than {self.policy.max_redirects} redirects"), True

    @contextlib.asynccontextmanager
    async def _request(self, url: URL) -> AsyncIterator[aiohttp.ClientResponse]:
        # A host's own turn comes first, so that one slow host does not take all the places.
        async with self.hosts[url.host or ""], self.all:
            async with self.session.get(url, allow_redirects=False) as answer:
                yield answer

    async def _body(self, answer: aiohttp.ClientResponse) -> Fetched | tuple[FetchProblem, bool]:
        if answer.status != 200:
            text = f"{answer.status} {answer.reason or ''}".strip()
            return _problem("url_status", text), answer.status not in _BUSY
        said = {
            word.strip().lower()
            for line in answer.headers.getall("X-Robots-Tag", [])
            for word in line.rpartition(":")[2].split(",")
        }
        no = sorted(said & set(self.policy.opt_out))
        if no:
            return _problem("url_opted_out", f"X-Robots-Tag: {', '.join(no)}"), True
        most = int(self.policy.max_mb * 2**20)
        body = bytearray()
        if (answer.content_length or 0) > most:
            size = f"{answer.content_length} bytes announced, at most {most}"
            return _problem("url_too_large", size), True
        async for chunk in answer.content.iter_chunked(_CHUNK):
            body += chunk
            if len(body) > most:
                return _problem("url_too_large", f"more than {most} bytes"), True
        return Fetched(data=bytes(body), url=str(answer.url), content_type=answer.content_type)

    async def _banned(self, url: URL) -> FetchProblem | None:
        """Ask the host's robots.txt."""
        origin = str(url.origin())
        async with self.locks[origin]:
            if origin not in self.robots:
                self.robots[origin] = await self._read_robots(url.origin())
        rules = self.robots[origin]
        if isinstance(rules, FetchProblem):
            return rules
        if rules.can_fetch(self.policy.user_agent, str(url)):
            return None
        return _problem("url_opted_out", f"{origin}/robots.txt forbids it")

    async def _read_robots(self, origin: URL) -> RobotFileParser | FetchProblem:
        """Read robots.txt; RFC 9309: a 4xx allows everything, a failing server forbids."""
        rules = RobotFileParser()
        url = origin / "robots.txt"
        try:
            for _ in range(self.policy.max_redirects + 1):
                refusal = refused(url, self.policy.private_hosts)
                if refusal:
                    return _problem("url_refused", refusal)
                async with self._request(url) as answer:
                    if answer.status in _REDIRECTS and answer.headers.get("Location"):
                        url = url.join(URL(answer.headers["Location"]))
                        continue
                    if answer.status >= 500 or answer.status in _BUSY:
                        text = f"{url} answers {answer.status}; asking is not possible now"
                        return _problem("url_unreachable", text)
                    text = ""
                    if answer.status == 200:
                        body = await answer.content.read(_ROBOTS_BYTES)
                        text = body.decode("utf-8", "replace")
                    rules.parse(text.splitlines())
                    return rules
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
    """Resolves names to public addresses only; what it returns is what is connected to."""

    def __init__(self, private_hosts: Sequence[str] = ()) -> None:
        """Take names that may have private addresses all the same."""
        self._private_hosts = frozenset(private_hosts)
        self._inner = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Resolve a name.

        Raises:
            OSError: It has no public address.
        """
        found = await self._inner.resolve(host, port, family)
        if host in self._private_hosts:
            return found
        public = [entry for entry in found if is_public(entry["host"])]
        if not public:
            addresses = ", ".join(sorted({entry["host"] for entry in found}))
            raise RefusedAddressError(f"{host} is {addresses}, which is not a public address")
        return public

    async def close(self) -> None:
        """Nothing is held."""
        await self._inner.close()


def refused(url: URL, private_hosts: Sequence[str] = ()) -> str:
    """Say why a URL may not be fetched; empty if it may, as far as can be told without its name."""
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
    """Tell whether an IP address is one anybody may reach, also when it is wrapped in another."""
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
