"""Open and finish runs the same way for every verb.

A run whose manifest exists is done, and running it again returns that manifest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from consomme.base.manifest import Manifest, Parent
from consomme.base.recipe import fingerprint, to_yaml
from consomme.base.schema import to_plain
from consomme.storage.ledger.run_folder import MANIFEST, RunFolder, load_manifest
from consomme.storage.shards import Shard
from consomme.storage.stores.open import absolute_url, open_store

R = TypeVar("R")


@dataclass
class Run(Generic[R]):
    """A recipe with its inputs resolved, and the run folder that follows from both.

    Every verb has an `open_run(recipe)` that checks the recipe, resolves what it reads and returns
    one of these. Opening writes nothing, so a plan or a sweep can ask for the fingerprint of a run,
    and whether it is done, without starting it.
    """

    folder: RunFolder
    verb: str
    recipe: Any
    fingerprint: str
    inputs: Mapping[str, str]
    """Fingerprints of everything that is read."""

    parents: tuple[Parent, ...]
    resolved: R
    """What the recipe's inputs resolved to: shards, a model folder, …; the verb's own record."""

    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    clock: float = field(default_factory=time.monotonic)

    @classmethod
    def open(
        cls,
        verb: str,
        recipe: Any,
        resolved: R,
        *,
        inputs: Mapping[str, str] | None = None,
        parents: Sequence[str] = (),
        reads: Sequence[str] = (),
    ) -> Run[R]:
        """Fingerprint a recipe with its inputs, and find its run folder; writes nothing.

        Args:
            verb: The verb.
            recipe: The checked recipe; has `name` and `root`.
            resolved: What its inputs resolved to.
            inputs: Fingerprints of what is read that is not a run.
            parents: URLs of the finished runs that are read.
            reads: Files and folders that are read; finished runs that hold them are parents too.

        Raises:
            DataError: A parent is not finished.
        """
        urls = [*parents, *(url for url in map(run_of, reads) if url)]
        manifests = {url: load_manifest(url) for url in dict.fromkeys(map(absolute_url, urls))}
        read = {**(inputs or {}), **_fingerprints(list(manifests.values()))}
        digest = fingerprint(recipe, read)
        return cls(
            folder=RunFolder.open(recipe.root, verb, recipe.name, digest),
            verb=verb,
            recipe=recipe,
            fingerprint=digest,
            inputs=read,
            parents=tuple(
                Parent(verb=m.verb, url=url, fingerprint=m.fingerprint)
                for url, m in manifests.items()
            ),
            resolved=resolved,
        )

    @property
    def is_done(self) -> bool:
        """Whether its manifest exists."""
        return self.folder.is_done

    def once(self, body: Callable[[Run[R]], Manifest]) -> Manifest:
        """Return the manifest of a run that is done; else start it and let `body` do it.

        Args:
            body: Does the run in its folder, and ends with `finish`.
        """
        if self.is_done:
            return self.folder.manifest()
        self.start()
        return body(self)

    def start(self) -> None:
        """Make the folder, and save the recipe in it."""
        self.folder.create(to_yaml(self.recipe))

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
