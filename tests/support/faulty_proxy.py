"""A proxy between a client and an HTTP server that injects random faults, with a seed.

    with FaultyProxy("http://127.0.0.1:8333", faults={"slow_down": 0.1}, seed=7) as proxy:
        ...  # talk to proxy.url
    print(proxy.counts)

Faults:
    slow_down    the request is not passed on; 503 SlowDown comes back
    error        the request is not passed on; 500 InternalError comes back
    conflict     the request is not passed on; 409 ConditionalRequestConflict comes back, as from
                 AWS when two conditional writes meet
    reset        the request is not passed on; the connection is reset
    stall        the request is not passed on; nothing comes for `stall_s`, then a reset
    delay        the request is passed on after `delay_s`
    cut          the answer's body ends half-way and the connection is reset
    drop_answer  the request is passed on and carried out, its answer is lost: the client cannot
                 know whether it happened
"""

import contextlib
import http.client
import os
import random
import socket
import struct
import threading
from collections import Counter, deque
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

FAULTS = ("slow_down", "error", "conflict", "reset", "stall", "delay", "cut", "drop_answer")

_REFUSALS = {
    "slow_down": (503, "SlowDown"),
    "error": (500, "InternalError"),
    "conflict": (409, "ConditionalRequestConflict"),
}

_ERROR = (
    '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{0}</Code><Message>{0}</Message></Error>'
)
_HOP_HEADERS = {"connection", "expect", "keep-alive", "transfer-encoding"}


class FaultyProxy:
    """The proxy; a context manager, or `start` and `stop`. It listens on the loopback.

    Args:
        target: URL of the server behind it.
        faults: Chance of each fault per request, in [0, 1]; together at most 1. May be changed
            while it runs.
        seed: Of the dice. Requests in flight at once get their throws in the order they come.
        stall_s: See `stall`.
        delay_s: See `delay`.
    """

    def __init__(
        self,
        target: str,
        faults: Mapping[str, float] | None = None,
        seed: int = 0,
        *,
        stall_s: float = 2.0,
        delay_s: float = 0.2,
    ) -> None:
        self.faults = dict(faults or {})
        unknown = set(self.faults) - set(FAULTS)
        if unknown:
            raise ValueError(f"unknown faults {sorted(unknown)}; there are {', '.join(FAULTS)}")
        self.counts: Counter[str] = Counter()
        """Requests by `requests`, by method, and by fault."""
        self.stall_s = stall_s
        self.delay_s = delay_s
        self.target = urlsplit(target)
        self.stopped = threading.Event()
        self._dice = random.Random(seed)
        self._lock = threading.Lock()
        self._forced: deque[tuple[str, str, str]] = deque()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def url(self) -> str:
        """URL for clients."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def start(self) -> Self:
        """Serve, in threads of this process."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop serving; open connections break."""
        self.stopped.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def force(self, *faults: str, method: str = "", part: str = "") -> None:
        """Give the next matching requests these faults, one each, in order, before any random ones.

        Args:
            faults: Names of faults; `ok` lets one through.
            method: Only requests with this method; empty for all.
            part: Only requests with this in path or query; empty for all.
        """
        with self._lock:
            self._forced.extend((fault, method, part) for fault in faults)

    def calm(self) -> None:
        """Forget what was forced."""
        with self._lock:
            self._forced.clear()

    def choose(self, method: str, path: str) -> str:
        """Draw the fault of one request: `ok` or the name of a fault."""
        with self._lock:
            self.counts.update(("requests", method))
            fault = self._choose(method, path)
            if fault != "ok":
                self.counts[fault] += 1
            return fault

    def _choose(self, method: str, path: str) -> str:
        for item in self._forced:
            if item[1] in ("", method) and item[2] in path:
                self._forced.remove(item)
                return item[0]
        throw = self._dice.random()
        for fault, chance in self.faults.items():
            throw -= chance
            if throw < 0:
                return fault
        return "ok"

    def __enter__(self) -> Self:
        """Start."""
        return self.start()

    def __exit__(self, *reason: object) -> None:
        """Stop."""
        self.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    proxy: FaultyProxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors of broken connections, which are expected here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server
    _upstream: http.client.HTTPConnection | None = None

    def do_any(self) -> None:
        proxy = self.server.proxy
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = proxy.choose(self.command, self.path)
        if fault in _REFUSALS:
            status, code = _REFUSALS[fault]
            self._answer(
                status, [("Content-Type", "application/xml")], _ERROR.format(code).encode()
            )
            return
        if fault in ("stall", "reset"):
            proxy.stopped.wait(proxy.stall_s if fault == "stall" else 0)
            self._reset()
            return
        if fault == "delay":
            proxy.stopped.wait(proxy.delay_s)
        status, headers, data = self._pass_on(body)
        if fault == "drop_answer":
            self._reset()
        elif fault == "cut" and len(data) > 1:
            self._answer(status, headers, data, sent=len(data) // 2)
            self._reset()
        else:
            self._answer(status, headers, data)

    def _pass_on(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """Send the request as it is; the signature covers the host it was meant for."""
        if self._upstream is None:
            target = self.server.proxy.target
            self._upstream = http.client.HTTPConnection(target.hostname or "", target.port)
        self._upstream.putrequest(
            self.command, self.path, skip_host=True, skip_accept_encoding=True
        )
        for name, value in self.headers.items():
            if name.lower() not in _HOP_HEADERS:
                self._upstream.putheader(name, value)
        self._upstream.endheaders(body)
        answer = self._upstream.getresponse()
        data = answer.read()
        kept = [item for item in answer.getheaders() if item[0].lower() not in _HOP_HEADERS]
        return answer.status, kept, data

    def _answer(
        self, status: int, headers: list[tuple[str, str]], data: bytes, sent: int | None = None
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            # The length of the answer to HEAD is the object's.
            if name.lower() != "content-length" or self.command == "HEAD":
                self.send_header(name, value)
        if self.command != "HEAD" and status != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:sent])

    def _reset(self) -> None:
        """Close with RST, as a crashing server or a firewall does."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())

    def finish(self) -> None:
        """Close both connections."""
        if self._upstream is not None:
            self._upstream.close()
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


for _method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
    setattr(_Handler, f"do_{_method}", _Handler.do_any)
