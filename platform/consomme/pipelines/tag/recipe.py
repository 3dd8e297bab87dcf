"""The recipe of `tag`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from consomme.base.bounds import Fraction, NonNegativeInt, PositiveInt
from consomme.base.checked import Checked, rule
from consomme.base.needs import Need
from consomme.base.schema import added, located, runtime, strategy
from consomme.curate.tag.registry import TAGGERS
from consomme.storage.options import StorageOptions
from consomme.storage.reading import Reading
from consomme.storage.shards import input_problems

_RESERVED = ("row", "sample_id", "id_hash", "source", "samples", "rejected")
"""Names of columns and counts that every run has."""


@dataclass(frozen=True, kw_only=True)
class TagRecipe(Checked):
    """Columns about samples, stored by unit and row, as scores are."""

    name: str
    """Name of the run."""

    taggers: tuple[dict[str, Any], ...] = strategy("consomme.curate.tag.registry:TAGGERS")
    """What computes the columns; a filter refers to them as `tags.COLUMN`."""

    inputs: tuple[str, ...] = located(())
    """Shards: files, folders, globs, brace ranges; local, `s3://` or `gs://`."""

    source: str = "data"
    """Name of the data set in `inputs`, used in references and unit ids."""

    sources: dict[str, list[str]] = located({})
    """More data sets: name -> inputs."""

    reading: Reading = added(Reading())
    """How the records of the inputs become samples: names of columns, where images lie, lists of
    captions, expected rejects."""

    root: str = runtime("runs")
    """Where run folders are created: a local path or a URL."""

    storage: StorageOptions = runtime(StorageOptions())
    """How patient the run is with its storage."""

    unit_rows: PositiveInt = 1024
    """Maximum number of samples per unit, which is what is retried, resumed and committed. A filter
    that joins tags and scores needs the same number for both."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the models' weights; `auto` is bfloat16 on a GPU. Logits are always float32."""

    max_reject_fraction: Fraction = runtime(0.01)
    """The run fails if more than this share of the samples is rejected; finished units are kept."""

    num_actors: PositiveInt | None = runtime(None)
    """Maximum number of actors; None: one per GPU if a tagger uses a model, else one per CPU."""

    min_actors: PositiveInt = runtime(1)
    """Minimum number of actors; the pool scales between the two with the work and the nodes."""

    num_readers: NonNegativeInt | None = runtime(None)
    """Tasks that read units ahead of the actors. More of them hide slow storage, and each holds a
    unit in memory. 0: actors read for themselves. None: 0 without GPUs, else one per actor."""

    token_budget: PositiveInt | None = runtime(None)
    """Padded tokens per micro-batch; None: 1,024 on a CPU and 16,384 on a GPU."""

    def needs(self, num_gpus: float) -> Iterator[Need]:
        """Yield what the run claims at least: the smallest pool of actors."""
        yield Need(key=f"min_actors={self.min_actors}", count=self.min_actors, cpus=0.8)

    @rule
    def _inputs(self) -> Iterator[str]:
        yield from input_problems(self.inputs, self.source, self.sources)

    @rule
    def _has_taggers(self) -> Iterator[str]:
        if not self.taggers:
            yield "taggers: found none, expected at least one"

    @rule
    def _columns_are_unique(self) -> Iterator[str]:
        taggers_by_column: dict[str, list[str]] = {}
        for node in self.taggers:
            for column in TAGGERS.build(node, "taggers").columns:
                taggers_by_column.setdefault(column, []).append(str(node["name"]))
        for column, names in taggers_by_column.items():
            if len(names) > 1:
                yield (
                    f"taggers: {' and '.join(names)} both make the column {column!r}; give one of"
                    " them another `column`, or leave it out"
                )
            if column in _RESERVED:
                yield (
                    f"taggers: {names[0]} makes the column {column!r}, which every run has; give it"
                    " another name"
                )
