"""Files on S3 and whatever speaks its protocol.

A create is a put with `If-None-Match: *`, which S3 decides for one of many. Objects of 64 MiB and
more go up in parts, and the condition is put on the request that joins them. Nothing is ever
renamed, and what is not joined is not there.
"""

import contextlib
import functools
import itertools
import logging
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from botocore.exceptions import ClientError

from consomme.base.errors import ConsommeError, DataError, RecipeError
from consomme.storage.stores.bucket import WRITER_KEY, BucketStore
from consomme.storage.stores.listing import merge_level
from consomme.storage.stores.retries import retry
from consomme.storage.stores.s3_client import UploadLostError, error_code, classify_error, s3_client
from consomme.storage.stores.store import FileInfo

logger = logging.getLogger(__name__)

T = TypeVar("T")

MULTIPART_BYTES = 64 * 2**20
"""Objects of this size and more are sent in parts."""

PART_BYTES = 16 * 2**20
"""Size of a part; S3 allows 5 MiB to 5 GiB and 10,000 parts, so 160 GiB fit."""

_PART_THREADS = 4
_DELETE_BATCH = 1000
_EXISTS = ("PreconditionFailed", "412")
_DECIDED = (*_EXISTS, "NoSuchUpload")
_CONFLICT = ("ConditionalRequestConflict", "409")

_TREE_ORDER_SERVERS = ("SeaweedFS",)
# These list a folder's files where the folder's name stands, so `a/x` before `a-b`; S3 compares
# whole keys, and `-` comes before `/`. https://github.com/seaweedfs/seaweedfs


@dataclass(frozen=True)
class S3Store(BucketStore):
    """A bucket on S3, or a part of one; see `consomme.storage.stores.store.Store`.

    Holds no connection and no secret, so it can be pickled and sent anywhere that has the same
    environment.
    """

    scheme: ClassVar[str] = "s3"

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return a file's bytes; see `Store.read`. A body that breaks off is fetched again."""
        key = self._key(path)
        if length == 0:
            self.size(path)
            return b""
        end = "" if length is None else offset + length - 1
        span = {"Range": f"bytes={offset}-{end}"} if offset or length is not None else {}

        def get(client: Any) -> bytes:
            try:
                answer = client.get_object(Bucket=self.bucket, Key=key, **span)
            except ClientError as error:
                if error_code(error) in ("InvalidRange", "416"):
                    return b""
                raise
            with contextlib.closing(answer["Body"]) as body:
                if span and not answer.get("ContentRange", "").startswith(f"bytes {offset}-"):
                    raise DataError(
                        f"{self._url_of(path)}: asked for {span['Range']}, the server sent other "
                        "bytes; it does not keep to S3's protocol, use another one"
                    )
                data: bytes = body.read()
            return data

        return self._try(path, get)

    def write(self, path: str, data: bytes) -> None:
        """Replace a file in one go; see `Store.write`."""
        self._put(path, data, {})

    def create(self, path: str, data: bytes) -> bool:
        """Make a new file in one go; see `Store.create`."""
        return self._put(path, data, {"IfNoneMatch": "*"})

    def list(self, prefix: str = "", after: str = "") -> Iterator[FileInfo]:
        """Yield files in byte order; see `Store.list`. Memory is one page of 1,000 files.

        Raises:
            DataError: The server lists in another order, which S3's protocol does not allow.
        """
        start = {"StartAfter": self._root + after} if after else {}
        last = ""
        for answer in self._pages("list_objects_v2", prefix, **start):
            server = answer["ResponseMetadata"]["HTTPHeaders"].get("server", "")
            if server.startswith(_TREE_ORDER_SERVERS):
                yield from self._walk(prefix, after)
                return
            for file in self._files(answer):
                if file.path <= last:
                    raise DataError(
                        f"{self.url}: the server ({server or 'unnamed'}) lists {file.path!r} "
                        f"behind {last!r}; consomme needs keys in byte order, as S3 has them"
                    )
                last = file.path
                yield file

    def list_level(self, prefix: str = "") -> Iterator[FileInfo]:
        """Yield the files and folders of one level; see `Store.list_level`."""
        pages = self._pages("list_objects_v2", prefix, Delimiter="/")
        yield from merge_level(
            [
                *self._files(answer),
                *(
                    FileInfo(path=item["Prefix"].removeprefix(self._root), size=0)
                    for item in answer.get("CommonPrefixes", ())
                ),
            ]
            for answer in pages
        )

    def size(self, path: str) -> int:
        """Return a file's bytes."""
        return int(self._head(path)["ContentLength"])

    def delete(self, path: str) -> None:
        """Remove a file if it is there."""
        key = self._key(path)
        self._try(path, lambda client: client.delete_object(Bucket=self.bucket, Key=key))

    def delete_many(self, paths: Iterable[str]) -> None:
        """Remove files, 1,000 in one request; what an answer reports as failed is tried again."""
        rest = iter(paths)
        while keys := [self._key(path) for path in itertools.islice(rest, _DELETE_BATCH)]:
            left = set(keys)
            self._try("", functools.partial(self._delete, left))

    def remove_orphans(self, prefix: str = "") -> int:
        """Drop uploads in parts that were never joined; see `Store.sweep`.

        They cannot be seen, but cost as much as files. Where the credentials or the server do not
        allow it, that is said once and nothing is dropped.
        """
        number = 0
        try:
            for answer in self._pages("list_multipart_uploads", prefix):
                for upload in answer.get("Uploads", ()):
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
                "uploads that were broken off are left in the bucket; a lifecycle rule "
                "(AbortIncompleteMultipartUpload) removes them too. %s",
                error,
            )
        return number

    # --- one request, tried again until it works ---

    def _try(self, path: str, request: Callable[[Any], T]) -> T:
        url = self._url_of(path)
        return retry(
            lambda: request(s3_client()), url, lambda error: classify_error(error, url), self.policy
        )

    def _pages(self, operation: str, prefix: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        """Yield the answers of a listing, each of which names where the next begins."""
        marks = {
            "NextContinuationToken": "ContinuationToken",
            "NextKeyMarker": "KeyMarker",
            "NextUploadIdMarker": "UploadIdMarker",
        }

        def ask(client: Any) -> dict[str, Any]:
            answer: dict[str, Any] = getattr(client, operation)(**arguments)
            return answer

        arguments |= {"Bucket": self.bucket, "Prefix": self._root + prefix}
        while True:
            answer = self._try(prefix, ask)
            yield answer
            if not answer.get("IsTruncated"):
                return
            arguments |= {marks[name]: answer[name] for name in marks if answer.get(name)}

    def _head(self, path: str) -> dict[str, Any]:
        key = self._key(path)
        return self._try(path, lambda client: client.head_object(Bucket=self.bucket, Key=key))

    def _files(self, answer: dict[str, Any]) -> Iterator[FileInfo]:
        for item in answer.get("Contents", ()):
            # A key that ends in a slash is a web console's idea of an empty folder.
            if not item["Key"].endswith("/"):
                yield FileInfo(
                    path=item["Key"].removeprefix(self._root),
                    size=item["Size"],
                    modified=item["LastModified"].timestamp(),
                )

    def _walk(self, prefix: str, after: str) -> Iterator[FileInfo]:
        """List level by level, which comes out in byte order on any server."""
        for entry in self.list_level(prefix):
            if not entry.path.endswith("/"):
                if entry.path > after:
                    yield entry
            elif entry.path > after or after.startswith(entry.path):
                yield from self._walk(entry.path, after)

    def _delete(self, left: set[str], client: Any) -> None:
        """Delete keys and take them out of `left`; raise the first failure as S3 would."""
        objects = [{"Key": key} for key in sorted(left)]
        answer = client.delete_objects(
            Bucket=self.bucket, Delete={"Objects": objects, "Quiet": True}
        )
        failed = {
            item.get("Key", ""): item
            for item in answer.get("Errors", ())
            if item.get("Code") != "NoSuchKey"
        }
        left.intersection_update(failed)
        if failed:
            raise ClientError({"Error": next(iter(failed.values()))}, "DeleteObjects")

    # --- putting ---

    def _put(self, path: str, data: bytes, condition: dict[str, str]) -> bool:
        """Put an object whole or in parts; False if there is one and the condition forbids it."""
        key, writer = self._key(path), uuid.uuid4().hex
        if len(data) >= MULTIPART_BYTES:
            return retry(
                lambda: self._put_parts(path, data, writer, condition),
                self._url_of(path),
                lambda error: None if isinstance(error, UploadLostError) else error,
                self.policy,
            )
        return self._decide(
            path,
            writer,
            lambda client: client.put_object(
                Bucket=self.bucket, Key=key, Body=data, Metadata={WRITER_KEY: writer}, **condition
            ),
        )

    def _decide(
        self,
        path: str,
        writer: str,
        request: Callable[[Any], object],
        *,
        is_in_doubt: bool = False,
    ) -> bool:
        """Send what makes an object appear, and tell whether ours did.

        An earlier try may have worked although its answer was lost. The next one is then told that
        the object exists, or that the upload does not; only the object itself says whose it is.
        """

        def send(client: Any) -> bool:
            nonlocal is_in_doubt
            try:
                request(client)
            except ClientError as error:
                code = error_code(error)
                is_ours = code in _DECIDED and is_in_doubt and self._is_by(writer, path)
                if is_ours or code in _EXISTS:
                    return is_ours
                is_in_doubt = True
                raise
            # After any other error nobody knows whether the object was made; it is raised again.
            except Exception:
                is_in_doubt = True
                raise
            return True

        return self._try(path, send)

    def _is_by(self, writer: str, path: str) -> bool:
        try:
            metadata = self._head(path)["Metadata"]
        except FileNotFoundError:
            return False
        return bool(metadata.get(WRITER_KEY) == writer)

    def _put_parts(self, path: str, data: bytes, writer: str, condition: dict[str, str]) -> bool:
        place = {"Bucket": self.bucket, "Key": self._key(path)}
        begun = self._try(
            path,
            lambda client: client.create_multipart_upload(**place, Metadata={WRITER_KEY: writer}),
        )
        upload: dict[str, Any] = {**place, "UploadId": begun["UploadId"]}

        def put_part(number: int) -> dict[str, Any]:
            body = data[(number - 1) * PART_BYTES : number * PART_BYTES]
            sent = self._try(
                path, lambda client: client.upload_part(**upload, PartNumber=number, Body=body)
            )
            return {"PartNumber": number, "ETag": sent["ETag"]}

        is_joined = False

        def join(client: Any) -> None:
            nonlocal is_joined
            try:
                client.complete_multipart_upload(
                    **upload, MultipartUpload={"Parts": parts}, **condition
                )
            except ClientError as error:
                if error_code(error) in _CONFLICT:
                    # S3 wants the whole upload again after it, not just this request.
                    raise UploadLostError(str(error)) from error
                raise
            is_joined = True

        try:
            num_parts = -(-len(data) // PART_BYTES)
            with ThreadPoolExecutor(_PART_THREADS) as pool:
                parts = list(pool.map(put_part, range(1, num_parts + 1)))
            # An upload before this one may have been joined without our hearing of it.
            return self._decide(path, writer, join, is_in_doubt=True)
        finally:
            if not is_joined:
                with contextlib.suppress(ConsommeError):
                    self._abort(upload)

    def _abort(self, upload: dict[str, Any]) -> None:
        path = upload["Key"].removeprefix(self._root)
        with contextlib.suppress(UploadLostError):
            self._try(path, lambda client: client.abort_multipart_upload(**upload))
