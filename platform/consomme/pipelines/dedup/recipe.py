"""What a recipe of `dedup` may say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from consomme.base.errors import RecipeError
from consomme.base.schema import runtime
from consomme.curate.dedup.copies import MAX_DISTANCE


@dataclass(frozen=True, kw_only=True)
class DedupRecipe:
    """A view without copies. Captions do not matter: two captions of one picture are copies too."""

    name: str
    """Name of the run."""

    inputs: tuple[str, ...] = ()
    """Shards: files, folders, globs, brace ranges; local, `s3://` or `gs://`."""

    source: str = "data"
    """Name of the data set behind `inputs`, in references and unit ids."""

    sources: dict[str, list[str]] = field(default_factory=dict)
    """More data sets, by name: inputs of each. Copies are found across them."""

    view: str | None = None
    """Folder of a finished filter or dedup run whose samples to look at; instead of `inputs`."""

    hashes: str | None = None
    """Folder of a finished dedup run: decide anew on its hashes; instead of `inputs`."""

    root: str = runtime("runs")
    """Where run folders are made: a local path or a URL."""

    max_distance: int | None = 4
    """Most bits, of 64, in which the perceptual hashes of near copies differ; null finds exact
    copies only. 4 finds what was resized or saved again, and most of what lost 2 % by a crop; 8
    also most of what lost 5 %, but in a billion pictures every second meets another by chance."""

    max_colour: int = 8
    """Most that the mean colours of the quarters of near copies differ by, of 255. JPEG changes
    them by 1 to 5; a heart in another colour by 30 to 150. 255 ignores colour: then a grey copy of
    a coloured picture is a copy, and so are a red and a blue shirt."""

    flips: bool = False
    """Whether mirror images are copies: they are to a classifier, but not to a caption that says
    left or right, or to one that is read out of the picture."""

    scores: str | None = None
    """Folder of a finished score run of the same data. Without it, the largest copy stays."""

    best_by: str | None = None
    """Column of the scores by which the best copy is chosen: `perplexity`, `image_gain`, …"""

    best_is: Literal["highest", "lowest"] = "highest"
    """Which end of that column is good: `highest` for image_gain, `lowest` for perplexity."""

    unit_rows: int = 1024
    """Most samples per unit: what is retried, resumed and committed."""

    max_reject_fraction: float = runtime(0.01)
    """More rejects than this share fail the run; nothing of it is lost."""

    num_actors: int | None = runtime(None)
    """Most hashing actors; None takes one per CPU."""

    min_actors: int = runtime(1)
    """Fewest; between the two the pool follows the work and the nodes there are."""

    num_readers: int | None = runtime(None)
    """Tasks that read units ahead of the actors; more hide slow storage, each costs a unit of
    memory. 0 lets actors read for themselves. None: 0 without GPUs, else one per actor."""

    def __post_init__(self) -> None:
        """Check what belongs together."""
        given = [bool(self.inputs or self.sources), self.view is not None, self.hashes is not None]
        if sum(given) != 1:
            raise RecipeError(
                "expected one of inputs (or sources), view and hashes: found"
                f" {sum(given) or 'none'}"
            )
        if (self.scores is None) != (self.best_by is None):
            raise RecipeError(
                f"scores and best_by go together: found scores: {self.scores}, best_by:"
                f" {self.best_by}; name the column that says which copy is best, or leave out both"
            )
        if self.max_distance is None and self.flips:
            raise RecipeError("flips: mirror images are near copies; max_distance is null")
        if not 0 <= (self.max_distance or 0) <= MAX_DISTANCE:
            raise RecipeError(
                f"max_distance: found {self.max_distance}, expected 0 to {MAX_DISTANCE} bits"
            )
        if not 0 <= self.max_colour <= 255:
            raise RecipeError(f"max_colour: found {self.max_colour}, expected 0 to 255")
