"""What a recipe of `filter` may say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from consomme.base.schema import runtime, strategy
from consomme.pipelines.filter.inputs import Runs


@dataclass(frozen=True, kw_only=True)
class FilterRecipe:
    """A view of the samples a policy keeps."""

    name: str
    """Name of the run."""

    scores: str
    """Folder of a finished score run, or tag run: its samples are chosen from."""

    columns_from: dict[str, str] = field(default_factory=dict)
    """Folders of more score and tag runs of the same data with the same `unit_rows`, by a name for
    each: `tags.object` is the column `object` of the run `tags`. A sample that was rejected there
    has no such number, and the empty text."""

    views: dict[str, str] = field(default_factory=dict)
    """Folders of finished filter and dedup runs, by a name for each: the column of that name is 1
    where the sample is in the view, else 0."""

    root: str = runtime("runs")
    """Where run folders are made: a local path or a URL."""

    keep: dict[str, Any] = strategy("consomme.curate.keep.registry:KEEP_POLICIES")
    """Which samples stay; see consomme/curate/keep/registry.py."""

    materialize: bool = False
    """Also copy the kept samples into new shards, below `shards/` of the run, names and bytes as
    they came. Later stages do not need it; other tools do."""

    file_format: Literal["webdataset", "parquet"] = "webdataset"
    """Format of these shards."""

    num_actors: int | None = runtime(None)
    """Most copying actors; None takes one per CPU."""

    noise_label: str | None = None
    """Column with the true kind of noise (`clean` means none), to measure the filter by."""

    def __post_init__(self) -> None:
        """Check the names of runs."""
        runs_of(self).check()


def runs_of(recipe: FilterRecipe) -> Runs:
    """Return the runs that a recipe reads."""
    return Runs(scores=recipe.scores, columns_from=recipe.columns_from, views=recipe.views)
