"""The recipe of `filter`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from consomme.base.bounds import PositiveInt
from consomme.base.checked import Checked, rule
from consomme.base.schema import located, runtime, strategy
from consomme.pipelines.filter.inputs import InputRuns
from consomme.storage.options import StorageOptions


@dataclass(frozen=True, kw_only=True)
class FilterRecipe(Checked):
    """A view of the samples that a policy keeps."""

    name: str
    """Name of the run."""

    scores: str = located()
    """Folder of a finished score or tag run, whose samples are filtered."""

    columns_from: dict[str, str] = located({})
    """Folders of more score and tag runs over the same data with the same `unit_rows`, by name:
    `tags.object` is the column `object` of the run `tags`. For a sample that was rejected there,
    numbers are missing and texts are empty."""

    views: dict[str, str] = located({})
    """Folders of finished filter and dedup runs, by name: the column of that name is 1 if the
    sample is in the view, else 0."""

    root: str = runtime("runs")
    """Where run folders are created: a local path or a URL."""

    storage: StorageOptions = runtime(StorageOptions())
    """How patient the run is with its storage."""

    keep: dict[str, Any] = strategy("consomme.curate.keep.registry:KEEP_POLICIES")
    """Which samples to keep; see consomme/curate/keep/registry.py."""

    materialize: bool = False
    """Also copy the kept samples into new shards, in `shards/` of the run, with their names and
    bytes unchanged. Later stages do not need it; other tools do."""

    file_format: Literal["webdataset", "parquet"] = "webdataset"
    """Format of these shards."""

    num_actors: PositiveInt | None = runtime(None)
    """Maximum number of copying actors; None: one per CPU."""

    noise_label: str | None = None
    """Column with the true kind of noise (`clean` is none), to evaluate the filter."""

    @rule
    def _run_names(self) -> Iterator[str]:
        yield from runs_of(self).problems()


def runs_of(recipe: FilterRecipe) -> InputRuns:
    """Return the runs that a recipe reads."""
    return InputRuns(scores=recipe.scores, columns_from=recipe.columns_from, views=recipe.views)
