"""The downloader against a real server: accepted and refused URLs, limits, robots.txt."""

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from yarl import URL

from consomme.storage.fetch import (
    Fetched,
    Fetcher,
    FetchPolicy,
    FetchProblem,
    is_public,
    refusal_reason,
)

PICTURE = b"\x89PNG not really, but nobody looks here"


@dataclass
class Site:
    """A well- or badly-behaved web server on the loopback."""

    robots: str = "User-agent: *\nDisallow: /forbidden/\n"
    robots_status: int = 200
    robots_pause_s: float = 0.0
    """Pause in the middle of the response for robots.txt."""
    seen: Counter[str] = field(default_factory=Counter)
    at_once: int = 0
    most_at_once: int = 0
    port: int = 0

    def url(self, path: str) -> str:
        return f"http://localhost:{self.port}{path}"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.seen[request.path] += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self._answer(request)
        finally:
            self.at_once -= 1

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        if path == "/robots.txt" and self.robots_pause_s:
            response = web.StreamResponse()
            await response.prepare(request)
            body = self.robots.encode()
            await response.write(body[: len(body) // 2])
            await asyncio.sleep(self.robots_pause_s)
            await response.write(body[len(body) // 2 :])
            return response
        if path == "/robots.txt":
            return web.Response(text=self.robots, status=self.robots_status)
        if path == "/slow":
            await asyncio.sleep(3)
        if path.startswith("/pause"):
            await asyncio.sleep(0.05)
        if path == "/busy" and self.seen[path] == 1:
            return web.Response(status=503)
        if path == "/gone":
            return web.Response(status=404)
        if path == "/noai":
            return web.Response(body=PICTURE, headers={"X-Robots-Tag": "consomme: noindex, noai"})
        if path == "/to":
            return web.Response(status=302, headers={"Location": request.query["url"]})
        if path == "/loop":
            return web.Response(status=301, headers={"Location": "/loop"})
        if path == "/endless":
            response = web.StreamResponse()
            response.enable_chunked_encoding()
            await response.prepare(request)
            for _ in range(100):
                await response.write(bytes(1 << 16))
            return response
        if path == "/cut":
            response = web.StreamResponse(headers={"Content-Length": "100000"})
            await response.prepare(request)
            await response.write(b"x" * 100)
            assert request.transport
            request.transport.abort()
            return response
        return web.Response(body=PICTURE, content_type="image/png")


@pytest.fixture
def site() -> Iterator[Site]:
    made, started, stop = Site(), threading.Event(), threading.Event()

    async def serve() -> None:
        app = web.Application()
        app.router.add_get("/{tail:.*}", made.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        listening = web.TCPSite(runner, "127.0.0.1", 0)
        await listening.start()
        made.port = listening._server.sockets[0].getsockname()[1]
        started.set()
        while not stop.is_set():
            await asyncio.sleep(0.02)
        await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    started.wait(10)
    yield made
    stop.set()
    thread.join()


def policy(**changes: object) -> FetchPolicy:
    return FetchPolicy(
        **{"private_hosts": ("localhost",), "timeout_s": 1.0, "max_mb": 1.0, **changes}
    )


def fetch(url: str, **changes: object) -> Fetched | FetchProblem:
    (found,) = Fetcher(policy(**changes)).fetch([url])
    return found


def test_pictures_come_back_in_order_also_over_redirects(site: Site) -> None:
    urls = [site.url("/a.png"), site.url("/to?url=/b.png"), site.url("/busy"), site.url("/gone")]
    first, second, busy, gone = Fetcher(policy()).fetch(urls)
    assert isinstance(first, Fetched)
    assert (first.data, first.content_type) == (PICTURE, "image/png")
    assert isinstance(second, Fetched)
    assert second.url == site.url("/b.png")
    assert isinstance(busy, Fetched), "a busy server is asked again"
    assert gone == FetchProblem(reason="url_status", detail="404 Not Found")
    assert site.seen["/gone"] == 1, "a final answer is not asked for twice"
    assert site.seen["/robots.txt"] == 1, "robots.txt is read once per host"


@pytest.mark.parametrize(
    ("path", "reason", "detail"),
    [
        ("/slow", "url_timeout", "within 1 s"),
        ("/endless", "url_too_large", "more than 1048576 bytes"),
        ("/cut", "url_unreachable", "PayloadError"),
        ("/loop", "url_status", "more than 5 redirects"),
        ("/noai", "url_opted_out", "X-Robots-Tag: noai, noindex"),
        ("/forbidden/x.png", "url_opted_out", "robots.txt forbids it"),
        ("/to?url=file:///etc/passwd", "url_refused", "found file, expected http"),
        ("/to?url=http://127.0.0.1:9/", "url_refused", "127.0.0.1 is not a public address"),
        ("/to?url=http://169.254.169.254/latest/", "url_refused", "169.254.169.254 is not"),
        ("/to?url=http://[::ffff:10.0.0.1]/", "url_refused", "is not a public address"),
    ],
)
def test_what_is_not_taken(site: Site, path: str, reason: str, detail: str) -> None:
    found = fetch(site.url(path))
    assert isinstance(found, FetchProblem)
    assert found.reason == reason
    assert detail in found.detail


def test_a_name_that_leads_to_a_private_address_is_refused(site: Site) -> None:
    for url in (site.url("/a.png"), f"http://2130706433:{site.port}/a.png"):
        found = fetch(url, private_hosts=())
        assert isinstance(found, FetchProblem)
        assert found.reason == "url_refused"
        assert "not a public address" in found.detail or "not a canonical" in found.detail
    assert not site.seen, "no request was sent"


@pytest.mark.parametrize("status", [503, 500])
def test_a_robots_txt_that_cannot_be_had_is_a_no_for_now(site: Site, status: int) -> None:
    site.robots_status = status
    found = fetch(site.url("/a.png"), num_tries=1)
    assert isinstance(found, FetchProblem)
    assert found.reason == "url_unreachable"
    assert site.seen["/a.png"] == 0


def test_no_robots_txt_means_yes_and_asking_can_be_left_out(site: Site) -> None:
    site.robots_status = 404
    assert isinstance(fetch(site.url("/forbidden/x.png")), Fetched)
    site.robots_status = 200
    assert isinstance(fetch(site.url("/forbidden/x.png"), respect_robots=False), Fetched)


@pytest.mark.parametrize(
    ("robots", "refused_paths", "allowed_paths"),
    [
        pytest.param(
            "User-agent: *\nDisallow: /*.jpg$\n",
            ["/a.jpg", "/deep/er/b.jpg"],
            ["/a.png", "/a.jpg.png", "/a.jpg?size=big"],
            id="wildcards",
        ),
        pytest.param(
            "User-agent: *\nAllow: /\nDisallow: /images/\n",
            ["/images/a.png"],
            ["/a.png"],
            id="the longest match decides, not the first",
        ),
        pytest.param(
            "User-agent: *\nDisallow: /images/\nAllow: /images/free/\nDisallow: /images/free/no",
            ["/images/a.png", "/images/free/no.png"],
            ["/images/free/a.png"],
            id="three lengths",
        ),
        pytest.param(
            "User-agent: *\nDisallow: /page\nAllow: /page\n",
            [],
            ["/page.png"],
            id="of two equally long rules, allow decides",
        ),
        pytest.param(
            "User-agent: *\nDisallow: /\n\nUser-agent: other\nUser-agent: consomme\n"
            "Disallow: /images/\n",
            ["/images/a.png"],
            ["/a.png"],
            id="the group that names us replaces the group for all",
        ),
        pytest.param(
            "User-agent: Consomme\nDisallow: /\n\nUser-agent: *\nAllow: /\n",
            ["/a.png"],
            [],
            id="names are compared without case",
        ),
        pytest.param(
            "User-agent: other\nDisallow: /\n",
            [],
            ["/a.png"],
            id="a group for another crawler says nothing to us",
        ),
        pytest.param(
            "\ufeffUser-agent: *\nDisallow: /images/\n",
            ["/images/a.png"],
            ["/a.png"],
            id="a byte order mark",
        ),
        pytest.param(
            "User-agent: *\nDisallow: /b%61r/\nDisallow: /ü/\n",
            ["/bar/a.png", "/%C3%BC/a.png", "/ü/b.png"],
            ["/a.png"],
            id="percent-encoding makes no difference",
        ),
    ],
)
def test_robots_txt_is_read_as_rfc_9309_says(
    site: Site, robots: str, refused_paths: list[str], allowed_paths: list[str]
) -> None:
    site.robots = robots
    fetcher = Fetcher(policy())
    for path, found in zip(
        refused_paths, fetcher.fetch([site.url(p) for p in refused_paths]), strict=True
    ):
        assert isinstance(found, FetchProblem), path
        assert found.reason == "url_opted_out", path
    for path, found in zip(
        allowed_paths, fetcher.fetch([site.url(p) for p in allowed_paths]), strict=True
    ):
        assert isinstance(found, Fetched), path


def test_robots_txt_is_read_to_its_end_also_when_it_comes_in_pieces(site: Site) -> None:
    site.robots = f"# {'a comment ' * 20}\nUser-agent: *\nDisallow: /images/\n"
    site.robots_pause_s = 0.1
    found = fetch(site.url("/images/a.png"))
    assert isinstance(found, FetchProblem)
    assert found.reason == "url_opted_out"


def test_of_a_huge_robots_txt_the_first_500_kib_count(site: Site) -> None:
    rule = "User-agent: *\nDisallow: /images/\n"
    site.robots = rule + "#" * (2 << 20)
    assert isinstance(fetch(site.url("/images/a.png")), FetchProblem)
    site.robots = "#" * (500 << 10) + "\n" + rule
    assert isinstance(fetch(site.url("/images/a.png")), Fetched)


def test_rules_for_the_user_agent_of_the_policy_count(site: Site) -> None:
    site.robots = "User-agent: *\nDisallow: /\n\nUser-agent: research-bot\nDisallow: /images/\n"
    agent = "Research-Bot/2.1 (+https://example.org/bot)"
    assert isinstance(fetch(site.url("/a.png"), user_agent=agent), Fetched)
    assert isinstance(fetch(site.url("/images/a.png"), user_agent=agent), FetchProblem)
    assert isinstance(fetch(site.url("/a.png")), FetchProblem)


def test_a_host_gets_few_requests_at_once(site: Site) -> None:
    found = Fetcher(policy(per_host=3)).fetch([site.url(f"/pause{k}") for k in range(30)])
    assert all(isinstance(item, Fetched) for item in found)
    assert site.most_at_once == 3


@pytest.mark.parametrize(
    "address",
    ["10.1.2.3", "127.0.0.1", "169.254.169.254", "192.168.0.1", "100.64.0.1", "0.0.0.0", "::1",
     "fe80::1", "fc00::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "224.0.0.1"],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)
    assert is_public("8.8.8.8")
    assert is_public("2606:4700:4700::1111")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://example.org/a", "found ftp"),
        ("/a.png", "found no scheme"),
        ("http://user:pw@example.org/", "user or password"),
    ],
)
def test_urls_that_are_never_fetched(url: str, why: str) -> None:
    assert why in refusal_reason(URL(url))
    assert refusal_reason(URL("https://example.org/a.png")) == ""
