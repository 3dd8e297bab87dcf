"""The runs that a filter reads, and which of their files hold columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from consomme.base.errors import RecipeError
from consomme.storage.sidecar import ID_HASH

KINDS: Mapping[str, str] = {"score": "scores", "tag": "tags"}
"""Verb -> kind of its output files that hold columns."""

VIEW_VERBS = ("filter", "dedup")


SOURCE = "source"
"""Column that every sample has, from its unit; it is in no file."""


@dataclass(frozen=True, kw_only=True)
class InputRuns:
    """The finished runs that a filter reads."""

    scores: str
    """Folder of the run whose samples are filtered."""

    columns_from: Mapping[str, str] = field(default_factory=dict)
    """Name before the dot -> folder of a run with more columns."""

    views: Mapping[str, str] = field(default_factory=dict)
    """Column name -> folder of a run with a view."""

    def problems(self) -> Iterator[str]:
        """Say which names are ambiguous: with a dot, used twice, or a column of every run."""
        for key, runs in (("columns_from", self.columns_from), ("views", self.views)):
            for name in runs:
                if not name or "." in name or name in (SOURCE, "row", "sample_id", ID_HASH):
                    yield (
                        f"{key}: found the name {name!r}, expected one without a dot that is not a"
                        " column of every run"
                    )
        for name in sorted(set(self.columns_from) & set(self.views)):
            yield f"columns_from and views: both have {name!r}; give one another name"

    def check(self) -> None:
        """Refuse ambiguous names.

        Raises:
            RecipeError: A name has a dot, is used twice, or is a column of every run.
        """
        problems = list(self.problems())
        if problems:
            raise RecipeError("; ".join(problems))

    @property
    def by_key(self) -> Mapping[str, str]:
        """Folder of each run by the key of the recipe that names it."""
        return {
            "scores": self.scores,
            **{f"columns_from.{name}": url for name, url in self.columns_from.items()},
            **{f"views.{name}": url for name, url in self.views.items()},
        }

    @property
    def urls(self) -> list[str]:
        """All folders, the scores first."""
        return list(dict.fromkeys([self.scores, *self.columns_from.values(), *self.views.values()]))
