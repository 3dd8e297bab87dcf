"""What a run reads, told apart by content as far as the storage knows it, never by where it lies.

Shards are identified by name, size and version: the ETag on S3, the generation on GCS, the time of
the last write in nanoseconds on a file system, a checksum of the bytes in the package. Shards in a
finished run are identified by what its manifest says of them, so they stay the same in a copy of
the run. What JSON, JSON lines and Parquet may refer to lies beside them, and is listed.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from consomme.base.errors import DataError
from consomme.base.manifest import FileSum, Manifest, load_parent
from consomme.storage import image_folder
from consomme.storage.ledger.attempts import OUTPUTS
from consomme.storage.ledger.run_folder import MANIFEST, RunFolder, load_manifest
from consomme.storage.ledger.sums import read_sum
from consomme.storage.moved import MovedShards
from consomme.storage.pins import portable_url
from consomme.storage.plan import SHARDS, load_shards
from consomme.storage.readers.parquet import refers_to_files
from consomme.storage.shards import SHARD_SUFFIXES, Shard, find_shards, shards_fingerprint
from consomme.storage.stores.hub_place import is_hub_url
from consomme.storage.stores.listing import list_parallel
from consomme.storage.stores.local import LocalStore
from consomme.storage.stores.open import PACKAGE_SCHEME, absolute_url, open_store, split_url
from consomme.storage.stores.store import BROKEN_LINK, FileInfo

if TYPE_CHECKING:
    from consomme.storage.stores.store import Store

logger = logging.getLogger(__name__)

NOT_PICTURES = (
    *SHARD_SUFFIXES,
    *(".csv", ".html", ".log", ".md", ".npy", ".py", ".safetensors", ".txt", ".yaml", ".yml"),
)
"""Endings of files beside shards that are no pictures; what changes in them changes no data."""

_DATA_VERBS = ("score", "tag", "filter", "dedup", "recaption")
"""Verbs whose runs are about samples of shards."""

_MAX_SINGLE_LOOKUPS = 16
"""If more shards than this lie in a folder, they are looked up in a listing."""

_MAX_FOOTERS = 32
"""If more Parquet files than this lie in a folder, what lies beside them is listed anyway."""

_THREADS = 16
_SECOND_NS = 10**9
_TICK_NS = 30_000_000
"""Two writes of a file within this time may get the same time: Linux counts in ticks of 1 to 10
ms."""

_COARSE_TICK_NS = 2 * _SECOND_NS
"""The same on file systems that keep whole seconds, such as FAT."""


def find_data(
    inputs: Sequence[str],
    source: str = "data",
    sources: Mapping[str, Sequence[str]] | None = None,
    suffixes: tuple[str, ...] = SHARD_SUFFIXES,
) -> list[Shard]:
    """List the shards of all named data sets, as `find_shards` does, with versions by content.

    Raises:
        RecipeError: An input matches nothing; see `find_shards`.
        DataError: A shard of a finished run is not what the run wrote.
    """
    return _named_by_content(find_shards(inputs, source, sources, suffixes))


PICTURES = ".pictures"
"""Ends the key of a fingerprint of what lies beside shards."""


def data_fingerprints(
    shards: Sequence[Shard], root: str, key: str = "data", image_root: str | None = None
) -> dict[str, str]:
    """Fingerprint shards and what lies beside them; see the module docstring.

    Costs one listing of the folders of JSON, JSON lines and Parquet with paths: about 15 s per
    million local files, and a request per thousand files in a bucket.

    Args:
        shards: What `find_data` found.
        root: Where run folders are created; it may lie beside the shards and is not part of them.
        key: Of the recipe.
        image_root: Of the recipe's `Reading`: where images lie if not beside the shards.

    Returns:
        The fingerprint of the shards under the key, and that of the pictures, if there are any.
    """
    found = {key: shards_fingerprint(shards)}
    beside = "".join(pictures_beside(shards, root, image_root).values())
    if beside:
        found[key + PICTURES] = hashlib.sha256(beside.encode()).hexdigest()[:16]
    return found


def pictures_beside(
    shards: Sequence[Shard], root: str, image_root: str | None = None
) -> dict[str, str]:
    """Fingerprint the pictures beside shards that may refer to some, by the folder of the shards.

    Returns when a file that is written again has another time than it has now.

    Args:
        shards: As for `data_fingerprints`.
        root: See there.
        image_root: See there.
    """
    loose = [shard for shard in shards if not shard.is_of_run]
    times = [
        int(shard.version) for shard in loose if "://" not in shard.url and shard.version.isdigit()
    ]
    found: dict[str, str] = {}
    folders = _folders_with_pictures(loose)
    if image_root is not None:
        folders = [portable_url(image_root)]
    for folder in folders:
        beside = _Beside(open_store(folder), absolute_url(root))
        if beside.num_files:
            found[folder] = beside.digest
        times += beside.newest_ns
    _wait_for_the_next_tick(times)
    return found


def run_of(url: str) -> str | None:
    """Find the finished run that a file or folder lies in, at most three levels up."""
    if is_hub_url(url):
        return None
    current = absolute_url(url)
    for _ in range(4):
        if open_store(current).exists(MANIFEST):
            return current
        current = current.rpartition("/")[0]
        if not current or current.endswith(":/"):
            return None
    return None


def check_outputs(manifest: Manifest, paths: Iterable[str]) -> None:
    """Check that files of a finished run are what the run wrote.

    A file that was last written before the manifest is only asked for its size. Any other, as in a
    copy of the run, is read and compared.

    Args:
        manifest: Of the run.
        paths: Files in its folder.

    Raises:
        DataError: A file is missing, or is not what the run wrote.
    """
    folder = RunFolder.at(manifest.url)
    written = folder.store.info(MANIFEST).modified

    def check(path: str) -> None:
        try:
            file = folder.store.info(path)
        except FileNotFoundError as error:
            raise DataError(_not_what_was_written(manifest, path, "it is missing")) from error
        _check_file(manifest, folder, replace(file, path=path), written)

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(check, paths))


def check_data(run_url: str, *, are_read: bool = True) -> None:
    """Check that the shards behind a run are what they were when it, or its parents, read them.

    A view and captions are about shards that are read again with them. Runs of earlier versions did
    not record what they read; of those nothing is known.

    Args:
        run_url: The run.
        are_read: Whether shards have to be there; if not, those that are gone are left out.

    Raises:
        DataError: A shard has changed, or is gone.
    """
    run = RunFolder.at(run_url)
    moved = MovedShards(run)
    for folder in _readers_of_data(run.manifest()):
        before, beside = load_shards(folder.store)
        found = {moved.url(shard.url): shard for shard in before}
        now = _versions_now(list(found))
        for url, shard in found.items():
            if url not in now and not are_read:
                continue
            if now.get(url) != (shard.size, shard.version):
                what = "has changed" if url in now else "is gone"
                raise DataError(
                    f"{url} {what} since {folder.url} read it, and {run.url} was made from that."
                    " Make these runs again on the data of today, or put the shard back"
                )
        root = folder.url.rsplit("/", 2)[0]
        for place, digest in beside.items():
            beside_now = _Beside(open_store(place), root)
            if beside_now.digest != digest and (beside_now.num_files or are_read):
                raise DataError(
                    f"{place}: pictures beside the shards have changed since {folder.url} read"
                    f" them, and {run.url} was made from that. Make these runs again on the data of"
                    " today, or put the pictures back"
                )


def _readers_of_data(manifest: Manifest) -> Iterator[RunFolder]:
    """Yield the run and the runs that it got its samples from, as far as they read shards."""
    pending, seen = [manifest], {manifest.url}
    while pending:
        current = pending.pop()
        folder = RunFolder.at(current.url)
        if folder.store.exists(SHARDS):
            yield folder
        for parent in current.parents:
            if parent.verb in _DATA_VERBS:
                found = load_parent(current, parent, load_manifest)
                if found.url not in seen:
                    seen.add(found.url)
                    pending.append(found)


def _versions_now(urls: Sequence[str]) -> dict[str, tuple[int, str]]:
    """Return size and version of shards by URL; those that are gone are left out."""
    by_folder: dict[str, list[str]] = {}
    for url in urls:
        by_folder.setdefault(url.rpartition("/")[0], []).append(url)
    shards: list[Shard] = []
    for folder, inside in by_folder.items():
        store = open_store(folder or "/")
        wanted = {url.rpartition("/")[2]: url for url in inside}
        files = store.list_level() if len(inside) > _MAX_SINGLE_LOOKUPS else _infos(store, wanted)
        shards += [
            Shard(
                url=wanted[file.path],
                size=file.size,
                version=file.version,
                modified=file.modified,
            )
            for file in files
            if file.path in wanted
        ]
    return {shard.url: (shard.size, shard.version) for shard in _named_by_content(shards)}


def _infos(store: Store, names: Iterable[str]) -> Iterator[FileInfo]:
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            # A folder of images is a shard without a name of its own.
            file = store.info(name) if name else image_folder.info(store)
            if file is not None:
                yield replace(file, path=name)


def _named_by_content(shards: Sequence[Shard]) -> list[Shard]:
    """Give shards of finished runs, and of the package, versions that do not depend on time."""
    runs: dict[str, _RunFiles | None] = {}
    named = []
    to_read: list[tuple[_RunFiles, FileInfo]] = []
    for shard in shards:
        folder = shard.url.rpartition("/")[0]
        if folder not in runs:
            runs[folder] = _RunFiles.around(folder)
        run = runs[folder]
        path = run.path_of(shard.url) if run else None
        if run is not None and path is not None:
            file = FileInfo(path=path, size=shard.size, modified=shard.modified)
            to_read.append((run, file))
            version = f"{run.manifest.content}/{path}"
            named.append(replace(shard, version=version, is_of_run=True))
        elif shard.url.startswith(PACKAGE_SCHEME):
            store, name = split_url(shard.url)
            named.append(replace(shard, version=read_sum(store, name).sha256))
        else:
            named.append(shard)
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda pair: pair[0].check(pair[1]), to_read))
    return named


@dataclass(frozen=True)
class _RunFiles:
    """A finished run whose manifest has checksums, and shards in its folder."""

    manifest: Manifest
    folder: RunFolder
    written: float
    """When the manifest was written, in seconds since 1970."""

    @classmethod
    def around(cls, folder_url: str) -> _RunFiles | None:
        """Return the run that a folder lies in, if there is one with checksums."""
        url = None if folder_url.startswith(PACKAGE_SCHEME) else run_of(folder_url)
        if url is None:
            return None
        folder = RunFolder.at(url)
        manifest = folder.manifest()
        if not manifest.content:
            return None
        return cls(manifest, folder, folder.store.info(MANIFEST).modified)

    def path_of(self, url: str) -> str | None:
        """Return the path of a shard in the run folder; None if the run did not write it."""
        path = url.removeprefix(f"{self.folder.url}/")
        is_in_ledger = self.manifest.ledger is not None and path.startswith(OUTPUTS)
        return path if is_in_ledger or path in self.manifest.files else None

    def check(self, file: FileInfo) -> None:
        """Check that a shard is what the run wrote."""
        _check_file(self.manifest, self.folder, file, self.written)


def _check_file(manifest: Manifest, folder: RunFolder, file: FileInfo, written: float) -> None:
    known = manifest.files.get(file.path)
    if known is not None and known.num_bytes != file.size:
        found = f"it has {file.size:,} bytes, recorded {known.num_bytes:,}"
        raise DataError(_not_what_was_written(manifest, file.path, found))
    if file.modified < written:
        return
    known = known or _recorded(folder, file.path)
    if known is None or read_sum(folder.store, file.path) != known:
        found = "no record names it" if known is None else "its checksum differs"
        raise DataError(_not_what_was_written(manifest, file.path, found))


def _recorded(folder: RunFolder, path: str) -> FileSum | None:
    """Return what the ledger says of an output file."""
    unit_id = path.rpartition("/")[2].rpartition("-")[0]
    record = folder.find_commit(unit_id)
    for file in record.files if record else ():
        if file.path == path:
            return FileSum(num_bytes=file.num_bytes, sha256=file.sha256)
    return None


def _not_what_was_written(manifest: Manifest, path: str, found: str) -> str:
    return (
        f"{manifest.url}/{path} is not what this {manifest.verb} run wrote: {found}. If the change"
        " is meant, copy the file out of the run folder and read it there; to have the run make it"
        f" again: consomme verify {manifest.url} repair=true plan=true"
    )


def _folders_with_pictures(shards: Sequence[Shard]) -> list[str]:
    """List the folders, without those inside another, in which shards may refer to pictures."""
    by_folder: dict[str, list[Shard]] = {}
    for shard in shards:
        if not shard.url.endswith(".tar") and not shard.url.startswith(PACKAGE_SCHEME):
            by_folder.setdefault(shard.url.rpartition("/")[0], []).append(shard)
    wanted = sorted(folder for folder, inside in by_folder.items() if _may_refer(inside))
    top: list[str] = []
    for folder in wanted:
        if not (top and f"{folder}/".startswith(f"{top[-1]}/")):
            top.append(folder or "/")
    return top


def _may_refer(shards: Sequence[Shard]) -> bool:
    """Whether shards of one folder may name files beside them."""
    parquet = [shard for shard in shards if shard.url.endswith(".parquet")]
    if len(parquet) < len(shards) or len(parquet) > _MAX_FOOTERS:
        return True

    def refers(shard: Shard) -> bool:
        store, name = split_url(shard.url)
        with store.open(name) as file:
            return refers_to_files(file)

    with ThreadPoolExecutor(_THREADS) as pool:
        return any(pool.map(refers, parquet))


class _Beside:
    """The pictures below a folder, as a sum over all of them: any order, no memory."""

    def __init__(self, store: Store, root: str) -> None:
        total = self.num_files = 0
        self.newest_ns: list[int] = []
        """Time of the last write, if the store is a file system."""

        is_local = isinstance(store, LocalStore)
        newest, started, told = 0, time.monotonic(), 10.0
        for file in self._pictures(store, root):
            text = f"{file.path}\0{file.size}\0{file.version}"
            hashed = hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
            total = (total + int.from_bytes(hashed, "big")) % (1 << 256)
            self.num_files += 1
            if is_local and file.version != BROKEN_LINK:
                newest = max(newest, int(file.version))
            if time.monotonic() - started > told:
                logger.info(
                    "data: %s files beside the shards in %s so far; they may be its pictures, so"
                    " they are listed. Shards in a folder of their own, with nothing but their"
                    " pictures, are found sooner",
                    f"{self.num_files:,}",
                    store.url,
                )
                told *= 3
        self.newest_ns += [newest] if newest else []
        self.digest = f"{total:064x}"

    @staticmethod
    def _pictures(store: Store, root: str) -> Iterator[FileInfo]:
        own = f"{root}/".removeprefix(f"{store.url.rstrip('/')}/")
        for file in list_parallel(store):
            if not file.path.startswith(own) and not file.path.endswith(NOT_PICTURES):
                yield file


def _wait_for_the_next_tick(times_ns: Sequence[int]) -> None:
    """Wait until a file that is written again gets another time than it has now.

    Two writes within a tick of the file system's clock have the same time, so a file that was
    written just now could still change without a trace.
    """
    now = time.time_ns()
    waits = [
        written + (_TICK_NS if written % _SECOND_NS else _COARSE_TICK_NS) - now
        for written in times_ns
        if written <= now
    ]
    longest = max(waits, default=0)
    if longest > 0:
        time.sleep(longest / _SECOND_NS)
