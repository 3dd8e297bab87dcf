"""How much of a benchmark `dedup against` finds in a data set, and what it takes for it wrongly.

Images: of each kind a benchmark of 100, their edited copies, and 2,000 others of the same kind in
the data. Texts: descriptions of 300 scenes as questions, quoted in longer texts, and 3,000
descriptions of other scenes, which are written by the same program and so have phrases in common.

    python -m tests.benchmarks.run decontaminate
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from tests.benchmarks.dedup_kinds import render
from tests.benchmarks.dedup_pictures import EDITS

from consomme.curate.dedup.confirmation import ThumbnailTable
from consomme.curate.dedup.copies import NearDuplicateLimits
from consomme.curate.dedup.known_images import KnownImages, find_known
from consomme.curate.dedup.phash import hash_picture
from consomme.curate.dedup.quotes import QuoteIndex
from consomme.curate.dedup.thumbnails import make_thumbnails
from consomme.datasets import scenes
from consomme.pipelines.dedup.recipe import DedupRecipe

Row = dict[str, Any]
RECIPE = DedupRecipe(name="defaults", view="none")
LIMITS = NearDuplicateLimits(max_distance=RECIPE.max_distance or 0, max_colour=RECIPE.max_colour)
KINDS = ("photos", "charts", "screenshots", "text_pages", "radiographs", "faces", "maps")
FOUND = ("resize", "jpeg60", "reencode")
NUM_KNOWN, NUM_OTHERS = 100, 2_000


def rows() -> Iterator[Row]:
    """Measure images by kind, then texts."""
    recalls: dict[str, list[float]] = {}
    for kind in KINDS:
        found, wrong = images(kind)
        for name, share in found.items():
            recalls.setdefault(name, []).append(share)
        least = min(found[name] for name in FOUND)
        how = ", ".join(f"{name} {share:.3f}" for name, share in found.items())
        yield _row(
            f"recall_of_{kind}",
            least,
            f"the least of {', '.join(FOUND)}; {NUM_KNOWN} images, each edited: {how}",
        )
        yield _row(
            f"wrongly_found_{kind}", wrong, f"of {NUM_OTHERS:,} other images of the same kind"
        )
    yield from texts()


def images(kind: str) -> tuple[dict[str, float], float]:
    """Return the share of copies that is found, by edit, and the share of others that is."""
    known_pictures = [render(kind, seed) for seed in range(NUM_KNOWN)]
    known = KnownImages.hashed(known_pictures, [b""] * NUM_KNOWN)
    shares = {}
    for name, edits in EDITS.items():
        if name == "flip":
            continue
        hits = [_found([edit(p) for p in known_pictures], known) for edit in edits]
        # Found means: by the right image.
        shares[name] = float(np.mean([found == np.arange(NUM_KNOWN) for found in hits]))
    others = [render(kind, seed) for seed in range(NUM_KNOWN, NUM_KNOWN + NUM_OTHERS)]
    return shares, float((_found(others, known) >= 0).mean())


def _found(pictures: list[Any], known: KnownImages) -> Any:
    """Return the known image that each picture is a copy of; -1 for none."""
    looks, table = hash_picture(pictures), ThumbnailTable.of(make_thumbnails(pictures))
    copies = find_known(
        np.zeros((len(pictures), 2), np.uint64),
        looks.phash_N,
        looks.colour_N,
        looks.is_flat_N,
        known,
        LIMITS,
        lambda wanted: ThumbnailTable(
            thumbnail_NB=table.thumbnail_NB[wanted], coarse_NB=table.coarse_NB[wanted]
        ),
        flips=False,
    )
    found = np.full(len(pictures), -1)
    found[copies.image_P] = copies.known_P
    return found


def texts(num_known: int = 300, num_others: int = 3_000) -> Iterator[Row]:
    """Measure quoted descriptions."""
    captions = [scenes.caption(scenes.make_scene(seed)) for seed in range(num_known + num_others)]
    known, others = captions[:num_known], captions[num_known:]
    words, fraction = RECIPE.against_words, RECIPE.against_fraction
    assert words is not None
    index = QuoteIndex.of([known], num_words=words, min_fraction=fraction)
    compared = np.flatnonzero(index.num_runs_T)
    hits = [
        int(number) in dict(index.quoted([f"Somebody wrote: {known[number].upper()} And left."]))
        for number in compared
    ]
    how = f"{len(compared)} of {num_known} descriptions have {words} words of their own"
    yield _row("recall_of_quotes", float(np.mean(hits)), f"{how}; each quoted in another text")
    wrong = [bool(index.quoted([text])) for text in others if text not in set(known)]
    yield _row(
        "wrongly_found_texts",
        float(np.mean(wrong)),
        f"of {len(wrong):,} descriptions of other scenes by the same program",
    )


def _row(key: str, value: float, how: str) -> Row:
    return {
        "key": f"decontaminate.{key}",
        "value": round(value, 4),
        "unit": "fraction",
        "baseline": "the defaults of `dedup against`",
        "how": how,
    }
