"""Open and close run folders the same way for every verb.

One decision is made here: a run whose manifest exists is done, and running it again returns the
manifest.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from consomme.base.manifest import Manifest, Parent
from consomme.base.recipe import fingerprint, to_yaml
from consomme.base.schema import to_plain
from consomme.storage.ledger.run_folder import MANIFEST, RunFolder, load_manifest
from consomme.storage.shards import Shard
from consomme.storage.stores.open import absolute_url, open_store

logger = logging.getLogger(__name__)

_LOOKING: ContextVar[bool] = ContextVar("looking", default=False)


class RunNotDoneError(Exception):
    """A run that would have to be done, met while only looking."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder.url)
        self.folder = folder


@contextlib.contextmanager
def looking() -> Iterator[None]:
    """Only look: `begin` makes no folder inside the block, and raises if a run is not done."""
    token = _LOOKING.set(True)
    try:
        yield
    finally:
        _LOOKING.reset(token)


@dataclass
class Run:
    """One attempt at a run: its folder, and what its manifest will say of its beginnings."""

    folder: RunFolder
    verb: str
    recipe: Any
    fingerprint: str
    inputs: Mapping[str, str]
    parents: tuple[Parent, ...]
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    clock: float = field(default_factory=time.monotonic)

    def finish(
        self,
        *,
        counts: Mapping[str, int] | None = None,
        decisions: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        outputs: Mapping[str, str] | None = None,
    ) -> Manifest:
        """Write the manifest, which makes the run done."""
        manifest = Manifest(
            verb=self.verb,
            name=self.recipe.name,
            fingerprint=self.fingerprint,
            recipe=to_plain(self.recipe),
            inputs=self.inputs,
            counts=counts or {},
            decisions=decisions or {},
            metrics=metrics or {},
            parents=self.parents,
            started=self.started,
            seconds=round(time.monotonic() - self.clock, 2),
            outputs=outputs or {},
        )
        return self.folder.finish(manifest, to_yaml(self.recipe))


def begin(
    verb: str,
    recipe: Any,
    *,
    inputs: Mapping[str, str] | None = None,
    parents: Sequence[str] = (),
    reads: Sequence[str] = (),
) -> Run:
    """Open the run folder of a recipe and its inputs.

    Args:
        verb: What is done.
        recipe: The checked recipe; has `name` and `root`.
        inputs: Fingerprints of what is read that is not a run.
        parents: URLs of the finished runs that are read.
        reads: Files and folders that are read; the finished runs they lie in are parents too.

    Raises:
        DataError: A parent is not finished.
        RunNotDoneError: Inside `looking`, if the run is not done.
    """
    found = [*parents, *(run for run in map(run_of, reads) if run)]
    manifests = {url: load_manifest(url) for url in dict.fromkeys(map(absolute_url, found))}
    read = dict(inputs or {})
    read |= _fingerprints(list(manifests.values()))
    mark = fingerprint(recipe, read)
    folder = RunFolder.open(recipe.root, verb, recipe.name, mark)
    if not folder.is_done:
        if _LOOKING.get():
            raise RunNotDoneError(folder)
        folder.begin(to_yaml(recipe))
    return Run(
        folder=folder,
        verb=verb,
        recipe=recipe,
        fingerprint=mark,
        inputs=read,
        parents=tuple(
            Parent(verb=m.verb, url=url, fingerprint=m.fingerprint) for url, m in manifests.items()
        ),
    )


def _fingerprints(manifests: Sequence[Manifest]) -> dict[str, str]:
    """Name the fingerprint of each run; runs of one name are told apart by the fingerprint too."""
    found: dict[str, set[str]] = {}
    for manifest in manifests:
        found.setdefault(f"run {manifest.verb}/{manifest.name}", set()).add(manifest.fingerprint)
    return {
        name if len(marks) == 1 else f"{name} {mark}": mark
        for name, marks in found.items()
        for mark in sorted(marks)
    }


def run_of(url: str) -> str | None:
    """Find the finished run that a file or folder lies in, at most three levels up."""
    current = absolute_url(url)
    for _ in range(4):
        if open_store(current).exists(MANIFEST):
            return current
        current = current.rpartition("/")[0]
        if not current:
            return None
    return None


def folders_of(shards: Sequence[Shard]) -> list[str]:
    """List the folders that shards lie in, each once, in the order of the shards."""
    return list(dict.fromkeys(shard.url.rpartition("/")[0] for shard in shards))
