"""Ray Train's view of the run folder: checkpoints go through our own stores.

pyarrow's own S3 client retries for seconds and then fails the training; a store waits for as long
as the recipe says, and finds credentials and endpoint where everything else finds them.
"""

from __future__ import annotations

import io
import mmap
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow.fs import FileInfo, FileSelector, FileSystemHandler, FileType, PyFileSystem

from consomme.storage.stores.open import absolute_url, open_store
from consomme.storage.stores.store import Store


def storage_of(url: str) -> dict[str, Any]:
    """Return the keywords of Ray Train's `RunConfig` that say where checkpoints are stored.

    Args:
        url: The run folder.
    """
    url = absolute_url(url)
    scheme, separator, path = url.partition("://")
    if not separator:
        return {"storage_path": url}
    return {"storage_path": path, "storage_filesystem": PyFileSystem(StoreHandler(scheme))}


class StoreHandler(FileSystemHandler):  # type: ignore[misc]
    """The buckets of one scheme as a pyarrow file system; paths are `bucket/folder/file`."""

    def __init__(self, scheme: str) -> None:
        """Keep the scheme, so that the handler can be sent to any process."""
        self.scheme = scheme

    def __eq__(self, other: object) -> bool:
        """Whether another handler opens the same files."""
        return isinstance(other, StoreHandler) and other.scheme == self.scheme

    def __ne__(self, other: object) -> bool:
        """Whether another handler opens other files."""
        return not self == other

    def __hash__(self) -> int:
        """Hash what equality compares."""
        return hash(self.scheme)

    def __reduce__(self) -> tuple[Any, ...]:
        """Send the scheme only."""
        return StoreHandler, (self.scheme,)

    def get_type_name(self) -> str:
        """Name the file system."""
        return f"consomme+{self.scheme}"

    def normalize_path(self, path: str) -> str:
        """Return the path as it is."""
        return path

    def _split(self, path: str) -> tuple[Store, str]:
        bucket, _, inside = path.strip("/").partition("/")
        return open_store(f"{self.scheme}://{bucket}"), inside

    def get_file_info(self, paths: Sequence[str]) -> list[FileInfo]:
        """Look up files and folders; a folder exists if there are files below it."""
        return [self._info(path) for path in paths]

    def _info(self, path: str) -> FileInfo:
        store, inside = self._split(path)
        if not inside:
            return FileInfo(path, FileType.Directory)
        try:
            return FileInfo(path, FileType.File, size=store.size(inside))
        except FileNotFoundError:
            is_folder = next(store.list(f"{inside}/"), None) is not None
            return FileInfo(path, FileType.Directory if is_folder else FileType.NotFound)

    def get_file_info_selector(self, selector: FileSelector) -> list[FileInfo]:
        """List a folder."""
        found = list(self._listing(selector.base_dir.strip("/"), is_deep=selector.recursive))
        if not found and not selector.allow_not_found:
            raise FileNotFoundError(selector.base_dir)
        return found

    def _listing(self, base: str, *, is_deep: bool) -> Iterator[FileInfo]:
        store, inside = self._split(base)
        prefix = f"{inside}/" if inside else ""
        bucket = base.partition("/")[0]
        seen: set[str] = set()
        # All files, at any depth: some servers list folders that have no files any more.
        for file in store.list(prefix):
            parts = file.path.removeprefix(prefix).split("/")[:-1]
            for depth in range(1, len(parts) + 1 if is_deep else min(len(parts), 1) + 1):
                folder = f"{bucket}/{prefix}{'/'.join(parts[:depth])}"
                if folder not in seen:
                    seen.add(folder)
                    yield FileInfo(folder, FileType.Directory)
            if is_deep or not parts:
                yield FileInfo(f"{bucket}/{file.path}", FileType.File, size=file.size)

    def create_dir(self, path: str, recursive: bool) -> None:
        """Do nothing: buckets have no folders of their own."""

    def delete_dir(self, path: str) -> None:
        """Delete all files below a folder."""
        store, inside = self._split(path)
        store.delete_many([file.path for file in store.list(f"{inside}/")])

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        """Delete all files below a folder."""
        self.delete_dir(path)

    def delete_root_dir_contents(self) -> None:
        """Refuse to empty all buckets."""
        raise ValueError("the buckets of a user are never emptied")

    def delete_file(self, path: str) -> None:
        """Delete a file."""
        store, inside = self._split(path)
        store.delete(inside)

    def move(self, src: str, dest: str) -> None:
        """Copy a file, and delete it."""
        self.copy_file(src, dest)
        self.delete_file(src)

    def copy_file(self, src: str, dest: str) -> None:
        """Copy a file."""
        with self.open_input_stream(src) as source, self.open_output_stream(dest, None) as target:
            while chunk := source.read(16 << 20):
                target.write(chunk)

    def open_input_stream(self, path: str) -> Any:
        """Open a file for reading."""
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> Any:
        """Open a file for reading and seeking."""
        store, inside = self._split(path)
        return pa.PythonFile(store.open(inside), mode="r")

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        """Open a file for writing; it appears when it is closed."""
        store, inside = self._split(path)
        return pa.PythonFile(_Upload(store, inside), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> Any:
        """Refuse: objects cannot be appended to."""
        raise NotImplementedError("objects cannot be appended to")


class _Upload(io.RawIOBase):
    """Collects a file on the local disk, and stores it as a whole when it is closed."""

    def __init__(self, store: Store, path: str) -> None:
        self._store, self._path = store, path
        self._file: BinaryIO = tempfile.TemporaryFile(prefix="consomme-upload-")

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, data: Any) -> int:
        """Append bytes."""
        return self._file.write(data)

    def close(self) -> None:
        """Store the file."""
        if self.closed:
            return
        super().close()
        with self._file:
            size = self._file.tell()
            if not size:
                self._store.write(self._path, b"")
                return
            self._file.flush()
            # A shard of an optimizer need not fit into memory twice.
            with mmap.mmap(self._file.fileno(), size, access=mmap.ACCESS_READ) as content:
                self._store.write(self._path, content)  # type: ignore[arg-type]

    def __del__(self) -> None:
        """Drop a file that was not closed: whoever wrote it did not finish."""
        self._file.close()
