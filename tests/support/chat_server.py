"""A small server with OpenAI's interface that answers with an engine, or as a test wants it."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

from consomme.base.sample import ImageRef, Turn, content_of
from consomme.engines.generation.requests import GenerationEngine, GenerationFailure, Request


class ChatServer(ThreadingHTTPServer):
    """Listens on 127.0.0.1, on a free port."""

    daemon_threads = True
    request_queue_size = 128  # More than any test opens at once; the default of five refuses some.

    def __init__(self, engine: GenerationEngine | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.engine = engine
        self.tricks: list[Callable[[_Handler, dict[str, Any]], bool]] = []
        """Called with each request first; returns True if it has answered it."""
        self.asked: list[dict[str, Any]] = []
        self.ends = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect."""


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.reply(200, {"object": "list", "data": []})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        if any(trick(self, body) for trick in list(self.server.tricks)):
            return
        assert self.server.engine is not None
        (generation,) = self.server.engine.generate([to_request(body)])
        if isinstance(generation, GenerationFailure):
            self.reply(400, {"error": {"message": f"{generation.reason}: {generation.detail}"}})
            return
        self.reply(200, answer(generation.text, generation.num_tokens, generation.finish_reason))

    def reply(self, status: int, body: Any, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", headers.pop("length", str(len(data))))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)


def answer(text: str, num_tokens: int, finish_reason: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "served",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 1, "completion_tokens": num_tokens, "total_tokens": 1},
    }


def to_request(body: dict[str, Any]) -> Request:
    """Parse a request as a server does."""
    turns, images = [], []
    for message in body["messages"]:
        content = message["content"]
        if isinstance(content, list):
            parts: list[str | ImageRef] = []
            for part in content:
                if part["type"] == "text":
                    parts.append(part["text"])
                    continue
                url = part["image_url"]["url"]
                assert url.startswith("data:image/png;base64,")
                parts.append(ImageRef(len(images)))
                images.append(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))
            content = content_of(parts)
        turns.append(Turn(role=message["role"], content=content))
    return Request(
        turns=tuple(turns),
        images=tuple(images),
        seed=body["seed"],
        max_tokens=body["max_tokens"],
    )


@contextlib.contextmanager
def serving(engine: GenerationEngine | None = None) -> Iterator[ChatServer]:
    server = ChatServer(engine)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.ends.set()
        server.shutdown()
        server.server_close()
        thread.join()
