"""How many different pictures dedup drops, by kind and size of the data set; recall by kind.

    python -m tests.benchmarks.dedup_by_kind text_pages icons     # some kinds; run.py measures all

No two pictures are copies, so every dropped one is a mistake. A kind of 100,000 pictures takes two
to ten minutes; of the further kinds there are 10,000.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from tests.benchmarks.dedup_kinds import KINDS, render
from tests.benchmarks.dedup_more_kinds import MORE_KINDS
from tests.benchmarks.dedup_pictures import EDITS

from consomme.curate.dedup.comparison import differences, is_plausible
from consomme.curate.dedup.confirmation import ThumbnailTable
from consomme.curate.dedup.copies import NearDuplicateLimits, find_duplicates, star_clusters
from consomme.curate.dedup.phash import PictureHashes, colour_gap, hash_picture, mirrored_colour
from consomme.curate.dedup.thumbnails import (
    Thumbnails,
    coarse_levels,
    make_thumbnails,
    mirrored,
)
from consomme.pipelines.dedup.recipe import DedupRecipe

Row = dict[str, Any]
RECIPE = DedupRecipe(name="defaults", view="none")
LIMITS = NearDuplicateLimits(max_distance=RECIPE.max_distance or 0, max_colour=RECIPE.max_colour)
SIZES = (100, 1_000, 10_000, 100_000)
NUM_EDITED = 200
MUST_BE_FOUND = ("resize", "jpeg60", "reencode", "flip")
_AT_ONCE = 500


def measure(kinds: Iterable[str] = KINDS) -> Iterator[Row]:
    """Yield the figures of kinds."""
    for kind in kinds:
        yield from dropped(kind)
        yield from recall(kind)


def dropped(kind: str) -> Iterator[Row]:
    """Measure the share of different pictures that is dropped, for each size."""
    sizes = [size for size in SIZES if size <= 10_000 or kind not in MORE_KINDS]
    looks, thumbnails = _looks(kind, max(sizes))
    shares, wrong, seconds = {}, 0, 0.0
    for size in sizes:
        began = time.process_time()
        wrong = _num_dropped(looks, thumbnails, size)
        seconds = time.process_time() - began
        shares[size] = wrong / size
    by_hash, _ = star_clusters(
        looks.phash_N[:1000, None],
        looks.colour_N[:1000, None],
        NearDuplicateLimits(max_distance=4, max_colour=8),
    )
    # The expected number of wrong pairs of a picture grows with the number of pictures.
    most = max(wrong, 3) / max(sizes) * 1_000_000 / max(sizes)
    expected = f"{'about' if wrong > 3 else 'below'} {1 - math.exp(-most):.2g}"
    how = "; ".join(f"{share:.2g} at {size:,}" for size, share in shares.items())
    how += f"; {expected} expected at 1,000,000"
    how += f"; by hashes alone {1 - len(set(by_hash.tolist())) / 1000:.2g} at 1,000"
    how += f"; deciding about {max(sizes):,} takes {seconds:.0f} s"
    yield _row(f"wrongly_dropped_{kind}", shares[max(sizes)], how)


def recall(kind: str) -> Iterator[Row]:
    """Measure the share of edited copies that is found, in pairs with their originals."""
    pictures = [render(kind, seed) for seed in range(NUM_EDITED)]
    looks, thumbnails = hash_picture(pictures), make_thumbnails(pictures)
    shares = {}
    for name, edits in EDITS.items():
        found = [
            is_found(looks, thumbnails, [edit(p) for p in pictures], is_mirrored=name == "flip")
            for edit in edits
        ]
        shares[name] = float(np.mean(found))
    how = ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
    worst = min(shares[name] for name in MUST_BE_FOUND)
    how = f"the least of {', '.join(MUST_BE_FOUND)}; {NUM_EDITED} pictures, each edited: {how}"
    yield _row(f"recall_of_{kind}", worst, how)


def is_found(
    looks: PictureHashes, thumbnails: Thumbnails, copies: list[Any], *, is_mirrored: bool
) -> Any:
    """Whether the defaults find each picture's copy; mirrored copies with `flips`."""
    there, others = hash_picture(copies), make_thumbnails(copies)
    hashes, colours = there.phash_N, there.colour_N
    if is_mirrored:
        hashes, colours = there.flipped_N, mirrored_colour(colours)
        others = mirrored(others)
    found = np.bitwise_count(looks.phash_N ^ hashes) <= LIMITS.max_distance
    found &= colour_gap(looks.colour_N, colours) <= LIMITS.max_colour
    found &= ~(looks.is_flat_N | there.is_flat_N)
    found &= is_plausible(coarse_levels(others), coarse_levels(thumbnails), is_still_P=False)
    return found & (differences(others, thumbnails) <= 1)


def _looks(kind: str, size: int) -> tuple[PictureHashes, Thumbnails]:
    """Render, hash and shrink pictures."""
    parts, thumbnails = [], np.zeros((size, make_thumbnails([]).shape[1]), np.uint8)
    for at in range(0, size, _AT_ONCE):
        pictures = [render(kind, seed) for seed in range(at, min(size, at + _AT_ONCE))]
        parts.append(hash_picture(pictures))
        thumbnails[at : at + len(pictures)] = make_thumbnails(pictures)
    names = PictureHashes.__dataclass_fields__
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return PictureHashes(**joined), thumbnails


def _num_dropped(looks: PictureHashes, thumbnails: Thumbnails, size: int) -> int:
    found = find_duplicates(
        np.arange(size, dtype=np.uint64)[:, None],
        looks.phash_N[:size, None],
        looks.colour_N[:size, None],
        looks.is_flat_N[:size],
        LIMITS,
        lambda samples: ThumbnailTable.of(thumbnails[samples]),
    )
    return size - int(found.is_kept_N.sum())


def _row(key: str, value: float, how: str) -> Row:
    return {
        "key": f"dedup.{key}",
        "value": float(f"{value:.4g}"),
        "unit": "fraction",
        "baseline": "",
        "how": how,
    }


if __name__ == "__main__":
    for row in measure(sys.argv[1:] or KINDS):
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()
