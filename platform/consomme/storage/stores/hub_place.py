"""Names on the Hugging Face hub: `org/name@revision` for models, and `hf://` URLs for all of it.

Only text is handled here: nothing is looked up. A place whose revision is a whole commit is
*pinned*: it names the same bytes for ever, and is what manifests and workers are given.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import quote, unquote

from consomme.base.errors import RecipeError
from consomme.storage.stores.store import is_safe_path

HUB_SCHEME = "hf://"

DEFAULT_REVISION = "main"
"""The branch that a name without a revision stands for."""

_DATASETS = "datasets/"
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
_NAME = re.compile(rf"{_PART}/{_PART}")
_MODEL_ID = re.compile(rf"{_PART}/{_PART}(@[A-Za-z0-9._/%-]+)?")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REFS = re.compile(r"(refs/(?:convert|pr)/[^/]+)(?:/(.*))?")
"""Revisions with slashes that are taken without quotes, as huggingface_hub takes them."""

_EXPECTED = (
    "expected hf://org/name[@revision][/folder] for a model, or"
    " hf://datasets/org/name[@revision]/path for data"
)


@dataclass(frozen=True, kw_only=True)
class HubPlace:
    """A repository on the hub, or a folder in it, at a revision."""

    kind: Literal["model", "dataset"]
    """Kind of repository."""

    repo: str
    """`org/name`."""

    revision: str = DEFAULT_REVISION
    """Branch, tag, `refs/pr/1`, or a commit."""

    folder: str = ""
    """Path in the repository, without slashes at its ends; empty for the whole of it."""

    @classmethod
    def parse(cls, url: str) -> HubPlace:
        """Read an `hf://` URL.

        Raises:
            RecipeError: It names no repository, or holds credentials.
        """
        rest = url.removeprefix(HUB_SCHEME)
        kind: Literal["model", "dataset"] = "model"
        if rest.startswith(_DATASETS):
            kind, rest = "dataset", rest.removeprefix(_DATASETS)
        org, _, rest = rest.partition("/")
        if "@" in org or ":" in org:
            raise RecipeError(
                f"hf://…: found credentials in a URL, {_EXPECTED}; the token is read from HF_TOKEN"
            )
        name, slash, rest = rest.partition("/")
        name, at, revision = name.partition("@")
        if at and slash and revision == "refs" and (inner := _REFS.fullmatch(f"refs/{rest}")):
            revision, rest = inner[1], inner[2] or ""
        repo, revision = f"{org}/{name}", unquote(revision) if at else DEFAULT_REVISION
        folder = rest.strip("/")
        is_named = _NAME.fullmatch(repo) and _REVISION.fullmatch(revision)
        if not is_named or ".." in revision or (folder and not is_safe_path(folder)):
            raise RecipeError(f"{url}: {_EXPECTED}")
        return cls(kind=kind, repo=repo, revision=revision, folder=folder)

    @classmethod
    def of_model_id(cls, text: str) -> HubPlace | None:
        """Read `org/name` or `org/name@revision`; None if it is neither, such as a path."""
        if not _MODEL_ID.fullmatch(text):
            return None
        # All that follows the sign is the revision, slashes included.
        repo, at, revision = text.partition("@")
        return cls.parse(f"{HUB_SCHEME}{repo}{at}{quote(unquote(revision), safe='')}")

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a whole commit."""
        return bool(_COMMIT.fullmatch(self.revision))

    def pinned(self, commit: str) -> HubPlace:
        """Return the same place at a commit."""
        return replace(self, revision=commit)

    @property
    def root(self) -> HubPlace:
        """The whole repository at the same revision."""
        return replace(self, folder="")

    @property
    def url(self) -> str:
        """The `hf://` URL, always with the revision."""
        kind = _DATASETS if self.kind == "dataset" else ""
        root = f"{HUB_SCHEME}{kind}{self.repo}@{quote(self.revision, safe='')}"
        return f"{root}/{self.folder}" if self.folder else root

    @property
    def name(self) -> str:
        """What a reader calls it: `model org/name` or `data set org/name`."""
        return f"{'data set' if self.kind == 'dataset' else 'model'} {self.repo}"


def is_hub_url(url: str) -> bool:
    """Whether a URL names something on the hub."""
    return url.startswith(HUB_SCHEME)


def is_hub_root(url: str) -> bool:
    """Whether a URL names a whole repository, as a bucket's does, and no path in it."""
    return is_hub_url(url) and not HubPlace.parse(url).folder
