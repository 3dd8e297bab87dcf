"""Keep models of object storage and of the hub on this machine: fetched once, checked every time.

A model is complete when its marker is there, which is written last and holds the size and SHA-256
of each file. Whoever uses a model holds a shared lock on it for as long as the process lives, and
whoever fetches or removes one holds it alone. So two processes download a model once, and the least
recently used one, which makes room for another, is never one in use.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import random
import shutil
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consomme.base.errors import CheckpointError, ClusterError, RecipeError
from consomme.base.places import Lock, cache_folder, lock
from consomme.storage.stores.hub import LFS
from consomme.storage.stores.hub_place import HUB_SCHEME
from consomme.storage.stores.store import FileInfo, Store, is_safe_path

MAX_GB = "CONSOMME_CACHE_GB"
"""Environment variable: models in the cache may take so many gigabytes in all."""

DEFAULT_MAX_GB = 200.0

_MODELS = "models"
_MARKER_SUFFIX = ".complete"
_LOCK_SUFFIX = ".lock"
_CHUNK_BYTES = 16 << 20
_TRIES = 50
_THREADS = 8
"""Ranges of a file that are read at a time; each is held in memory."""

_LOG = logging.getLogger(__name__)

_in_use: dict[Path, Lock] = {}
"""Locks on the models that this process uses; its end releases them."""

_guard = threading.Lock()


def cached_model(
    store: Store,
    files: Sequence[FileInfo],
    *,
    part: Sequence[FileInfo] = (),
    whole: Sequence[FileInfo] = (),
) -> Path:
    """Return the local folder of a model in object storage; downloads it if it is not there.

    Args:
        store: Rooted at the model folder.
        files: Its files; another size or version of any of them makes another model.
        part: Those that may be here already, as a model without weights.
        whole: All files, if `files` are the model without weights, which the whole one serves too.

    Raises:
        RecipeError: There is no folder for it, or `CONSOMME_CACHE_GB` is not a number.
        CheckpointError: A file has a path that leads out of the folder.
        ClusterError: The disk is full, or the model changed or was damaged on its way.
    """
    for file in files:
        if not is_safe_path(file.path):
            raise CheckpointError(
                f"{store.url}: found a file {file.path!r}, whose path is not allowed in a model"
                " folder; remove it there"
            )
    target = _target(store, files)
    with _guard:
        if whole and _is_complete(_target(store, whole)):
            target, files = _target(store, whole), whole
        if not (target in _in_use and _is_complete(target)):
            if target in _in_use:
                _in_use.pop(target).close()
            donor = _target(store, part) if part else None
            _in_use[target] = _shared(_Wanted(store=store, files=files, donor=donor), target)
        os.utime(_lock_file(target))
    return target


def _target(store: Store, files: Sequence[FileInfo]) -> Path:
    """Return where a model is kept."""
    listing = "\n".join(f"{file.path} {file.size} {file.version}" for file in files)
    digest = hashlib.sha256(f"{store.url}\n{listing}".encode()).hexdigest()[:32]
    return cache_folder(_MODELS) / digest


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """A model that is to be on this machine."""

    store: Store
    files: Sequence[FileInfo]
    donor: Path | None
    """Another model of the cache that has some of the files."""


def _shared(wanted: _Wanted, target: Path) -> Lock:
    """Have a model complete, and return the shared lock that keeps it so.

    Whoever can lock it alone fetches it; all others wait for a shared lock. They never wait for an
    exclusive one, which those who use the model would keep from them.
    """
    for number in range(_TRIES):
        alone = lock(_lock_file(target), wait=False)
        if alone is not None:
            with alone:
                if not _is_complete(target):
                    _fetch(wanted, target)
        elif number == 0 and not _is_complete(target):
            _LOG.info(
                "%s: another process is fetching this model; waiting for it", wanted.store.url
            )
        held = lock(_lock_file(target), is_shared=True)
        if held is not None:
            if _is_complete(target):
                return held
            # It was removed between the two locks, or who fetched it died.
            held.close()
        time.sleep(random.uniform(0.1, 0.3))
    raise CheckpointError(
        f"{target}: found a damaged copy of {wanted.store.url} that other processes are using; end"
        " them, or remove the folder, and run the same command again"
    )


def _fetch(wanted: _Wanted, target: Path) -> None:
    """Download a model; its lock is held alone."""
    url = wanted.store.url
    if target.exists():
        _LOG.warning("%s: incomplete or damaged; fetching %s again", target, url)
        _delete(target)
    num_bytes = sum(file.size for file in wanted.files)
    _make_room(target.parent, num_bytes)
    _LOG.info("fetching %s, %.1f MB, into %s", url, num_bytes / 1e6, target)
    try:
        _download(wanted, target)
    except OSError as error:
        _delete(target)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _no_room(target.parent, num_bytes) from error
    except BaseException:
        _delete(target)
        raise


def _download(wanted: _Wanted, target: Path) -> None:
    target.mkdir(mode=0o700)
    entries = []
    with (
        ThreadPoolExecutor(_THREADS, thread_name_prefix="model") as pool,
        _donated(wanted) as here,
    ):
        for file in wanted.files:
            local = target / file.path
            local.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            digest, num_bytes = hashlib.sha256(), 0
            ranges = _pieces(here[file.path]) if file.path in here else _ranges(wanted, file, pool)
            with local.open("xb") as copy:
                for piece in ranges:
                    copy.write(piece)
                    digest.update(piece)
                    num_bytes += len(piece)
                copy.flush()
                os.fsync(copy.fileno())
            found = digest.hexdigest()
            named = f"{wanted.store.url}/{file.path}"
            if num_bytes != file.size:
                raise ClusterError(
                    f"{named}: found {num_bytes:,} bytes, expected {file.size:,}; the model changed"
                    " while it was fetched, so run the same command again"
                )
            if file.version.startswith(LFS) and file.version != LFS + found:
                raise ClusterError(
                    f"{named}: the SHA-256 of what came is {found}, the hub says"
                    f" {file.version.removeprefix(LFS)}; it was damaged on its way, so run the same"
                    " command again"
                )
            entries.append(_Entry.of(target, file.path, found))
    _check_unchanged(wanted)
    _write_marker(target, entries)


def _ranges(wanted: _Wanted, file: FileInfo, pool: ThreadPoolExecutor) -> Iterator[bytes]:
    """Yield the bytes of a file in order, several ranges of it being read at a time."""
    waiting: deque[Future[bytes]] = deque()
    # An empty file is read too, to see that it is there.
    for start in range(0, max(file.size, 1), _CHUNK_BYTES):
        length = min(_CHUNK_BYTES, file.size - start) if file.size > _CHUNK_BYTES else None
        waiting.append(pool.submit(wanted.store.read, file.path, start, length))
        if len(waiting) == _THREADS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            yield piece


@contextlib.contextmanager
def _donated(wanted: _Wanted) -> Iterator[dict[str, Path]]:
    """Yield the files that another model of the cache has already, by path, and keep them there."""
    donor = wanted.donor
    held = donor and lock(_lock_file(donor), wait=False, is_shared=True, create=False)
    if donor is None or not held:
        yield {}
        return
    with held:
        entries = (_read_marker(donor) or ()) if _is_complete(donor) else ()
        yield {entry.path: donor / entry.path for entry in entries}


def _check_unchanged(wanted: _Wanted) -> None:
    """Check that no file was written again while its ranges were read."""
    if wanted.store.url.startswith(HUB_SCHEME):
        return  # A commit never changes.
    for file in wanted.files:
        if file.version and wanted.store.info(file.path).version != file.version:
            raise ClusterError(
                f"{wanted.store.url}/{file.path} was written again while it was fetched; run the"
                " same command again"
            )


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One file of a cached model."""

    path: str
    sha256: str
    stamp: tuple[int, int, int]
    """Size, and times of the last change to content and inode: while they are the same, the file is
    not read again."""

    @classmethod
    def of(cls, folder: Path, path: str, sha256: str) -> _Entry:
        found = (folder / path).lstat()
        stamp = (found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        return cls(path=path, sha256=sha256, stamp=stamp)

    def is_there(self, folder: Path) -> bool:
        """Whether the file is as it was written."""
        file = folder / self.path
        if not file.is_file() or file.is_symlink():
            return False
        if _Entry.of(folder, self.path, self.sha256) == self:
            return True
        return file.stat().st_size == self.stamp[0] and _sha256(file) == self.sha256


def _is_complete(folder: Path) -> bool:
    """Check a model folder against its marker."""
    entries = _read_marker(folder)
    return entries is not None and all(entry.is_there(folder) for entry in entries)


def _read_marker(folder: Path) -> list[_Entry] | None:
    try:
        content = json.loads(_marker(folder).read_bytes())
        return [
            _Entry(path=e["path"], sha256=e["sha256"], stamp=tuple(e["stamp"])) for e in content
        ]
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _write_marker(folder: Path, entries: Sequence[_Entry]) -> None:
    partial = _marker(folder).with_suffix(".partial")
    partial.unlink(missing_ok=True)
    content: list[dict[str, Any]] = [
        {"path": e.path, "sha256": e.sha256, "stamp": list(e.stamp)} for e in entries
    ]
    with partial.open("x") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(_marker(folder))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _make_room(models: Path, num_bytes: int) -> None:
    """Remove the models that were used least recently until another one fits.

    What processes left that died while they fetched is removed first.

    Raises:
        ClusterError: The disk has no room for it.
    """
    most = _max_bytes()
    known = sorted(models.glob(f"*{_LOCK_SUFFIX}"), key=_used)
    for path in known:
        if not _marker(path.with_suffix("")).exists():
            _remove(path)
    sizes = {path: _size(path.with_suffix("")) for path in known}
    total = sum(sizes.values())
    for path in known:
        if total + num_bytes <= most and shutil.disk_usage(models).free > num_bytes:
            break
        if _remove(path):
            total -= sizes[path]
    free = shutil.disk_usage(models).free
    if free <= num_bytes:
        raise _no_room(models, num_bytes)


def _no_room(models: Path, num_bytes: int) -> ClusterError:
    free = shutil.disk_usage(models).free
    return ClusterError(
        f"{models}: a model of {num_bytes / 1e9:,.2f} GB does not fit, {free / 1e9:,.2f} GB are"
        " free; make room, or set CONSOMME_CACHE_DIR to a folder on another disk, and run the"
        " same command again"
    )


def _remove(lock_file: Path) -> bool:
    """Remove a model that no process uses."""
    folder = lock_file.with_suffix("")
    held = lock(lock_file, wait=False, create=False)
    if held is None:
        return False
    with held:
        if folder.exists():
            _LOG.info("removing %s from the cache: incomplete, or used least recently", folder)
        _delete(folder)
        lock_file.unlink(missing_ok=True)
    return True


def _delete(folder: Path) -> None:
    """Delete a model folder whose lock is held alone."""
    # Without its marker it is incomplete, even if this process dies meanwhile.
    _marker(folder).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _marker(target: Path) -> Path:
    """Return the file that says that a model is complete: beside it, not one of its files."""
    return target.with_name(target.name + _MARKER_SUFFIX)


def _lock_file(target: Path) -> Path:
    return target.with_name(target.name + _LOCK_SUFFIX)


def _used(lock_file: Path) -> float:
    with contextlib.suppress(FileNotFoundError):
        return lock_file.stat().st_mtime
    return 0.0


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.lstat().st_size
    return total


def _max_bytes() -> float:
    text = os.environ.get(MAX_GB, "")
    try:
        number = float(text) if text else DEFAULT_MAX_GB
    except ValueError:
        number = -1.0
    if not number > 0:
        raise RecipeError(f"{MAX_GB}: found {text!r}, expected a number of gigabytes above 0")
    return number * 1e9
