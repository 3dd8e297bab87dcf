"""Listings of very many files: several folders at once, in order, in bounded memory."""

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

    Folders near the top are opened until there is enough to do at once. What is found early waits
    for its turn, at most 16,000 files of each folder (60 MB with 16 threads), so larger folders
    gain less: files of one folder come one request after the other, and a data set in a single
    folder gains nothing. 320,000 files in 16 folders at 50 ms a request take 4 s, not 17 s.

    Args:
        store: Any store.
        prefix: See `Store.list`.
        num_threads: Requests in flight.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(num_threads, thread_name_prefix="list") as pool:
        try:
            waiting: deque[FileInfo | _Branch] = deque()
            num_branches = 0
            for entry in _pieces(store.list_level(prefix), store, num_threads, _MAX_DEPTH):
                if not entry.path.endswith("/"):
                    waiting.append(entry)
                else:
                    branch = _Branch(store, entry.path, stop)
                    pool.submit(branch.run)
                    waiting.append(branch)
                    num_branches += 1
                while num_branches == num_threads or len(waiting) >= _BATCH:
                    first = waiting.popleft()
                    num_branches -= isinstance(first, _Branch)
                    yield from _files(first)
            while waiting:
                yield from _files(waiting.popleft())
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


def merge_level(pages: Iterable[Sequence[FileInfo]]) -> Iterator[FileInfo]:
    """Put the files and folders of one level into byte order of whole paths.

    Args:
        pages: The level in pages, which come in the order of names with or without the slash
            of a folder; within a page anything goes. Only what the next page may still precede is
            kept back.
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


class _Branch:
    """One folder, listed in a thread that runs a bounded way ahead of the reader."""

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
        except BaseException as error:  # noqa: BLE001 - the reader raises it.
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


def _files(piece: FileInfo | _Branch) -> Iterator[FileInfo]:
    return iter(piece) if isinstance(piece, _Branch) else iter((piece,))


def _pieces(level: Iterator[FileInfo], store: Store, wanted: int, depth: int) -> Iterator[FileInfo]:
    """Yield files and folders of one level; where there are few folders, what is in them."""
    first = list(itertools.islice(level, _BATCH))
    num_folders = sum(entry.path.endswith("/") for entry in first)
    is_opened = len(first) < _BATCH and num_folders < wanted and depth > 1
    for entry in itertools.chain(first, level):
        if not (is_opened and entry.path.endswith("/")):
            yield entry
            continue
        inside = list(itertools.islice(store.list_level(entry.path), _BATCH))
        if len(inside) == _BATCH:
            # A large folder stays one piece: opened here, its files would come without a thread.
            yield entry
        else:
            yield from _pieces(iter(inside), store, wanted, depth - 1)
