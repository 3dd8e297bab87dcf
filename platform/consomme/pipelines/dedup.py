"""Find copies of pictures, exact and near, and keep the best of each: a view of what stays.

One decision is made here: a dedup run is two things in one folder. Workers hash every picture, unit
by unit through the ledger; then one process reads the hashes, decides, and writes the view and the
groups. A second run can decide anew on the hashes of the first (`hashes`), without a picture read.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa

from consomme.base.errors import RecipeError
from consomme.base.manifest import Manifest
from consomme.base.schema import runtime
from consomme.curate.dedup import MAX_DISTANCE, Nearness
from consomme.pipelines.copies import (
    HASHES,
    decide,
    distances,
    group_sizes,
    load_hashed,
    read_scores,
    save_groups,
    save_view,
)
from consomme.pipelines.flow import Pool, run_units
from consomme.pipelines.planning import plan_shards, plan_view
from consomme.pipelines.runs import Run, begin, check_rejects, folders_of
from consomme.pipelines.session import num_cpus, ray_session
from consomme.pipelines.stage import Decoded, Outcome, UnitStage
from consomme.storage.shards import Shard, find_shards, shards_fingerprint
from consomme.storage.view import View
from consomme.vision.decode import num_pixels


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


class HashStage(UnitStage):
    """Hash the bytes and the looks of each picture."""

    # A hash sees 32 × 32 pixels; from twice as many on, where they come from makes no difference.
    min_side_px = 64

    def work(self, samples: Sequence[Decoded]) -> Outcome:
        """Hash one unit."""
        from consomme.curate.phash import look_at

        looks = look_at([item.image for item in samples])
        content = [content_hash(item.sample.image) for item in samples]
        columns = {
            "row": pa.array([item.row for item in samples], pa.int32()),
            "sample_id": pa.array([item.sample.sample_id for item in samples], pa.string()),
            "content_hash": pa.array(content, pa.binary(16)),
            "phash": pa.array(looks.phash_N, pa.uint64()),
            "phash_flipped": pa.array(looks.flipped_N, pa.uint64()),
            "colour": pa.array(looks.colour_N, pa.uint64()),
            "is_flat": pa.array(looks.is_flat_N, pa.bool_()),
            "num_pixels": pa.array([num_pixels(item.sample.image) for item in samples], pa.int64()),
            "num_bytes": pa.array([len(item.sample.image) for item in samples], pa.int32()),
        }
        return Outcome(table=pa.table(columns))


def content_hash(data: bytes) -> bytes:
    """Hash encoded bytes to 16: among a billion pictures, one collision in 10**21 data sets."""
    return hashlib.blake2b(data, digest_size=16).digest()


def run(recipe: DedupRecipe) -> Manifest:
    """Hash every picture exactly once, then keep the best copy of each."""
    has_shards = bool(recipe.inputs or recipe.sources)
    shards = find_shards(recipe.inputs, recipe.source, recipe.sources) if has_shards else []
    attempt = begin(
        "dedup",
        recipe,
        inputs={"data": shards_fingerprint(shards)} if shards else {},
        parents=[url for url in (recipe.view, recipe.hashes, recipe.scores) if url],
        reads=folders_of(shards),
    )
    if attempt.folder.is_done:
        return attempt.folder.manifest()
    if recipe.hashes is None:
        _hash(recipe, attempt, shards)
    return _decide(recipe, attempt)


def _hash(recipe: DedupRecipe, attempt: Run, shards: Sequence[Shard]) -> None:
    """Fill the ledger with hashes."""
    folder = attempt.folder
    with ray_session():
        run_units(
            plan_view(folder, View.load(recipe.view))
            if recipe.view
            else plan_shards(folder, shards, recipe.unit_rows),
            folder,
            kind=HASHES,
            stage=HashStage,
            stage_options={},
            what="hash",
            pool=Pool(
                max_actors=recipe.num_actors or num_cpus(),
                min_actors=recipe.min_actors,
                num_readers=recipe.num_readers,
                cpus=0.8,
            ),
            max_reject_fraction=recipe.max_reject_fraction,
        )
    check_rejects(folder.total_counts(), recipe.max_reject_fraction, folder.url)


def _decide(recipe: DedupRecipe, attempt: Run) -> Manifest:
    """Read the hashes, decide, and write the view and the groups."""
    clock = time.monotonic()
    folder = attempt.folder
    source = recipe.hashes or folder.url
    hashed = load_hashed(source)
    score_N = None
    if recipe.scores is not None and recipe.best_by is not None:
        score_N = read_scores(recipe.scores, recipe.best_by, hashed)
    nearness = None
    if recipe.max_distance is not None:
        nearness = Nearness(max_distance=recipe.max_distance, max_colour=recipe.max_colour)
    sign = -1 if recipe.best_is == "lowest" else 1
    order, copies = decide(
        hashed, None if score_N is None else sign * score_N, nearness, flips=recipe.flips
    )
    view = save_view(folder, hashed, order[copies.stays_N])
    groups = save_groups(folder, source, hashed, order, copies)
    total, kept = hashed.num_samples, int(copies.stays_N.sum())
    exact = int(copies.is_exact_N.sum())
    near = total - kept - exact
    return attempt.finish(
        counts={
            **folder.total_counts(),
            "samples": total,
            "kept": kept,
            "exact": exact,
            "near": near,
        },
        decisions={
            "max_distance": recipe.max_distance,
            "max_colour": recipe.max_colour,
            "best": _best(recipe),
            "num_flat": int(hashed.is_flat_N.sum()),
            "num_unscored": 0 if score_N is None else int(np.isnan(score_N).sum()),
            "groups_by_size": group_sizes(copies),
            "near_by_distance": distances(copies),
        },
        metrics={
            "dedup/kept_fraction": kept / total,
            "dedup/exact_fraction": exact / total,
            "dedup/near_fraction": near / total,
            "dedup/decide_s": round(time.monotonic() - clock, 2),
        },
        outputs={"view": view, "groups": groups}
        | ({} if recipe.hashes else {"hashes": "data", "rejects": "rejects"}),
    )


def _best(recipe: DedupRecipe) -> str:
    size = "largest picture, then most bytes"
    return f"{recipe.best_is} {recipe.best_by}, then {size}" if recipe.best_by else size
