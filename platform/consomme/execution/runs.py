"""Open and finish runs the same way for every verb.

A run whose manifest exists is done, and running it again returns that manifest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Any, Generic, TypeVar

from consomme.base.errors import DataError
from consomme.base.manifest import FileSum, Manifest, Parent
from consomme.base.recipe import fingerprint, to_written, to_yaml
from consomme.base.secrets import redact_all
from consomme.execution.capacity import check_capacity
from consomme.execution.failure import recorded_failures
from consomme.execution.heartbeat import Heartbeat
from consomme.storage.identity import PICTURES, check_data, check_outputs, run_of
from consomme.storage.ledger.run_folder import RunFolder, load_manifest
from consomme.storage.options import StorageOptions
from consomme.storage.pins import keep_pins, pinned_as, pins_kept, pins_used
from consomme.storage.shards import Shard
from consomme.storage.stores.open import absolute_url, open_store
from consomme.storage.stores.retries import patience
from consomme.storage.stores.store import join_url
from consomme.storage.view import VIEW

logger = logging.getLogger(__name__)

R = TypeVar("R")

_VIEW_VERBS = ("filter", "dedup")

CHANGED = "changed.json"
"""File of a run folder whose inputs changed while the run was reading them."""

PINS = "pins.json"
"""File of a run folder with the commits of the hub that the run reads, from its start on."""

_MAX_OTHERS = 50
"""Runs of the same name that a new run is compared with."""


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

    pins: Mapping[str, str] = field(default_factory=dict)
    """Commits of what is read from the hub; see `consomme.storage.pins`."""

    reopen: Callable[[], Run[R]] | None = None
    """Resolves the inputs anew, to see at the end whether they changed in the meantime."""

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
        data_of: Sequence[str | None] = (),
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
            data_of: Those of `runs` whose samples are read again from their shards, which have to
                be what they were.
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
        folder = RunFolder.open(recipe.root, verb, recipe.name, digest)
        for one in filter(None, data_of):
            check_data(one, are_read=not folder.is_done)
        return cls(
            folder=folder,
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
        """Make the folder, and save the recipe in it.

        Raises:
            DataError: What an earlier attempt read changed while it ran.
        """
        if self.folder.store.exists(CHANGED):
            raise DataError(
                f"{self.folder.url}: what this run reads changed while an earlier attempt ran, and"
                " is back now; what that attempt made may be of both. Delete the folder, and run"
                " the same command again"
            )
        self._tell_others()
        if self.pins:
            pins = {"fingerprint": self.fingerprint, "pins": dict(self.pins)}
            self.folder.store.write(PINS, json.dumps(pins, indent=1).encode())
        self.folder.create(to_yaml(self.recipe))

    def _tell_others(self) -> None:
        """Say which finished runs have the same recipe, and how their inputs differ."""
        place = open_store(join_url(self.recipe.root, self.verb))
        written = to_written(self.recipe)
        for entry in islice(place.list_level(f"{self.recipe.name}-"), _MAX_OTHERS):
            folder = RunFolder.at(join_url(place.url, entry.path.removesuffix("/")))
            with contextlib.suppress(DataError):
                other = folder.manifest()
                changed = [key for key, one in self.inputs.items() if other.inputs.get(key) != one]
                if changed and other.recipe == written:
                    logger.info(
                        "%s %s: %s, which is done, has the same recipe, but %s changed since;"
                        " everything that depends on it is done anew, in another folder",
                        self.verb,
                        self.recipe.name,
                        folder.url,
                        ", ".join(changed),
                    )

    def _check_inputs(self) -> list[str]:
        """Check that what the run read is what it was when the run began.

        Returns:
            Keys of pictures beside shards that changed: any of them, read by this run or not.

        Raises:
            DataError: Anything else changed; the run cannot be finished.
        """
        now = self.reopen().inputs if self.reopen else self.inputs
        keys = dict.fromkeys([*self.inputs, *now])
        changed = [key for key in keys if self.inputs.get(key) != now.get(key)]
        what = ", ".join(changed)
        if all(key.endswith(PICTURES) for key in changed):
            if changed:
                logger.warning(
                    "%s: %s: files beside the shards were added, changed or removed while this run"
                    " was reading. If they are pictures of its samples, some of what it made is"
                    " about the ones before, and some about the ones after",
                    self.folder.url,
                    what,
                )
            return changed
        self.folder.store.write(CHANGED, json.dumps({"changed": changed}).encode())
        raise DataError(
            f"{self.folder.url}: {what} changed while this run was reading it, so some of what it"
            " made may be about the data before, and some about the data after. It stays"
            " unfinished; run the same command again to begin anew, in another folder"
        )

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
        changed = self._check_inputs()
        manifest = Manifest(
            verb=self.verb,
            name=self.recipe.name,
            fingerprint=self.fingerprint,
            recipe=to_written(self.recipe),
            inputs=self.inputs,
            pins=dict(self.pins),
            counts=counts or {},
            decisions=redact_all(
                {**(decisions or {}), **({"changed_meanwhile": changed} if changed else {})}
            ),
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


def once(
    open_run: Callable[[Any], Run[R]], recipe: Any, body: Callable[[Run[R]], Manifest]
) -> Manifest:
    """Do a recipe's run, unless it is done; see `Run.once`.

    Args:
        open_run: Of the verb; called again at the end, to see whether an input changed.
        recipe: The checked recipe.
        body: As for `Run.once`.
    """
    with pins_kept():
        run = open_pinned(open_run, recipe)
        run.reopen = partial(open_run, recipe)
        return run.once(body)


def open_pinned(open_run: Callable[[Any], Run[R]], recipe: Any) -> Run[R]:
    """Open a run, and have it know the commits of what it reads from the hub.

    A run that was begun goes on with the commits that it began with, though a branch has moved on
    since; without one that was begun, the latest commits are read.

    Args:
        open_run: Of the verb; called in a block of `pins_kept`.
        recipe: The checked recipe.
    """
    run = _open_with_pins(open_run, recipe)
    if not run.pins or run.is_done or run.folder.store.exists(PINS):
        return run
    for pins in _pins_of_begun(run):
        with pinned_as(pins):
            older = _open_with_pins(open_run, recipe)
        if older.is_done or not older.folder.store.exists(PINS):
            continue
        for name, commit in older.pins.items():
            if run.pins.get(name) != commit:
                logger.info(
                    "%s %s: %s has moved to %s; this run began with %s and goes on with it. To read"
                    " the new one, delete %s, or name the commit",
                    run.verb,
                    recipe.name,
                    name,
                    run.pins.get(name, "another commit"),
                    commit,
                    older.folder.url,
                )
        keep_pins(older.pins)
        return older
    return run


def _open_with_pins(open_run: Callable[[Any], Run[R]], recipe: Any) -> Run[R]:
    with pins_used() as used:
        run = open_run(recipe)
    run.pins = dict(sorted(used.items()))
    return run


def _pins_of_begun(run: Run[Any]) -> Iterator[dict[str, str]]:
    """Yield the pins of runs of the same name that are not done and began with others."""
    place = open_store(join_url(run.recipe.root, run.verb))
    for entry in islice(place.list_level(f"{run.recipe.name}-"), _MAX_OTHERS):
        folder = RunFolder.at(join_url(place.url, entry.path.removesuffix("/")))
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, AttributeError):
            found = json.loads(folder.store.read(PINS))["pins"]
            pins = {str(name): str(commit) for name, commit in found.items()}
            if pins.keys() == run.pins.keys() and pins != run.pins and not folder.is_done:
                yield pins


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
