"""Pin what is named on the hub to a commit, once per run, so that every node reads the same bytes.

`org/name` means whatever the branch holds now. The first look of a run says which commit that is;
from then on the whole run, its workers, and the same run when it is resumed, read that commit. The
manifest keeps the pins.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from consomme.base.errors import RecipeError
from consomme.base.places import cache_folder
from consomme.storage.stores.hub import HubStore
from consomme.storage.stores.hub_client import hub_cache, is_offline
from consomme.storage.stores.hub_place import HubPlace, is_hub_url
from consomme.storage.stores.open import absolute_url

Pins = dict[str, str]
"""URL of a repository at a branch or tag -> commit."""

_guard = threading.Lock()
_kept: list[Pins] = []
"""Pins of the outermost block of `pins_kept`; at most one."""

_recorders: list[Pins] = []


@contextlib.contextmanager
def pins_kept(known: Mapping[str, str] | None = None) -> Iterator[Pins]:
    """Look each name up once inside the block, in all threads of the process.

    Of nested blocks the outermost counts: the stages of a loop read the same commit.

    Args:
        known: Pins that hold from the start, as those of a run that is resumed.
    """
    if _kept:
        _kept[0].update(known or {})
        yield _kept[0]
        return
    _kept.append(dict(known or {}))
    try:
        yield _kept[0]
    finally:
        _kept.clear()


def keep_pins(pins: Mapping[str, str]) -> None:
    """Have pins hold for the rest of the block of `pins_kept`, as those of a run that goes on."""
    _kept[0].update(pins)


@contextlib.contextmanager
def pins_used() -> Iterator[Pins]:
    """Yield a dict that gets the pins of all names that are looked up in the block."""
    used: Pins = {}
    _recorders.append(used)
    try:
        yield used
    finally:
        _recorders[:] = [one for one in _recorders if one is not used]


@contextlib.contextmanager
def pinned_as(pins: Mapping[str, str]) -> Iterator[None]:
    """Use other pins inside the block, which has to be in one of `pins_kept`."""
    before = dict(_kept[0])
    _kept[0].update(pins)
    try:
        yield
    finally:
        _kept[0].clear()
        _kept[0].update(before)


def pin(place: HubPlace) -> HubPlace:
    """Return a place at the commit that its revision is, or was when this run began.

    Raises:
        RecipeError: There is no such repository or revision, or the hub may not be asked and
            nothing on this machine knows the commit.
        StorageAwayError: The hub did not answer.
    """
    if place.is_pinned:
        return place
    key = place.root.url
    with _guard:
        commit = _kept[0].get(key) if _kept else None
        if commit is None:
            commit = _known_commit(place) if is_offline() else HubStore(place.root).commit()
            if not is_offline():
                _remember(key, commit)
        if _kept:
            _kept[0][key] = commit
        for used in _recorders:
            used[key] = commit
    return place.pinned(commit)


def pinned_url(url: str) -> str:
    """Return the URL of data with its commit if it lies on the hub; any other as it is."""
    return pin(HubPlace.parse(url)).url if is_hub_url(url) else url


def portable_url(url: str) -> str:
    """Return a URL of data that other processes and machines find: pinned on the hub."""
    return absolute_url(pinned_url(url))


def _known_commit(place: HubPlace) -> str:
    """Return the commit that this machine knows of a revision."""
    if place.kind == "dataset":
        raise RecipeError(
            f"{place.url}: HF_HUB_OFFLINE is set, and data on the hub are read where they lie;"
            " unset it, or bring them where the hub can be reached (hf download --repo-type"
            f" dataset {place.repo} --local-dir FOLDER) and name the folder"
        )
    key = place.root.url
    there = hub_cache() / f"models--{place.repo.replace('/', '--')}" / "refs" / place.revision
    # Both may know one; what was brought last is what is here.
    known = [file for file in (_ref_file(key), there) if file.is_file()]
    for file in sorted(known, key=lambda file: file.stat().st_mtime, reverse=True):
        with contextlib.suppress(OSError, ValueError):
            text = file.read_text().strip()
            commit = str(json.loads(text)["commit"]) if file.suffix == ".json" else text
            if place.pinned(commit).is_pinned:
                return commit
    raise RecipeError(
        f"{place.url}: HF_HUB_OFFLINE is set, and this machine does not have the {place.name} at"
        f" {place.revision!r}; looked in {_ref_file(key).parent} and {there.parents[1]}. Bring it"
        f" where the hub can be reached, or unset HF_HUB_OFFLINE: consomme fetch {_fetched(place)}"
    )


def _fetched(place: HubPlace) -> str:
    return f"{place.repo}@{place.revision}" if place.revision != "main" else place.repo


def _remember(key: str, commit: str) -> None:
    """Keep a commit for when the hub may not be asked."""
    file = _ref_file(key)
    partial = file.with_name(f"{file.name}.{os.getpid()}-{threading.get_ident()}.partial")
    # A machine without any cache folder can still read from the hub.
    with contextlib.suppress(OSError):
        partial.write_text(json.dumps({"url": key, "commit": commit}))
        partial.replace(file)


def _ref_file(key: str) -> Path:
    return cache_folder("hub") / f"ref-{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
