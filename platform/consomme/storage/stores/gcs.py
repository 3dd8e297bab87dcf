"""Files on Google Cloud Storage, through its own library (the extra `gcs`).

Exclusive creation is an upload with `ifGenerationMatch=0`, which succeeds for one of several
callers. Credentials are the application default credentials. Unfinished uploads are invisible and
expire after a week.
"""

import errno
import functools
import importlib
import itertools
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from consomme.base.errors import RecipeError
from consomme.storage.stores.bucket import WRITER_KEY, BucketStore, Clients
from consomme.storage.stores.listing import merge_level
from consomme.storage.stores.retries import NETWORK_ERRORS, describe, is_transient_status, retry
from consomme.storage.stores.store import FileInfo

T = TypeVar("T")

_PAGE = 1000
# The library pools ten connections; more threads would open and drop connections.
_DELETE_THREADS = 8
_TIMEOUT_S = (10, 60)
# The library's own retries are off: see `consomme.storage.stores.retries`.
_ONCE: dict[str, Any] = {"retry": None, "timeout": _TIMEOUT_S}
_FIELDS = "items(name,size,updated,generation),prefixes,nextPageToken"

_ADVICE = {
    401: "the credentials are wrong or have expired; run `gcloud auth application-default login`",
    403: "the credentials in use do not allow this; the role Storage Object User does",
    404: "there is no such bucket; check its name",
}


@dataclass(frozen=True)
class GcsStore(BucketStore):
    """A bucket on Google Cloud Storage, or a prefix in one; see `stores.store.Store`.

    Holds no connection and no secret, so it can be pickled and used in any process that has the
    same environment.
    """

    scheme: ClassVar[str] = "gs"

    def __post_init__(self) -> None:
        """Check that the library is installed, before a worker needs it."""
        _library()

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return the bytes of a file; see `Store.read`. A truncated body is fetched again."""
        if length == 0:
            self.size(path)
            return b""
        end = None if length is None else offset + length - 1

        def get(bucket: Any) -> bytes:
            try:
                data: bytes = bucket.blob(self._key(path)).download_as_bytes(
                    start=offset or None, end=end, raw_download=True, **_ONCE
                )
            except _exceptions().RequestRangeNotSatisfiable:
                return b""
            return data

        return self._try(path, get, is_missing_file=True)

    def write(self, path: str, data: bytes) -> None:
        """Replace a file atomically; see `Store.write`."""
        self._try(path, lambda bucket: self._upload(bucket, path, data, {}))

    def create(self, path: str, data: bytes) -> bool:
        """Create a file atomically; see `Store.create`."""
        writer = uuid.uuid4().hex
        is_in_doubt = False

        def send(bucket: Any) -> bool:
            nonlocal is_in_doubt
            try:
                self._upload(bucket, path, data, {WRITER_KEY: writer}, if_generation_match=0)
            except _exceptions().PreconditionFailed:
                # An earlier try may have succeeded although its response was lost.
                return is_in_doubt and self._is_created_by(writer, path)
            # After any other error it is unknown whether the object was created; raise it again.
            except Exception:
                is_in_doubt = True
                raise
            return True

        return self._try(path, send)

    def list(self, prefix: str = "", after: str = "") -> Iterator[FileInfo]:
        """Yield files in byte order; see `Store.list`. Memory: one page of 1,000 files."""
        start = {"start_offset": self._root + after} if after else {}
        for files, _ in self._pages(prefix, **start):
            # `start_offset` is inclusive, `after` is not.
            yield from (file for file in files if file.path > after)

    def list_level(self, prefix: str = "") -> Iterator[FileInfo]:
        """Yield the files and folders of one level; see `Store.list_level`."""
        yield from merge_level(
            [*files, *(FileInfo(path=folder, size=0) for folder in folders)]
            for files, folders in self._pages(prefix, delimiter="/")
        )

    def size(self, path: str) -> int:
        """Return the size of a file in bytes."""
        return int(self._reload(path).size)

    def info(self, path: str) -> FileInfo:
        """Return size, time and generation of a file."""
        return _info(path, self._reload(path))

    def delete(self, path: str) -> None:
        """Delete a file if it exists."""

        def remove(bucket: Any) -> None:
            try:
                bucket.blob(self._key(path)).delete(**_ONCE)
            except _exceptions().NotFound:
                return

        self._try(path, remove)

    def delete_many(self, paths: Iterable[str]) -> None:
        """Delete files, several concurrently."""
        remaining = iter(paths)
        with ThreadPoolExecutor(_DELETE_THREADS) as pool:
            while batch := list(itertools.islice(remaining, _PAGE)):
                list(pool.map(self.delete, batch))

    def remove_orphans(self, prefix: str = "") -> int:
        """Nothing to do: unfinished uploads are invisible and expire by themselves."""
        return 0

    def _try(self, path: str, request: Callable[[Any], T], *, is_missing_file: bool = False) -> T:
        url = self._url_of(path)
        return retry(
            lambda: request(_CLIENTS.get().bucket(self.bucket)),
            url,
            lambda error: _classify_error(error, url, is_missing_file=is_missing_file),
            self.policy,
        )

    def _upload(
        self, bucket: Any, path: str, data: bytes, metadata: dict[str, str], **condition: int
    ) -> None:
        blob = bucket.blob(self._key(path))
        blob.metadata = metadata
        blob.upload_from_string(bytes(data), "application/octet-stream", **condition, **_ONCE)

    def _reload(self, path: str) -> Any:
        def get(bucket: Any) -> Any:
            blob = bucket.blob(self._key(path))
            blob.reload(**_ONCE)
            return blob

        return self._try(path, get, is_missing_file=True)

    def _is_created_by(self, writer: str, path: str) -> bool:
        try:
            metadata = self._reload(path).metadata or {}
        except FileNotFoundError:
            return False
        return bool(metadata.get(WRITER_KEY) == writer)

    def _pages(
        self, prefix: str, **arguments: Any
    ) -> Iterator[tuple[Sequence[FileInfo], Sequence[str]]]:
        """Yield the files and folders of each page."""
        token = None
        while True:

            def get(bucket: Any, token: str | None = token) -> tuple[Any, Any]:
                listing = bucket.list_blobs(
                    prefix=self._root + prefix,
                    page_token=token,
                    page_size=_PAGE,
                    fields=_FIELDS,
                    **arguments,
                    **_ONCE,
                )
                return listing, next(listing.pages, ())

            listing, page = self._try(prefix, get)
            files = [
                _info(blob.name.removeprefix(self._root), blob)
                for blob in page
                if not blob.name.endswith("/")
            ]
            yield files, [name.removeprefix(self._root) for name in sorted(listing.prefixes)]
            token = listing.next_page_token
            if not token:
                return


def _info(path: str, blob: Any) -> FileInfo:
    return FileInfo(
        path=path,
        size=int(blob.size),
        modified=blob.updated.timestamp(),
        version=str(blob.generation),
    )


def _classify_error(error: Exception, url: str, *, is_missing_file: bool) -> Exception | None:
    """Classify an error; see `consomme.storage.stores.retries.ErrorClassifier`.

    Args:
        error: Raised by the library.
        url: Subject of the request, for messages.
        is_missing_file: Whether "not found" refers to the file rather than the bucket.
    """
    api, auth = _exceptions(), importlib.import_module("google.auth.exceptions")
    requests = importlib.import_module("requests.exceptions")
    corruption = importlib.import_module("google.cloud.storage.exceptions").DataCorruption
    transient = (
        *NETWORK_ERRORS,
        auth.TransportError,
        corruption,
        requests.ConnectionError,
        requests.Timeout,
        requests.ChunkedEncodingError,
    )
    if isinstance(error, api.GoogleAPICallError):
        status = int(error.code or 0)
        if is_transient_status(status):
            return None
        if status == 404 and is_missing_file:
            return FileNotFoundError(errno.ENOENT, "no such object", url)
        advice = _ADVICE.get(status, "the storage refuses the request; check the URL")
        return RecipeError(f"{url}: {advice}. The storage said: {describe(error)}")
    if isinstance(error, transient):
        return None
    if isinstance(error, auth.GoogleAuthError):
        return RecipeError(f"{url}: {_ADVICE[401]}. Found: {describe(error)}")
    return error


@functools.cache
def _library() -> Any:
    try:
        return importlib.import_module("google.cloud.storage")
    except ImportError as error:
        raise RecipeError(
            "gs:// needs Google's library, which is not installed; run: pip install 'consomme[gcs]'"
        ) from error


def _exceptions() -> Any:
    return importlib.import_module("google.api_core.exceptions")


_CLIENTS = Clients(
    lambda: _library().Client(), "GOOGLE_", "GCLOUD_", "CLOUDSDK_", "STORAGE_EMULATOR_HOST"
)
