"""A web server on plain sockets: it sends what it is told, byte by byte, and keeps what it got."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType

Headers = Sequence[tuple[bytes, bytes]]


def response(
    status: int = 200, headers: Headers = (), body: bytes = b"", *, length: int | None = None
) -> bytes:
    """Write a response; `length` is announced in place of the true length."""
    lines = [b"HTTP/1.1 %d Whatever" % status, b"Connection: close"]
    lines.append(b"Content-Length: %d" % (len(body) if length is None else length))
    lines += [name + b": " + value for name, value in headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


@dataclass
class RawServer:
    """Answers each request by a function of its target.

    Args:
        answer: Gives the bytes of the whole response for a request target.
        in_pieces: Whether the response to a target is sent byte by byte.
    """

    answer: Callable[[bytes], bytes]
    in_pieces: Callable[[bytes], bool] = lambda target: False
    address: str = "127.0.0.1"
    requests: list[bytes] = field(default_factory=list)
    """Heads of all requests, in order of arrival."""

    def __enter__(self) -> RawServer:
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        self._socket = socket.create_server((self.address, 0), family=family)
        self.port: int = self._socket.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._accepting.join(10)
        for thread in self._threads:
            thread.join(10)

    @property
    def targets(self) -> list[bytes]:
        """Request targets other than robots.txt, in order of arrival."""
        targets = [request.split(b" ", 2)[1] for request in self.requests]
        return [target for target in targets if target != b"/robots.txt"]

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=[connection])
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(10)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            head = b""
            while b"\r\n\r\n" not in head:
                more = connection.recv(65536)
                if not more:
                    return
                head += more
            self.requests.append(head)
            target = head.split(b" ", 2)[1]
            data = self.answer(target)
            if not self.in_pieces(target):
                connection.sendall(data)
                return
            for position in range(len(data)):
                connection.sendall(data[position : position + 1])
                if position % 8 == 0:
                    time.sleep(0.0002)
