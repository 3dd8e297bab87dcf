"""What the object stores share: a bucket, the beginning of every key in it, a URL, clients."""

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, BinaryIO, ClassVar

from consomme.storage.stores.ranged_file import open_ranged
from consomme.storage.stores.retries import RetryPolicy
from consomme.storage.stores.store import is_safe_path

WRITER_KEY = "consomme-writer"
"""Metadata of an object that says which call made it.

When the answer to a conditional create is lost, the second try finds an object. It may be our own,
or the same bytes by another worker; only this tells them apart.
"""

_MAX_CLIENTS = 8


@dataclass(frozen=True)
class BucketStore(ABC):
    """The part of `consomme.storage.stores.store.Store` that is the same on every object store."""

    scheme: ClassVar[str]

    bucket: str
    """Name of the bucket."""

    folder: str = ""
    """Where in the bucket the store is rooted, without slashes at the ends."""

    policy: RetryPolicy = field(default=RetryPolicy(), repr=False, compare=False)
    """How long to go on when the storage is throttling or failing."""

    @property
    def url(self) -> str:
        """Where the store is rooted."""
        return f"{self.scheme}://{self.bucket}" + (f"/{self.folder}" if self.folder else "")

    @abstractmethod
    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return a file's bytes; see `Store.read`."""

    @abstractmethod
    def size(self, path: str) -> int:
        """Return a file's bytes."""

    def exists(self, path: str) -> bool:
        """Tell whether there is such a file."""
        try:
            self.size(path)
        except FileNotFoundError:
            return False
        return True

    def open(self, path: str) -> BinaryIO:
        """Open a file to read and seek in; see `consomme.storage.stores.ranged_file`."""
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
    """One client per process and environment, made once however many threads ask for it first.

    Args:
        make: Makes a client from the present environment; any thread may use what it returns.
        prefixes: How the names of the variables begin that a client depends on.
    """

    def __init__(self, make: Callable[[], Any], *prefixes: str) -> None:
        self._make = make
        self._prefixes = prefixes
        self._forget()
        # A forked child must not share its parent's connections, nor a lock that may be held.
        os.register_at_fork(after_in_child=self._forget)

    def get(self) -> Any:
        """Return the client for the present environment."""
        key = tuple(
            sorted(item for item in os.environ.items() if item[0].startswith(self._prefixes))
        )
        client = self._made.get(key)
        if client is None:
            with self._lock:
                client = self._made.get(key)
                if client is None:
                    if len(self._made) >= _MAX_CLIENTS:
                        self._made.clear()
                    client = self._made[key] = self._make()
        return client

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[tuple[tuple[str, str], ...], Any] = {}
