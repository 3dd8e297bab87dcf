"""List very many files: several folders concurrently, in order, in bounded memory."""

import itertools
import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from consomme.storage.stores.store import FileInfo, Store

_BATCH = 1000
_BATCHES_AHEAD = 16
_MAX_DEPTH = 3


def list_parallel(store: Store, prefix: str = "", num_threads: int = 16) -> Iterator[FileInfo]:
    """Yield what `store.list(prefix)` would, listing up to `num_threads` folders at a time.

    Folders near the root are expanded until every thread has one. Up to 16,000 files per folder are
    listed ahead of the reader (60 MB with 16 threads). The files of one folder come one request
    after the other, so larger folders gain less, and a data set in a single folder gains nothing.
    320,000 files in 16 folders at 50 ms a request take 4 s instead of 17 s.

    Args:
        store: Any store.
        prefix: See `Store.list`.
        num_threads: Concurrent requests.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(num_threads, thread_name_prefix="list") as pool:
        try:
            waiting: deque[FileInfo | _FolderListing] = deque()
            num_folders = 0
            for entry in _expand_folders(store.list_level(prefix), store, num_threads, _MAX_DEPTH):
                if not entry.path.endswith("/"):
                    waiting.append(entry)
                else:
                    folder = _FolderListing(store, entry.path, stop)
                    pool.submit(folder.run)
                    waiting.append(folder)
                    num_folders += 1
                while num_folders == num_threads or len(waiting) >= _BATCH:
                    first = waiting.popleft()
                    num_folders -= isinstance(first, _FolderListing)
                    yield from _files(first)
            while waiting:
                yield from _files(waiting.popleft())
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


def merge_level(pages: Iterable[Sequence[FileInfo]]) -> Iterator[FileInfo]:
    """Sort the files and folders of one level by the bytes of their whole paths.

    Args:
        pages: The level in pages, which are ordered by names with or without the slash of a folder;
            within a page the order is arbitrary. Only entries that the next page may still precede
            are held back.
    """
    held: list[FileInfo] = []
    for page in pages:
        if not page:
            continue
        held = sorted([*held, *page], key=lambda entry: entry.path)
        reached = max(entry.path.removesuffix("/") for entry in page)
        ready = sum(entry.path <= reached for entry in held)
        yield from held[:ready]
        held = held[ready:]
    yield from held


class _FolderListing:
    """One folder, listed by a thread that stays a bounded number of batches ahead."""

    def __init__(self, store: Store, folder: str, stop: threading.Event) -> None:
        self._files = store.list(folder)
        self._stop = stop
        self._batches: queue.Queue[list[FileInfo] | BaseException] = queue.Queue(_BATCHES_AHEAD)

    def run(self) -> None:
        """List the folder; an empty batch marks the end."""
        try:
            while batch := list(itertools.islice(self._files, _BATCH)):
                if not self._put(batch):
                    return
            self._put([])
        except BaseException as error:  # noqa: BLE001 - raised again by the reader.
            self._put(error)

    def __iter__(self) -> Iterator[FileInfo]:
        while True:
            batch = self._batches.get()
            if isinstance(batch, BaseException):
                raise batch
            if not batch:
                return
            yield from batch

    def _put(self, batch: list[FileInfo] | BaseException) -> bool:
        while not self._stop.is_set():
            try:
                self._batches.put(batch, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False


def _files(item: FileInfo | _FolderListing) -> Iterator[FileInfo]:
    return iter(item) if isinstance(item, _FolderListing) else iter((item,))


def _expand_folders(
    level: Iterator[FileInfo], store: Store, wanted: int, depth: int
) -> Iterator[FileInfo]:
    """Yield the files and folders of one level; if there are few folders, their content instead."""
    first = list(itertools.islice(level, _BATCH))
    num_folders = sum(entry.path.endswith("/") for entry in first)
    is_expanded = len(first) < _BATCH and num_folders < wanted and depth > 1
    for entry in itertools.chain(first, level):
        if not (is_expanded and entry.path.endswith("/")):
            yield entry
            continue
        inside = list(itertools.islice(store.list_level(entry.path), _BATCH))
        if len(inside) == _BATCH:
            # A large folder is not expanded: its files would then be listed without a thread.
            yield entry
        else:
            yield from _expand_folders(iter(inside), store, wanted, depth - 1)
