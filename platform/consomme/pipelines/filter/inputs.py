"""Which runs a filter reads, and which of their files hold columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from consomme.base.errors import RecipeError
from consomme.storage.sidecar import ID_HASH

KINDS: Mapping[str, str] = {"score": "scores", "tag": "tags"}
"""What the output files with columns are called, by verb."""


VIEW_VERBS = ("filter", "dedup")


SOURCE = "source"
"""Every unit has one, so every sample has; it is no column of any file."""


@dataclass(frozen=True, kw_only=True)
class Runs:
    """What a filter reads; all of it finished runs."""

    scores: str
    """Folder of the run whose samples are chosen from."""

    columns_from: Mapping[str, str] = field(default_factory=dict)
    """Folders of runs with more columns, by the name before the dot."""

    views: Mapping[str, str] = field(default_factory=dict)
    """Folders of runs with a view, by the name of its column."""

    def check(self) -> None:
        """Refuse names that cannot be told apart.

        Raises:
            RecipeError: A name has a dot, is taken twice, or is one that every run has.
        """
        for key, runs in (("columns_from", self.columns_from), ("views", self.views)):
            for name in runs:
                if not name or "." in name or name in (SOURCE, "row", "sample_id", ID_HASH):
                    raise RecipeError(
                        f"{key}: found the name {name!r}, expected one without a dot that is not a"
                        " column of every run"
                    )
        both = sorted(set(self.columns_from) & set(self.views))
        if both:
            raise RecipeError(
                f"columns_from and views: both have {both[0]!r}; give one another name"
            )

    @property
    def urls(self) -> list[str]:
        """All folders, the scores first."""
        return list(dict.fromkeys([self.scores, *self.columns_from.values(), *self.views.values()]))
