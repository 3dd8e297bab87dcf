"""A small Hugging Face hub on the loopback: its HTTP API as `huggingface_hub` speaks it.

Repositories have commits, branches and files; weights are LFS files, which lie at another address
(as on the hub's CDN) that a redirect leads to. Requests are counted by what they ask for, and
answers can be told to fail.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import urllib.parse
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_LFS = (".safetensors", ".bin", ".parquet", ".tar", ".png", ".jpg")
_PAGE = 3
"""Entries of a page of a listing: few, so that listings have pages."""

_REPO = r"(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)"
_API = re.compile(rf"/api/{_REPO}(?:/(?P<what>revision|tree|paths-info|refs)(?:/(?P<rest>.*))?)?")
_RESOLVE = re.compile(r"/(?P<kind>datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<rest>.*)")


@dataclass
class Repo:
    """One repository."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    """Who has it may read; everybody if None."""

    is_gated: bool = False
    """Without the token it is seen, but not read."""

    def commit(self, files: Mapping[str, bytes], ref: str = "main") -> str:
        """Add a commit of these files, and move a branch to it."""
        text = repr((len(self.commits), sorted((p, _sha256(b)) for p, b in files.items())))
        commit = hashlib.sha1(text.encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.refs[ref] = commit
        return commit

    def find(self, revision: str) -> str | None:
        """Return the commit of a revision."""
        if revision in self.refs:
            return self.refs[revision]
        return next(
            (c for c in self.commits if len(revision) >= 7 and c.startswith(revision)), None
        )


@dataclass
class HubServer:
    """The hub, and the server of its large files."""

    url: str = ""
    files_url: str = ""
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    """By kind, `models` or `datasets`, and name."""

    requests: Counter[str] = field(default_factory=Counter)
    """Number of requests by `what:path`: `tree:org/name`, `file:org/name/config.json`, …"""

    bytes_sent: Counter[str] = field(default_factory=Counter)
    """Bytes of the bodies of files, by path."""

    tokens_of_files: list[str | None] = field(default_factory=list)
    """Authorization of each request to the server of large files."""

    failures: list[tuple[str, int, dict[str, str]]] = field(default_factory=list)
    """What comes next for the requests that begin with a prefix: status and headers."""

    expired: bool = False
    """Whether addresses of large files that were given out before are refused."""

    damaged: set[str] = field(default_factory=set)
    """Paths whose bytes are changed on their way."""

    def model(self, name: str) -> Repo:
        """Return a model's repository; makes it."""
        return self.repos.setdefault(("models", name), Repo())

    def dataset(self, name: str) -> Repo:
        """Return a data set's repository; makes it."""
        return self.repos.setdefault(("datasets", name), Repo())

    def fail(self, prefix: str, status: int, times: int = 1, **headers: str) -> None:
        """Have the next requests for something fail."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.failures += [(prefix, status, named)] * times

    def env(self, home: Path, **more: str) -> dict[str, str]:
        """Environment of a process that uses it, with caches of its own."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home / "hf"),
            "CONSOMME_CACHE_DIR": str(home / "cache"),
            "HF_HUB_OFFLINE": "0",
            **more,
        }

    def times(self, path: str) -> int:
        """How often a file was asked for from its beginning; ranges of it count once."""
        return self.requests[f"start:{path}"]


def folder_files(folder: Path) -> dict[str, bytes]:
    """Read a folder as the files of a commit."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """Run an empty hub."""
    hub = HubServer()
    # Two hosts, as far as a client can tell: the token must not reach the second one.
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub)) for _ in range(2)]
    hub.url, hub.files_url = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    threads = [threading.Thread(target=server.serve_forever, args=[0.02]) for server in servers]
    try:
        for thread in threads:
            thread.start()
        yield hub
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _entry(path: str, data: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": blob}
    if path.endswith(_LFS):
        entry["lfs"] = {"oid": _sha256(data), "size": len(data), "pointerSize": 134}
    return entry


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer()

        def do_HEAD(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._answer()

        def log_message(self, *_: object) -> None:
            """Write nothing."""

        def _answer(self) -> None:
            url = urllib.parse.urlsplit(self.path)
            query = dict(urllib.parse.parse_qsl(url.query))
            if url.path.startswith("/lfs/"):
                self._large(url.path, query)
            elif found := _API.fullmatch(url.path):
                self._api(found, query)
            elif found := _RESOLVE.fullmatch(url.path):
                self._resolve(found)
            elif found := re.fullmatch(r"/api/(models|datasets)", url.path):
                names = [name for kind, name in hub.repos if kind == found[1]]
                author = f"{query.get('author', '')}/"
                self._json([{"id": name} for name in names if name.startswith(author)])
            else:
                self._refuse(404, "EntryNotFound")

        def _allowed(self, kind: str, name: str, what: str, subject: str) -> Repo | None:
            """Find a repository and count the request; None if the answer was sent."""
            hub.requests[f"{what}:{subject}"] += 1
            for number, (prefix, status, headers) in enumerate(hub.failures):
                if f"{what}:{subject}".startswith(prefix):
                    del hub.failures[number]
                    self._send(status, b"busy", headers)
                    return None
            repo = hub.repos.get((kind, name))
            sent = self.headers.get("Authorization")
            if repo is None:
                # To strangers the hub does not say what exists.
                self._refuse(404 if sent else 401, "RepoNotFound")
                return None
            if repo.token is None or sent == f"Bearer {repo.token}":
                return repo
            if repo.is_gated and what != "file":
                return repo
            if repo.is_gated:
                self._refuse(403 if sent else 401, "GatedRepo")
            else:
                self._refuse(404 if sent else 401, "RepoNotFound")
            return None

        def _api(self, found: re.Match[str], query: dict[str, str]) -> None:
            kind, name, what = found["kind"], found["repo"], found["what"] or "revision"
            repo = self._allowed(kind, name, what, name)
            if repo is None:
                return
            if what == "refs":
                refs = [{"name": r, "ref": r, "targetCommit": c} for r, c in repo.refs.items()]
                self._json({"branches": refs, "tags": [], "converts": []})
                return
            revision, _, inside = (found["rest"] or "main").partition("/")
            commit = repo.find(urllib.parse.unquote(revision))
            if commit is None:
                self._refuse(404, "RevisionNotFound")
                return
            files = repo.commits[commit]
            if what == "revision":
                names = [{"rfilename": path} for path in files]
                self._json({"id": name, "sha": commit, "siblings": names})
            elif what == "paths-info":
                paths = json.loads(self.body)["paths"]
                self._json([_entry(path, files[path]) for path in paths if path in files])
            else:
                self._tree(files, urllib.parse.unquote(inside), query)

        def _tree(self, files: dict[str, bytes], folder: str, query: dict[str, str]) -> None:
            prefix = f"{folder}/" if folder else ""
            inside = [path for path in files if path.startswith(prefix)]
            if folder and not inside:
                self._refuse(404, "EntryNotFound")
                return
            entries: dict[str, dict[str, Any]] = {}
            for path in inside:
                parts = path.removeprefix(prefix).split("/")
                for depth in range(1, len(parts)):
                    above = prefix + "/".join(parts[:depth])
                    entries[above] = {"type": "directory", "path": above, "size": 0, "oid": "0"}
                entries[path] = _entry(path, files[path])
            if query.get("recursive") != "true":
                depth = prefix.count("/")
                entries = {path: one for path, one in entries.items() if path.count("/") == depth}
            start = int(query.get("cursor") or 0)
            # Not in byte order, which nobody promises.
            page = [entries[path] for path in sorted(entries, reverse=True)]
            headers = {}
            if start + _PAGE < len(page):
                query["cursor"] = str(start + _PAGE)
                path = urllib.parse.urlsplit(self.path).path
                following = f"{hub.url}{path}?{urllib.parse.urlencode(query)}"
                headers["Link"] = f'<{following}>; rel="next"'
            self._json(page[start : start + _PAGE], headers)

        def _resolve(self, found: re.Match[str]) -> None:
            kind = "datasets" if found["kind"] else "models"
            revision, _, quoted = found["rest"].partition("/")
            path = urllib.parse.unquote(quoted)
            repo = self._allowed(kind, found["repo"], "file", f"{found['repo']}/{path}")
            if repo is None:
                return
            commit = repo.find(urllib.parse.unquote(revision))
            if commit is None:
                self._refuse(404, "RevisionNotFound")
                return
            data = repo.commits[commit].get(path)
            if data is None:
                self._refuse(404, "EntryNotFound")
                return
            entry = _entry(path, data)
            headers = {"X-Repo-Commit": commit, "ETag": f'"{entry["oid"]}"'}
            if "lfs" not in entry:
                self._bytes(f"{found['repo']}/{path}", data, headers)
                return
            headers |= {
                "X-Linked-Etag": f'"{entry["lfs"]["oid"]}"',
                "X-Linked-Size": str(len(data)),
                "Location": f"{hub.files_url}/lfs/{kind}/{found['repo']}/{commit}/{quoted}",
            }
            hub.expired = False
            self._send(302, b"", headers)

        def _large(self, path: str, query: dict[str, str]) -> None:
            _, _, kind, org, name, commit, inside = path.split("/", 6)
            inside = urllib.parse.unquote(inside)
            if hub.expired:
                self._send(403, b"expired", {})
                return
            hub.tokens_of_files.append(self.headers.get("Authorization"))
            data = hub.repos[kind, f"{org}/{name}"].commits[commit][inside]
            self._bytes(f"{org}/{name}/{inside}", data, {"ETag": f'"{_sha256(data)}"'})

        def _bytes(self, name: str, data: bytes, headers: dict[str, str]) -> None:
            if name in hub.damaged:
                data = bytes([data[0] ^ 1]) + data[1:]
            status, start, end = 200, 0, len(data)
            if span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
                start = int(span[1])
                end = min(len(data), int(span[2]) + 1) if span[2] else len(data)
                if start >= len(data):
                    self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                    return
                status = 206
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
            if self.command == "GET":
                hub.requests[f"start:{name}"] += start == 0
                hub.bytes_sent[name] += end - start
            self._send(status, data[start:end], headers)

        def _json(self, value: Any, headers: dict[str, str] | None = None) -> None:
            body = json.dumps(value).encode()
            self._send(200, body, {"Content-Type": "application/json", **(headers or {})})

        def _refuse(self, status: int, code: str) -> None:
            self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": code})

        def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    return Handler
