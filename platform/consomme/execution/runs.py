"""Open and finish runs the same way for every verb.

A run whose manifest exists is done, and running it again returns that manifest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from consomme.base.manifest import FileSum, Manifest, Parent
from consomme.base.recipe import fingerprint, to_written, to_yaml
from consomme.base.secrets import redact_all
from consomme.execution.capacity import check_capacity
from consomme.execution.failure import recorded_failures
from consomme.execution.heartbeat import Heartbeat
from consomme.storage.identity import check_outputs, run_of
from consomme.storage.ledger.run_folder import RunFolder, load_manifest
from consomme.storage.options import StorageOptions
from consomme.storage.shards import Shard
from consomme.storage.stores.open import absolute_url
from consomme.storage.stores.retries import patience
from consomme.storage.view import VIEW

logger = logging.getLogger(__name__)

R = TypeVar("R")

_VIEW_VERBS = ("filter", "dedup")


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
        runs: Mapping[str, str | None] | None = None,
        reads: Sequence[str] = (),
        hashed: Any = None,
    ) -> Run[R]:
        """Fingerprint a recipe with its inputs, and find its run folder; writes nothing.

        Args:
            verb: The verb.
            recipe: The checked recipe; has `name` and `root`.
            resolved: What its inputs resolved to.
            inputs: Fingerprints of what is read that is not a run.
            runs: URLs of the finished runs that are read, by the key of the recipe that names them;
                keys without a run are left out.
            reads: Files and folders that are read, and identified by `inputs`; finished runs that
                hold them are parents too.
            hashed: What is fingerprinted instead of the recipe.

        Raises:
            DataError: A parent is not finished, or is not what was written.
        """
        by_key = {key: load_manifest(absolute_url(url)) for key, url in (runs or {}).items() if url}
        for manifest in by_key.values():
            if manifest.verb in _VIEW_VERBS:
                check_outputs(manifest, [path for path in manifest.files if path == VIEW])
        holders = [load_manifest(url) for url in dict.fromkeys(map(run_of, reads)) if url]
        read = {**(inputs or {}), **{key: one.identity for key, one in by_key.items()}}
        digest = fingerprint(recipe if hashed is None else hashed, read)
        return cls(
            folder=RunFolder.open(recipe.root, verb, recipe.name, digest),
            verb=verb,
            recipe=recipe,
            fingerprint=digest,
            inputs=read,
            parents=parents_of([*by_key.values(), *holders]),
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
        with patience_of(self.recipe):
            if self.is_done:
                manifest = dataclasses.replace(self.folder.manifest(), is_found=True)
                logger.info("%s %s: %s", self.verb, self.recipe.name, already_done(manifest))
                return manifest
            check_capacity(self.recipe)
            self.start()
            with recorded_failures(self.folder), Heartbeat(self.folder.store):
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
        written: Mapping[str, FileSum] | None = None,
    ) -> Manifest:
        """Write the manifest, which makes the run done.

        Args:
            counts: See `Manifest`, as for the next three.
            decisions: See there.
            metrics: See there.
            outputs: See there.
            written: Sums of files in the run folder that were taken when they were written; the
                other files are read once.

        Raises:
            DataError: What the run read is not what it was when the run began.
        """
        manifest = Manifest(
            verb=self.verb,
            name=self.recipe.name,
            fingerprint=self.fingerprint,
            recipe=to_written(self.recipe),
            inputs=self.inputs,
            counts=counts or {},
            decisions=redact_all(decisions or {}),
            metrics=metrics or {},
            parents=self.parents,
            started=self.started,
            seconds=round(time.monotonic() - self.clock, 2),
            outputs=outputs or {},
        )
        return self.folder.finish(manifest, to_yaml(self.recipe), written)


def patience_of(recipe: Any) -> contextlib.AbstractContextManager[None]:
    """Be as patient with storage as a recipe says, inside a block."""
    options: StorageOptions | None = getattr(recipe, "storage", None)
    return patience(options.patience_s) if options else contextlib.nullcontext()


def parents_of(manifests: Iterable[Manifest]) -> tuple[Parent, ...]:
    """Describe the finished runs that a run reads, each once."""
    return tuple(
        Parent(verb=m.verb, url=url, fingerprint=m.fingerprint, content=m.content)
        for url, m in {m.url: m for m in manifests}.items()
    )


def already_done(manifest: Manifest) -> str:
    """Say since when a run is done."""
    when = manifest.finished or manifest.started
    return f"already done on {when[:16].replace('T', ' ')} UTC, nothing ran"


def folders_of(shards: Sequence[Shard]) -> list[str]:
    """List the folders that shards lie in, each once, in the order of the shards."""
    return list(dict.fromkeys(shard.url.rpartition("/")[0] for shard in shards))
