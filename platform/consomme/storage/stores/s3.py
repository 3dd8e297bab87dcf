"""Files on S3 and compatible servers.

Exclusive creation is a put with `If-None-Match: *`, which succeeds for one of several callers.
Objects of 64 MiB and more are multipart uploads; the condition is then set on the request that
completes them. Nothing is ever renamed, and an upload that is not completed is invisible.
"""

import contextlib
import functools
import itertools
import logging
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from botocore.exceptions import ClientError

from consomme.base.errors import ConsommeError, DataError, RecipeError
from consomme.storage.stores.bucket import WRITER_KEY, BucketStore
from consomme.storage.stores.listing import merge_level
from consomme.storage.stores.retries import retry
from consomme.storage.stores.s3_client import UploadLostError, classify_error, error_code, s3_client
from consomme.storage.stores.store import FileInfo

logger = logging.getLogger(__name__)

T = TypeVar("T")

MULTIPART_BYTES = 64 * 2**20
"""Objects of this size and more are multipart uploads."""

PART_BYTES = 16 * 2**20
"""Size of a part; S3 allows 5 MiB to 5 GiB and 10,000 parts, so 160 GiB fit."""

_PART_THREADS = 4
_DELETE_BATCH = 1000
_EXISTS = ("PreconditionFailed", "412")
_MAY_BE_CREATED = (*_EXISTS, "NoSuchUpload")
_CONFLICT = ("ConditionalRequestConflict", "409")

_TREE_ORDER_SERVERS = ("SeaweedFS",)
# These servers list folder by folder, so `a/x` before `a-b`; S3 compares whole keys, and `-` sorts
# before `/`. https://github.com/seaweedfs/seaweedfs


@dataclass(frozen=True)
class S3Store(BucketStore):
    """A bucket on S3, or a prefix in one; see `consomme.storage.stores.store.Store`.

    Holds no connection and no secret, so it can be pickled and used in any process that has the
    same environment.
    """

    scheme: ClassVar[str] = "s3"

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return the bytes of a file; see `Store.read`. A truncated body is fetched again."""
        key = self._key(path)
        if length == 0:
            self.size(path)
            return b""
        end = "" if length is None else offset + length - 1
        span = {"Range": f"bytes={offset}-{end}"} if offset or length is not None else {}

        def get(client: Any) -> bytes:
            try:
                response = client.get_object(Bucket=self.bucket, Key=key, **span)
            except ClientError as error:
                if error_code(error) in ("InvalidRange", "416"):
                    return b""
                raise
            with contextlib.closing(response["Body"]) as body:
                if span and not response.get("ContentRange", "").startswith(f"bytes {offset}-"):
                    raise DataError(
                        f"{self._url_of(path)}: requested {span['Range']}, the server sent other "
                        "bytes; it violates S3's protocol, use another server"
                    )
                data: bytes = body.read()
            return data

        return self._try(path, get)

    def write(self, path: str, data: bytes) -> None:
        """Replace a file atomically; see `Store.write`."""
        self._put(path, data, {})

    def create(self, path: str, data: bytes) -> bool:
        """Create a file atomically; see `Store.create`."""
        return self._put(path, data, {"IfNoneMatch": "*"})

    def list(self, prefix: str = "", after: str = "") -> Iterator[FileInfo]:
        """Yield files in byte order; see `Store.list`. Memory: one page of 1,000 files.

        Raises:
            DataError: The server lists keys in another order, which violates S3's protocol.
        """
        start = {"StartAfter": self._root + after} if after else {}
        last = ""
        for response in self._pages("list_objects_v2", prefix, **start):
            server = response["ResponseMetadata"]["HTTPHeaders"].get("server", "")
            if server.startswith(_TREE_ORDER_SERVERS):
                yield from self._walk(prefix, after)
                return
            for file in self._files(response):
                if file.path <= last:
                    raise DataError(
                        f"{self.url}: the server ({server or 'unnamed'}) lists {file.path!r} "
                        f"after {last!r}; consomme needs keys in byte order, as S3 has them"
                    )
                last = file.path
                yield file

    def list_level(self, prefix: str = "") -> Iterator[FileInfo]:
        """Yield the files and folders of one level; see `Store.list_level`."""
        pages = self._pages("list_objects_v2", prefix, Delimiter="/")
        yield from merge_level(
            [
                *self._files(response),
                *(
                    FileInfo(path=item["Prefix"].removeprefix(self._root), size=0)
                    for item in response.get("CommonPrefixes", ())
                ),
            ]
            for response in pages
        )

    def size(self, path: str) -> int:
        """Return the size of a file in bytes."""
        return int(self._head(path)["ContentLength"])

    def info(self, path: str) -> FileInfo:
        """Return size, time and ETag of a file."""
        head = self._head(path)
        return _of_object(path, int(head["ContentLength"]), head)

    def delete(self, path: str) -> None:
        """Delete a file if it exists."""
        key = self._key(path)
        self._try(path, lambda client: client.delete_object(Bucket=self.bucket, Key=key))

    def delete_many(self, paths: Iterable[str]) -> None:
        """Delete files, 1,000 per request; keys reported as failed are retried."""
        rest = iter(paths)
        while keys := [self._key(path) for path in itertools.islice(rest, _DELETE_BATCH)]:
            remaining = set(keys)
            self._try("", functools.partial(self._delete_batch, remaining))

    def remove_orphans(self, prefix: str = "") -> int:
        """Abort multipart uploads that were never completed; see `Store.remove_orphans`.

        They are invisible but cost as much as files. If the credentials or the server do not allow
        it, a warning is logged and nothing is aborted.
        """
        number = 0
        try:
            for response in self._pages("list_multipart_uploads", prefix):
                for upload in response.get("Uploads", ()):
                    self._abort(
                        {
                            "Bucket": self.bucket,
                            "Key": upload["Key"],
                            "UploadId": upload["UploadId"],
                        }
                    )
                    number += 1
        except RecipeError as error:
            logger.warning(
                "unfinished multipart uploads are left in the bucket; a lifecycle rule "
                "(AbortIncompleteMultipartUpload) removes them too. %s",
                error,
            )
        return number

    # --- single requests with retries ---

    def _try(self, path: str, request: Callable[[Any], T]) -> T:
        url = self._url_of(path)
        return retry(
            lambda: request(s3_client()), url, lambda error: classify_error(error, url), self.policy
        )

    def _pages(self, operation: str, prefix: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        """Yield the pages of a listing; each names the token of the next."""
        tokens = {
            "NextContinuationToken": "ContinuationToken",
            "NextKeyMarker": "KeyMarker",
            "NextUploadIdMarker": "UploadIdMarker",
        }

        def request_page(client: Any) -> dict[str, Any]:
            page: dict[str, Any] = getattr(client, operation)(**arguments)
            return page

        arguments |= {"Bucket": self.bucket, "Prefix": self._root + prefix}
        while True:
            page = self._try(prefix, request_page)
            yield page
            if not page.get("IsTruncated"):
                return
            arguments |= {tokens[name]: page[name] for name in tokens if page.get(name)}

    def _head(self, path: str) -> dict[str, Any]:
        key = self._key(path)
        return self._try(path, lambda client: client.head_object(Bucket=self.bucket, Key=key))

    def _files(self, response: dict[str, Any]) -> Iterator[FileInfo]:
        for item in response.get("Contents", ()):
            # Web consoles create keys that end in a slash to show empty folders.
            if not item["Key"].endswith("/"):
                yield _of_object(item["Key"].removeprefix(self._root), item["Size"], item)

    def _walk(self, prefix: str, after: str) -> Iterator[FileInfo]:
        """List level by level, which gives byte order on any server."""
        for entry in self.list_level(prefix):
            if not entry.path.endswith("/"):
                if entry.path > after:
                    yield entry
            elif entry.path > after or after.startswith(entry.path):
                yield from self._walk(entry.path, after)

    def _delete_batch(self, remaining: set[str], client: Any) -> None:
        """Delete keys and remove them from `remaining`; raise the first failure as S3 would."""
        objects = [{"Key": key} for key in sorted(remaining)]
        response = client.delete_objects(
            Bucket=self.bucket, Delete={"Objects": objects, "Quiet": True}
        )
        failed = {
            item.get("Key", ""): item
            for item in response.get("Errors", ())
            if item.get("Code") != "NoSuchKey"
        }
        remaining.intersection_update(failed)
        if failed:
            raise ClientError({"Error": next(iter(failed.values()))}, "DeleteObjects")

    # --- uploads ---

    def _put(self, path: str, data: bytes, condition: dict[str, str]) -> bool:
        """Upload an object, in parts if it is large; False if the condition forbids it."""
        key, writer = self._key(path), uuid.uuid4().hex
        if len(data) >= MULTIPART_BYTES:
            return retry(
                lambda: self._put_multipart(path, data, writer, condition),
                self._url_of(path),
                lambda error: None if isinstance(error, UploadLostError) else error,
                self.policy,
            )
        return self._send_conditional(
            path,
            writer,
            lambda client: client.put_object(
                # A buffer that can also be read like a file would be at its end in a second try.
                Bucket=self.bucket,
                Key=key,
                Body=bytes(data),
                Metadata={WRITER_KEY: writer},
                **condition,
            ),
        )

    def _send_conditional(
        self,
        path: str,
        writer: str,
        request: Callable[[Any], object],
        *,
        is_in_doubt: bool = False,
    ) -> bool:
        """Send the request that creates an object; return whether our request created it.

        An earlier try may have succeeded although its response was lost. The retry is then told
        that the object exists, or that the upload does not; only the metadata of the object tells
        who created it.
        """

        def send(client: Any) -> bool:
            nonlocal is_in_doubt
            try:
                request(client)
            except ClientError as error:
                code = error_code(error)
                is_ours = (
                    code in _MAY_BE_CREATED and is_in_doubt and self._is_created_by(writer, path)
                )
                if is_ours or code in _EXISTS:
                    return is_ours
                is_in_doubt = True
                raise
            # After any other error it is unknown whether the object was created; raise it again.
            except Exception:
                is_in_doubt = True
                raise
            return True

        return self._try(path, send)

    def _is_created_by(self, writer: str, path: str) -> bool:
        try:
            metadata = self._head(path)["Metadata"]
        except FileNotFoundError:
            return False
        return bool(metadata.get(WRITER_KEY) == writer)

    def _put_multipart(
        self, path: str, data: bytes, writer: str, condition: dict[str, str]
    ) -> bool:
        target = {"Bucket": self.bucket, "Key": self._key(path)}
        started = self._try(
            path,
            lambda client: client.create_multipart_upload(**target, Metadata={WRITER_KEY: writer}),
        )
        upload: dict[str, Any] = {**target, "UploadId": started["UploadId"]}

        def put_part(number: int) -> dict[str, Any]:
            body = data[(number - 1) * PART_BYTES : number * PART_BYTES]
            sent = self._try(
                path, lambda client: client.upload_part(**upload, PartNumber=number, Body=body)
            )
            return {"PartNumber": number, "ETag": sent["ETag"]}

        is_complete = False

        def complete(client: Any) -> None:
            nonlocal is_complete
            try:
                client.complete_multipart_upload(
                    **upload, MultipartUpload={"Parts": parts}, **condition
                )
            except ClientError as error:
                if error_code(error) in _CONFLICT:
                    # S3 then requires the whole upload to be repeated, not just this request.
                    raise UploadLostError(str(error)) from error
                raise
            is_complete = True

        try:
            num_parts = -(-len(data) // PART_BYTES)
            with ThreadPoolExecutor(_PART_THREADS) as pool:
                parts = list(pool.map(put_part, range(1, num_parts + 1)))
            # An earlier upload may have been completed although its response was lost.
            return self._send_conditional(path, writer, complete, is_in_doubt=True)
        finally:
            if not is_complete:
                with contextlib.suppress(ConsommeError):
                    self._abort(upload)

    def _abort(self, upload: dict[str, Any]) -> None:
        path = upload["Key"].removeprefix(self._root)
        with contextlib.suppress(UploadLostError):
            self._try(path, lambda client: client.abort_multipart_upload(**upload))


def _of_object(path: str, size: int, answer: Mapping[str, Any]) -> FileInfo:
    modified = answer["LastModified"].timestamp()
    # Every server that is known sends an ETag; without one, the time is what there is.
    version = str(answer.get("ETag", "")).strip('"') or str(modified)
    return FileInfo(path=path, size=size, modified=modified, version=version)
