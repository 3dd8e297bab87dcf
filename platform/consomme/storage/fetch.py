"""Download images from untrusted URLs, politely and safely.

Only http and https, and only public addresses: the address that was checked is the one that is
connected to, at every redirect. Time, size and number of redirects are bounded. robots.txt
(RFC 9309) and opt-out headers are respected, and each host gets few requests at once. Every URL
gives exactly one result: the bytes, or a problem with one of the reject reasons.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
from collections import OrderedDict, defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field

import aiohttp
from yarl import URL

from consomme.base.bounds import NonNegativeInt, PositiveFloat, PositiveInt
from consomme.base.checked import Checked, rule
from consomme.storage.web.addresses import PublicResolver, RefusedAddressError, canonical_hosts
from consomme.storage.web.addresses import is_public as is_public
from consomme.storage.web.body import CODINGS, UnknownCodingError, iter_body
from consomme.storage.web.opt_out import opt_outs
from consomme.storage.web.robots import MAX_ROBOTS_BYTES, RobotsRules, product_token
from consomme.storage.web.url import RefusedUrlError, WebUrl, parse_url
from consomme.storage.web.url import refusal_reason as refusal_reason

_BUSY_STATUS = (429, 503)
_REDIRECT_STATUS = (301, 302, 303, 307, 308)
_ROBOTS_REDIRECTS = 5
"""RFC 9309 asks crawlers to follow at least so many for robots.txt."""

_ROBOTS_KEPT_S = 24 * 3600.0
"""RFC 9309 asks crawlers not to use a robots.txt for longer than a day."""

_ROBOTS_FAILURE_KEPT_S = 300.0
_MAX_ROBOTS_KEPT = 20_000


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
    """Whether to obey robots.txt, which is read once a day per host."""

    opt_out: tuple[str, ...] = (
        "noai",
        "noimageai",
        "noml",
        "noindex",
        "noimageindex",
        "tdm-reservation",
    )
    """Directives in `X-Robots-Tag` that forbid the use of an image; `noindex` stands for `none`
    and for a past `unavailable_after` too, `tdm-reservation` for the header
    `TDM-Reservation: 1`."""

    private_hosts: tuple[str, ...] = ()
    """Hosts that may have private addresses, such as your own server."""

    @rule
    def _agent(self) -> Iterator[str]:
        if not product_token(self.user_agent) or not self.user_agent.isprintable():
            yield (
                f"user_agent: found {self.user_agent!r}, expected a name on one line, such as"
                " 'mybot/1.0 (+https://example.org/bot)'; robots.txt addresses you by it"
            )

    @rule
    def _hosts(self) -> Iterator[str]:
        for host in self.private_hosts:
            try:
                canonical_hosts([host])
            except ValueError as error:
                yield f"private_hosts: found {host!r}, expected a host without scheme: {error}"


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


class Fetcher:
    """Downloads lists of URLs; keeps parsed robots.txt files between calls.

    Args:
        policy: Limits and manners.
    """

    def __init__(self, policy: FetchPolicy) -> None:
        self.policy = policy
        self._robots: _RobotsCache = OrderedDict()

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
        headers = {
            "User-Agent": policy.user_agent,
            "Accept": "image/*,*/*;q=0.5",
            "Accept-Encoding": ", ".join(CODINGS),
        }
        async with aiohttp.ClientSession(
            connector=connector,
            timeout=timeout,
            headers=headers,
            # No cookies are kept.
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        ) as session:
            fetches = _FetchSession(session, policy, self._robots)
            return await asyncio.gather(*(fetches.get(url) for url in urls))


_RobotsCache = OrderedDict[str, tuple[float, "RobotsRules | FetchProblem"]]
"""By origin: the time until which an answer is used, and the rules or why there are none."""


@dataclass
class _FetchSession:
    session: aiohttp.ClientSession
    policy: FetchPolicy
    robots: _RobotsCache
    host_slots: dict[str, asyncio.Semaphore] = field(init=False)
    robots_locks: dict[str, asyncio.Lock] = field(init=False)
    slots: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self.host_slots = defaultdict(lambda: asyncio.Semaphore(self.policy.per_host))
        self.robots_locks = defaultdict(asyncio.Lock)
        self.slots = asyncio.Semaphore(self.policy.concurrency)
        self.token = product_token(self.policy.user_agent)
        self.private_hosts = canonical_hosts(self.policy.private_hosts)

    async def get(self, text: str) -> Fetched | FetchProblem:
        """Download one URL, with retries."""
        problem = FetchProblem(reason="url_unreachable", detail="never tried")
        for attempt in range(self.policy.num_tries):
            await _pause(attempt)
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
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return self._explain(error)

    def _explain(self, error: Exception) -> tuple[FetchProblem, bool]:
        """Turn an error of a request into a problem, and say whether it is final."""
        if isinstance(error, TimeoutError):
            return _problem("url_timeout", f"no answer within {self.policy.timeout_s:g} s"), False
        if isinstance(error, RefusedUrlError):
            return _problem("url_refused", str(error)), True
        if isinstance(error, UnknownCodingError):
            return _problem("url_not_image", str(error)), True
        if isinstance(error, aiohttp.ClientConnectorError):
            if isinstance(error.os_error, RefusedAddressError):
                return _problem("url_refused", str(error.os_error)), True
            return _problem("url_unreachable", str(error)), False
        # The message may quote the URL, with a signature in its query.
        text = re.sub(r"https?://\S+", "the URL", str(error))
        return _problem("url_unreachable", f"{type(error).__name__}: {text}"), False

    async def _follow_redirects(self, text: str) -> Fetched | tuple[FetchProblem, bool]:
        url = parse_url(text)
        for _ in range(self.policy.max_redirects + 1):
            self._check_address(url)
            if self.policy.respect_robots:
                problem = await self._check_robots(url)
                if problem:
                    return problem, True
            async with self._request(url) as response:
                forbidden = opt_outs(response.raw_headers, self.token, self._opt_out)
                if forbidden and (response.status == 200 or response.status in _REDIRECT_STATUS):
                    return _problem("url_opted_out", forbidden), True
                if response.status not in _REDIRECT_STATUS:
                    return await self._read_body(url, response)
                location = _location(response)
                if not location:
                    return _problem("url_status", f"{response.status} without a Location"), True
                url = parse_url(location, url)
        return _problem("url_status", f"more than {self.policy.max_redirects} redirects"), True

    def _check_address(self, url: WebUrl) -> None:
        """Refuse a host that is an address of its own; names are checked once they are resolved."""
        refusal = refusal_reason(url, self.private_hosts)
        if refusal:
            raise RefusedUrlError(refusal)

    @property
    def _opt_out(self) -> frozenset[str]:
        return frozenset(word.strip().lower() for word in self.policy.opt_out)

    @contextlib.asynccontextmanager
    async def _request(self, url: WebUrl) -> AsyncIterator[aiohttp.ClientResponse]:
        self._check_address(url)
        # As one path, encoded already: yarl and aiohttp would drop an empty query.
        sent = URL(url.origin, encoded=True).with_path(url.target, encoded=True)
        # Waiting for the host's slot first keeps a slow host from occupying all slots.
        async with self.host_slots[url.host], self.slots:
            async with self.session.get(sent, allow_redirects=False) as response:
                yield response

    async def _read_body(
        self, url: WebUrl, response: aiohttp.ClientResponse
    ) -> Fetched | tuple[FetchProblem, bool]:
        if response.status != 200:
            text = f"{response.status} {response.reason or ''}".strip()
            return _problem("url_status", text), response.status not in _BUSY_STATUS
        max_bytes = int(self.policy.max_mb * 2**20)
        body = bytearray()
        if (response.content_length or 0) > max_bytes:
            size = f"{response.content_length} bytes announced, at most {max_bytes}"
            return _problem("url_too_large", size), True
        async for chunk in iter_body(response):
            body += chunk
            if len(body) > max_bytes:
                return _problem("url_too_large", f"more than {max_bytes} bytes"), True
        return Fetched(data=bytes(body), url=str(url), content_type=response.content_type)

    async def _check_robots(self, url: WebUrl) -> FetchProblem | None:
        """Check a URL against its host's robots.txt; None if it may be fetched."""
        origin = url.origin
        async with self.robots_locks[origin]:
            kept_until, rules = self.robots.get(origin, (0.0, None))
            if rules is None or kept_until < time.monotonic():
                rules = await self._read_robots(url)
                is_failure = isinstance(rules, FetchProblem)
                kept_s = _ROBOTS_FAILURE_KEPT_S if is_failure else _ROBOTS_KEPT_S
                self.robots[origin] = (time.monotonic() + kept_s, rules)
                self.robots.move_to_end(origin)
                while len(self.robots) > _MAX_ROBOTS_KEPT:
                    self.robots.popitem(last=False)
        if isinstance(rules, FetchProblem):
            return rules
        if rules.allows(url.target):
            return None
        return _problem("url_opted_out", f"{origin}/robots.txt forbids it")

    async def _read_robots(self, url: WebUrl) -> RobotsRules | FetchProblem:
        """Read a host's robots.txt; by RFC 9309 a host whose rules cannot be read says no."""
        problem = FetchProblem(reason="url_unreachable", detail="never tried")
        for attempt in range(self.policy.num_tries):
            await _pause(attempt)
            try:
                result = await self._read_robots_once(url.at("/robots.txt"))
            except (aiohttp.ClientError, OSError, ValueError) as error:
                result = self._explain(error)
            if isinstance(result, RobotsRules):
                return result
            problem, is_final = result
            if is_final:
                break
        # Whatever went wrong, the picture itself was not asked for.
        reason = "url_refused" if problem.reason == "url_refused" else "url_unreachable"
        return _problem(reason, f"{url.origin}/robots.txt cannot be read: {problem.detail}")

    async def _read_robots_once(self, url: WebUrl) -> RobotsRules | tuple[FetchProblem, bool]:
        num_redirects = max(_ROBOTS_REDIRECTS, self.policy.max_redirects)
        for _ in range(num_redirects + 1):
            async with self._request(url) as response:
                location = _location(response)
                if response.status in _REDIRECT_STATUS and location:
                    url = parse_url(location, url)
                    continue
                if 200 <= response.status < 300:
                    return RobotsRules(await _read_start(response), self.token)
                # A 4xx says that there is no robots.txt, but not this one of them.
                if 400 <= response.status < 500 and response.status not in _BUSY_STATUS:
                    return RobotsRules(b"", self.token)
                return _problem("url_status", f"{response.status}"), False
        return _problem("url_status", f"more than {num_redirects} redirects"), True


async def _pause(attempt: int) -> None:
    """Wait before a try that is not the first."""
    if attempt:
        await asyncio.sleep(random.uniform(0.2, 1.0) * 2**attempt)


def _location(response: aiohttp.ClientResponse) -> bytes:
    """Return the bytes of the `Location` header; as text, those beyond ASCII may be lost."""
    return next((v for k, v in response.raw_headers if k.lower() == b"location"), b"").strip()


async def _read_start(response: aiohttp.ClientResponse) -> bytes:
    """Read a body to its end, or as much of it as counts."""
    body = bytearray()
    async for chunk in iter_body(response):
        body += chunk
        if len(body) >= MAX_ROBOTS_BYTES:
            break
    return bytes(body)


def _problem(reason: str, detail: str) -> FetchProblem:
    return FetchProblem(reason=reason, detail=detail[:300])
