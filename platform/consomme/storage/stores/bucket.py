"""Base of the object stores: bucket, key prefix, URL, and a cache of clients."""

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, BinaryIO, ClassVar

from consomme.storage.stores.ranged_file import open_ranged
from consomme.storage.stores.retries import RetryPolicy
from consomme.storage.stores.store import FileInfo, is_safe_path

WRITER_KEY = "consomme-writer"
"""Metadata key that identifies the call which created an object.

When the response to a conditional create is lost, the retry finds an existing object. It may be our
own, or the same bytes written by another worker; this key tells which.
"""

_MAX_CLIENTS = 8


@dataclass(frozen=True)
class BucketStore(ABC):
    """The parts of `consomme.storage.stores.store.Store` that all object stores share."""

    scheme: ClassVar[str]

    bucket: str
    """Name of the bucket."""

    folder: str = ""
    """Root of the store inside the bucket, without leading or trailing slash."""

    policy: RetryPolicy = field(default=RetryPolicy(), repr=False, compare=False)
    """How often to retry when the storage throttles or fails."""

    @property
    def url(self) -> str:
        """Root of the store."""
        return f"{self.scheme}://{self.bucket}" + (f"/{self.folder}" if self.folder else "")

    @abstractmethod
    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return the bytes of a file; see `Store.read`."""

    def read_inside(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return the bytes of a file that data names; a bucket holds nothing but files."""
        return self.read(path, offset, length)

    @abstractmethod
    def size(self, path: str) -> int:
        """Return the size of a file in bytes."""

    @abstractmethod
    def info(self, path: str) -> FileInfo:
        """Return size, time and version of a file; see `Store.info`."""

    def exists(self, path: str) -> bool:
        """Check whether a file exists."""
        try:
            self.size(path)
        except FileNotFoundError:
            return False
        return True

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading and seeking; see `consomme.storage.stores.ranged_file`."""
        return open_ranged(partial(self.read, path), self.size(path))

    @property
    def _root(self) -> str:
        return f"{self.folder}/" if self.folder else ""

    def _key(self, path: str) -> str:
        if not is_safe_path(path) or path.endswith("/"):
            raise ValueError(
                f"{path!r} leads out of {self.url} or names no file; "
                "a store takes relative paths only"
            )
        return self._root + path

    def _url_of(self, path: str) -> str:
        return f"{self.scheme}://{self.bucket}/{self._root}{path}"


class Clients:
    """Cache with one client per process and environment; creation is thread-safe.

    Args:
        make: Creates a thread-safe client from the current environment.
        prefixes: Prefixes of the environment variables that a client depends on.
    """

    def __init__(self, make: Callable[[], Any], *prefixes: str) -> None:
        self._make = make
        self._prefixes = prefixes
        self._reset()
        # A forked child must not use its parent's connections, nor a lock that may be held.
        os.register_at_fork(after_in_child=self._reset)

    def get(self) -> Any:
        """Return the client for the current environment."""
        key = tuple(
            sorted(item for item in os.environ.items() if item[0].startswith(self._prefixes))
        )
        client = self._clients.get(key)
        if client is None:
            with self._lock:
                client = self._clients.get(key)
                if client is None:
                    if len(self._clients) >= _MAX_CLIENTS:
                        self._clients.clear()
                    client = self._clients[key] = self._make()
        return client

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._clients: dict[tuple[tuple[str, str], ...], Any] = {}
