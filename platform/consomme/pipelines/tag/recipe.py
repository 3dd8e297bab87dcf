"""What a recipe of `tag` may say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from consomme.base.errors import RecipeError
from consomme.base.schema import runtime, strategy
from consomme.curate.tag.registry import TAGGERS

_OWN = ("row", "sample_id", "id_hash", "source", "samples", "rejected")
"""Names that columns and counts of every run have."""


@dataclass(frozen=True, kw_only=True)
class TagRecipe:
    """Columns about samples, kept beside them by unit and row, as scores are."""

    name: str
    """Name of the run."""

    taggers: tuple[dict[str, Any], ...] = strategy("consomme.curate.tag.registry:TAGGERS")
    """What finds the columns; a filter calls them `tags.COLUMN`."""

    inputs: tuple[str, ...] = ()
    """Shards: files, folders, globs, brace ranges; local, `s3://` or `gs://`."""

    source: str = "data"
    """Name of the data set behind `inputs`, in references and unit ids."""

    sources: dict[str, list[str]] = field(default_factory=dict)
    """More data sets, by name: inputs of each."""

    root: str = runtime("runs")
    """Where run folders are made: a local path or a URL."""

    unit_rows: int = 1024
    """Most samples per unit: what is retried, resumed and committed. A filter that uses the tags
    beside scores needs the same number for both."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of models' weights; `auto` is bfloat16 on a GPU. Logits are float32 always."""

    max_reject_fraction: float = runtime(0.01)
    """More rejects than this share fail the run; nothing of it is lost."""

    num_actors: int | None = runtime(None)
    """Most actors; None takes one per GPU if a tagger asks a model, or one per CPU."""

    min_actors: int = runtime(1)
    """Fewest; between the two the pool follows the work and the nodes there are."""

    num_readers: int | None = runtime(None)
    """Tasks that read units ahead of the actors; more hide slow storage, each costs a unit of
    memory. 0 lets actors read for themselves. None: 0 without GPUs, else one per actor."""

    token_budget: int | None = runtime(None)
    """Padded tokens per micro-batch; None takes 1,024 on a CPU and 16,384 on a GPU."""

    def __post_init__(self) -> None:
        """Check that every column is made once."""
        if not self.taggers:
            raise RecipeError("taggers: found none, expected one at least")
        makers: dict[str, list[str]] = {}
        for node in self.taggers:
            for column in TAGGERS.build(node, "taggers").columns:
                makers.setdefault(column, []).append(str(node["name"]))
        for column, names in makers.items():
            if len(names) > 1:
                raise RecipeError(
                    f"taggers: {' and '.join(names)} both make the column {column!r}; give one of"
                    " them another `column`, or leave it out"
                )
            if column in _OWN:
                raise RecipeError(
                    f"taggers: {names[0]} makes the column {column!r}, which every run has; give it"
                    " another name"
                )
