"""Files in a repository on the Hugging Face hub, for reading only.

What is not pinned to a commit is read at the branch's latest one, so whoever reads more than one
file pins first: see `consomme.storage.pins`.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, BinaryIO, NoReturn
from urllib.parse import quote

from consomme.base.errors import DataError, RecipeError
from consomme.storage.stores.hub_client import endpoint, hub_request, is_offline
from consomme.storage.stores.hub_place import HubPlace
from consomme.storage.stores.ranged_file import open_ranged
from consomme.storage.stores.retries import RetryPolicy
from consomme.storage.stores.store import FileInfo, is_safe_path

LFS = "sha256:"
"""Begins the version of a file whose SHA-256 the hub knows; that of others is git's."""

_GIT = "git:"


_USEFUL = (200, 206, 416)
_ADDRESS_FOR_S = 300.0
"""Signed addresses are good for an hour."""

_MAX_ADDRESSES = 1000


class _Addresses:
    """Where large files of a commit lie, for a while; one for all threads of a process."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, float]] = {}

    def get(self, url: str) -> str | None:
        address, until = self._known.get(url, ("", 0.0))
        return address if time.monotonic() < until else None

    def keep(self, url: str, address: str) -> None:
        if len(self._known) >= _MAX_ADDRESSES:
            self._known.clear()
        self._known[url] = (address, time.monotonic() + _ADDRESS_FOR_S)

    def drop(self, url: str) -> None:
        self._known.pop(url, None)


_addresses = _Addresses()


@dataclass(frozen=True)
class HubStore:
    """A repository, or a folder in one; see `consomme.storage.stores.store.Store`.

    Holds no connection and no secret, so it can be pickled and used in any process that has the
    same environment.
    """

    place: HubPlace
    """Repository, revision and folder."""

    policy: RetryPolicy = field(default=RetryPolicy(), repr=False, compare=False)
    """How often to retry when the hub throttles or fails."""

    @property
    def url(self) -> str:
        """Root of the store."""
        return self.place.url

    def commit(self) -> str:
        """Return the commit that the revision is now."""
        revision = quote(self.place.revision, safe="")
        found = self._get(f"revision/{revision}").json().get("sha")
        if not found:
            raise DataError(f"{self.url}: the hub at {endpoint()} names no commit of this revision")
        return str(found)

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return the bytes of a file; see `Store.read`. A truncated body is fetched again."""
        if length == 0:
            self.size(path)
            return b""
        end = "" if length is None else offset + length - 1
        span = {"Range": f"bytes={offset}-{end}"} if offset or length is not None else {}
        response = self._get_file(path, span)
        if response.status_code == 416:
            return b""
        where = response.headers.get("Content-Range", "")
        if span and not where.startswith(f"bytes {offset}-"):
            raise DataError(
                f"{self.url}/{path}: requested {span['Range']}, the server sent other bytes; it"
                " does not serve ranges, use another endpoint"
            )
        data: bytes = response.content
        return data

    def _get_file(self, path: str, headers: dict[str, str]) -> Any:
        """Ask for a file, or a range of it; large ones where the hub sent us before.

        The hub allows so many questions in five minutes, and answers each about a large file with a
        signed address elsewhere, which may be asked as often as one likes.
        """
        kind = "datasets/" if self.place.kind == "dataset" else ""
        inside, revision = quote(self._inside(path)), quote(self.place.revision, safe="")
        url = f"{endpoint()}/{kind}{self.place.repo}/resolve/{revision}/{inside}"
        known = _addresses.get(url) if self.place.is_pinned else None
        if known is not None:
            response = self._request("GET", known, headers=headers, is_signed=True)
            if response.status_code in _USEFUL:
                return response
            _addresses.drop(url)
        try:
            response = self._request("GET", url, headers=headers)
        except FileNotFoundError as error:
            where = f"{self.url}/{path}"
            raise FileNotFoundError(errno.ENOENT, "no such file on the hub", where) from error
        first = (*response.history, response)[0]
        commit = first.headers.get("X-Repo-Commit")
        if self.place.is_pinned and commit and commit != self.place.revision:
            raise DataError(
                f"{self.url}/{path}: asked for commit {self.place.revision}, the hub at"
                f" {endpoint()} sent {commit}"
            )
        if response.history and not str(response.url).startswith(f"{endpoint()}/"):
            _addresses.keep(url, str(response.url))
        return response

    def read_inside(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return the bytes of a file that data names; a repository holds nothing but files."""
        return self.read(path, offset, length)

    def list(self, prefix: str = "", after: str = "") -> Iterator[FileInfo]:
        """Yield files in byte order; see `Store.list`. Memory: all names of the folder."""
        found = self._tree(prefix.rpartition("/")[0], is_deep=True)
        files = [_info(one, self._root) for one in found if one.get("type") == "file"]
        files = [file for file in files if file.path.startswith(prefix) and file.path > after]
        yield from sorted(files, key=lambda file: file.path.encode())

    def list_level(self, prefix: str = "") -> Iterator[FileInfo]:
        """Yield the files and folders of one level; see `Store.list_level`."""
        found = self._tree(prefix.rpartition("/")[0], is_deep=False)
        entries = [_info(one, self._root) for one in found]
        entries = [entry for entry in entries if entry.path.startswith(prefix)]
        yield from sorted(entries, key=lambda entry: entry.path.encode())

    def exists(self, path: str) -> bool:
        """Check whether a file exists."""
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def size(self, path: str) -> int:
        """Return the size of a file in bytes."""
        return self.info(path).size

    def info(self, path: str) -> FileInfo:
        """Return size and version of a file."""
        revision = quote(self.place.revision, safe="")
        found = self._request(
            "POST", self._api(f"paths-info/{revision}"), json={"paths": [self._inside(path)]}
        ).json()
        for one in found:
            if one.get("type") == "file" and one.get("path") == self._inside(path):
                return _info(one, self._root)
        raise FileNotFoundError(errno.ENOENT, "no such file on the hub", f"{self.url}/{path}")

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading and seeking."""
        return open_ranged(partial(self.read, path), self.size(path))

    def write(self, path: str, data: bytes) -> None:
        """Refuse: see `_refuse`."""
        self._refuse(path)

    def create(self, path: str, data: bytes) -> bool:
        """Refuse: see `_refuse`."""
        self._refuse(path)

    def delete(self, path: str) -> None:
        """Refuse: see `_refuse`."""
        self._refuse(path)

    def delete_many(self, paths: Iterable[str]) -> None:
        """Refuse: see `_refuse`."""
        self._refuse("…")

    def remove_orphans(self, prefix: str = "") -> int:
        """Refuse: see `_refuse`."""
        self._refuse(prefix)

    def _refuse(self, path: str) -> NoReturn:
        raise RecipeError(
            f"{self.url}/{path}: the hub is only read; expected a local path, s3:// or gs:// for"
            " what is written"
        )

    @property
    def _root(self) -> str:
        return f"{self.place.folder}/" if self.place.folder else ""

    def _inside(self, path: str) -> str:
        if not is_safe_path(path) or path.endswith("/"):
            raise ValueError(f"{path!r} leads out of {self.url} or names no file")
        return self._root + path

    def _api(self, what: str) -> str:
        return f"{endpoint()}/api/{self.place.kind}s/{self.place.repo}/{what}"

    def _get(self, what: str) -> Any:
        return self._request("GET", self._api(what))

    def _request(
        self,
        method: str,
        url: str,
        *,
        headers: dict[str, str] | None = None,
        json: Any = None,
        is_signed: bool = False,
    ) -> Any:
        if is_offline():
            raise RecipeError(
                f"{self.url}: HF_HUB_OFFLINE is set, so the hub is not asked; unset it, or name a"
                " folder on this machine"
            )
        return hub_request(
            method,
            url,
            self.place,
            self.policy,
            headers=headers,
            json=json,
            # 416: a range past the end. A signed address that expired is asked for again.
            final=lambda response: (
                response.status_code == 416
                or (is_signed and response.status_code in (400, 401, 403, 404, 410))
            ),
            is_signed=is_signed,
        )

    def _tree(self, folder: str, *, is_deep: bool) -> Iterator[dict[str, Any]]:
        """Yield the entries of a folder, page by page; nothing if there is no such folder."""
        inside = quote((self._root + folder).strip("/"))
        revision = quote(self.place.revision, safe="")
        query = "?recursive=true&expand=false" if is_deep else "?expand=false"
        url: str | None = self._api(f"tree/{revision}{f'/{inside}' if inside else ''}{query}")
        while url:
            try:
                response = self._request("GET", url)
            except FileNotFoundError:
                return
            yield from response.json()
            url = response.links.get("next", {}).get("url")


def _info(entry: dict[str, Any], root: str) -> FileInfo:
    path = str(entry["path"]).removeprefix(root)
    if entry.get("type") != "file":
        return FileInfo(path=f"{path}/", size=0)
    lfs = entry.get("lfs") or {}
    version = f"{LFS}{lfs['oid']}" if lfs.get("oid") else f"{_GIT}{entry.get('oid', '')}"
    return FileInfo(path=path, size=int(entry.get("size") or 0), version=version)
