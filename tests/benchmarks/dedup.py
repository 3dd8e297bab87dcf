"""Recall and precision of dedup, and the cost of deciding about millions of pictures.

    python -m tests.benchmarks.dedup            # print the figures; run.py stores them

Pictures are the embedded emoji (hard: many differ by design in a colour or a hand), scenes, and
clouds: noise with the spectrum of photographs, as a stand-in for them. Two pictures are copies if
the defaults of the recipe say so: by their hashes, and by their thumbnails. `dedup_by_kind.py`
measures other kinds of pictures, many more of each.
"""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from tests.benchmarks.dedup_by_kind import is_found
from tests.benchmarks.dedup_pictures import (
    EDITS,
    WHOLE,
    Picture,
    bases,
    cloud,
    decoded,
    resized,
    saved,
)

from consomme.base.hashing import hash_ids
from consomme.curate.dedup.comparison import differences
from consomme.curate.dedup.confirmation import ThumbnailTable
from consomme.curate.dedup.copies import (
    NearDuplicateLimits,
    find_duplicates,
    rank_order,
    star_clusters,
)
from consomme.curate.dedup.phash import PictureHashes, colour_gap, hash_picture, mirrored_colour
from consomme.curate.dedup.thumbnails import coarse_levels, make_thumbnails
from consomme.datasets import emoji, scenes
from consomme.pipelines.dedup.recipe import DedupRecipe

Row = dict[str, Any]
RECIPE = DedupRecipe(name="defaults", view="none")
DISTANCE = RECIPE.max_distance or 0
COLOUR = RECIPE.max_colour
STYLES = (*emoji.TRAIN_STYLES, emoji.HELD_OUT_STYLE)
BILLION = 10**9
NUM_CLOUDS = 1000


def apart(one: PictureHashes, other: PictureHashes, *, flips: bool = False) -> NDArray[np.int64]:
    """Return the Hamming distance of each pair; 99 where the colours differ too much."""
    gaps = [_gap(one.phash_N, one.colour_N, other.phash_N, other.colour_N)]
    if flips:
        mirrored = mirrored_colour(other.colour_N)
        gaps.append(_gap(one.phash_N, one.colour_N, other.flipped_N, mirrored))
    return np.minimum.reduce(gaps)


def _gap(*sides: NDArray[np.uint64]) -> NDArray[np.int64]:
    hashes, colours, other_hashes, other_colours = sides
    bits = np.bitwise_count(hashes ^ other_hashes).astype(np.int64)
    return np.where(colour_gap(colours, other_colours) <= COLOUR, bits, 99)


def recall() -> tuple[list[Row], NDArray[np.float64]]:
    """Measure recall of edited copies; and that of hashes alone, over the usual edits."""
    rows, usual = [], []
    pools = {kind: list(bases(kind)) for kind in ("emoji", "scenes", "clouds")}
    before = {kind: (hash_picture(pool), make_thumbnails(pool)) for kind, pool in pools.items()}
    for name, edits in EDITS.items():
        found: dict[str, list[Any]] = {kind: [] for kind in pools}
        gaps: dict[str, list[Any]] = {kind: [] for kind in pools}
        for kind, (looks, thumbnails) in before.items():
            for edit in edits:
                copies = [edit(picture) for picture in pools[kind]]
                is_mirrored = name == "flip"
                found[kind].append(is_found(looks, thumbnails, copies, is_mirrored=is_mirrored))
                gaps[kind].append(apart(looks, hash_picture(copies), flips=is_mirrored))
        shares = {kind: float(np.mean(parts)) for kind, parts in found.items()}
        how = ", ".join(f"{kind} {share:.3f}" for kind, share in shares.items())
        how += "; flips: true" if name == "flip" else ""
        rows.append(_row(f"recall_{name}", np.mean(list(shares.values())), "fraction", how))
        if name in WHOLE:
            curves = [[(np.array(gap) <= d).mean() for d in range(9)] for gap in gaps.values()]
            usual.append(np.mean(curves, axis=0))
    return rows, np.mean(usual, axis=0)


def precision() -> list[Row]:
    """Measure the share of dropped pictures that are copies; every picture has exactly one copy."""
    rows = []
    # Noto draws some emoji alike, such as an astronaut and a man who is one: equal bytes.
    drawn = dict.fromkeys(entry.image for entry in emoji.load("noto"))
    pools = {
        "emoji": [decoded(image) for image in drawn],
        "scenes": [scenes.render(scenes.make_scene(k)).convert("RGB") for k in range(1500)],
        "clouds": [cloud(seed, 64) for seed in range(1500)],
    }
    for kind, pictures in pools.items():
        size = len(pictures)
        copies = [saved(resized(p, 0.75), "JPEG", quality=75) for p in pictures]
        center = _centers([*pictures, *copies])
        (dropped,) = np.nonzero(center != np.arange(2 * size))
        is_copy = dropped - center[dropped] == size
        how = f"of the dropped, {size} {kind} and a copy of each (0.75 ×, JPEG 75)"
        rows.append(_row(f"precision_{kind}", is_copy.mean(), "fraction", how))
        # Without the copies: every dropped picture is a false positive.
        lost = 1 - len(set(_centers(pictures).tolist())) / size
        how = f"{size} different {kind} without copies: share that is dropped all the same"
        rows.append(_row(f"wrongly_dropped_{kind}", lost, "fraction", how))
    return rows


def _centers(pictures: list[Picture]) -> NDArray[np.int64]:
    """Return for each picture, in this order of rank, the number of the one that stays."""
    looks, thumbnails = hash_picture(pictures), make_thumbnails(pictures)
    return find_duplicates(
        np.arange(len(pictures), dtype=np.uint64)[:, None],
        looks.phash_N[:, None],
        looks.colour_N[:, None],
        looks.is_flat_N,
        NearDuplicateLimits(max_distance=DISTANCE, max_colour=COLOUR),
        lambda samples: ThumbnailTable.of(thumbnails[samples]),
    ).representative_N


def styles() -> list[Row]:
    """Measure how often one emoji in two styles, which are different pictures, counts as a copy."""
    looks, found, total = {}, 0, 0
    for style in STYLES:
        entries = emoji.load(style)
        pictures = [decoded(entry.image) for entry in entries]
        codes = {entry.code: k for k, entry in enumerate(entries)}
        looks[style] = (codes, hash_picture(pictures), make_thumbnails(pictures))
    for index, style in enumerate(STYLES):
        for other in STYLES[index + 1 :]:
            codes, there = looks[style][0], looks[other][0]
            shared = sorted(set(codes) & set(there))
            ours, theirs = [codes[code] for code in shared], [there[code] for code in shared]
            gap = apart(_take(looks[style][1], ours), _take(looks[other][1], theirs))
            is_copy = differences(looks[style][2][ours], looks[other][2][theirs]) <= 1
            found, total = found + int((is_copy & (gap <= DISTANCE)).sum()), total + len(shared)
    how = f"{total:,} pairs of one emoji in two of {len(STYLES)} styles"
    return [_row("styles_called_copies", found / total, "fraction", how)]


def _take(looks: PictureHashes, places: list[int]) -> PictureHashes:
    return PictureHashes(
        **{name: getattr(looks, name)[places] for name in PictureHashes.__dataclass_fields__}
    )


def chains() -> list[Row]:
    """Compare transitive closure with star clusters, by hashes alone."""
    entries = emoji.load("twemoji")
    hashes = hash_picture([decoded(entry.image) for entry in entries]).phash_N
    hashes = hashes[np.argsort(hash_ids([entry.sample_id for entry in entries]))]
    is_near = np.bitwise_count(hashes[:, None] ^ hashes[None]) <= DISTANCE
    chain = np.arange(len(hashes))
    while True:
        least = np.where(is_near, chain[None], len(hashes)).min(axis=1)
        if (least == chain).all():
            break
        chain = least
    limits = NearDuplicateLimits(max_distance=DISTANCE)
    star, _ = star_clusters(hashes[:, None], np.zeros((len(hashes), 1), np.uint64), limits)
    rows = []
    for name, group in (("chains", chain), ("stars", star)):
        members = [np.flatnonzero(group == number) for number in np.unique(group)]
        widest = max(np.bitwise_count(hashes[m][:, None] ^ hashes[m][None]).max() for m in members)
        how = f"{len(hashes)} Twemoji, distance {DISTANCE}, max_colour 255"
        rows += [
            _row(f"{name}_largest", max(map(len, members)), "samples", how),
            _row(f"{name}_widest", int(widest), "bits", how),
            _row(f"{name}_dropped", len(hashes) - len(members), "samples", how),
        ]
    return rows


def median() -> list[Row]:
    """Compare the usual bits (coefficient above the median) with ours, on all Noto emoji."""
    pictures = [decoded(entry.image) for entry in emoji.load("noto")]
    copies = [saved(p, "JPEG", quality=30) for p in pictures]
    ours = [hash_picture(side).phash_N for side in (pictures, copies)]
    usual = [np.array([_median_hash(p) for p in side], np.uint64) for side in (pictures, copies)]
    rows = []
    for name, (before, after) in (("median", usual), ("ours", ours)):
        found = (np.bitwise_count(before ^ after) <= DISTANCE).mean()
        equal = sum(int((before[k] == before[k + 1 :]).sum()) for k in range(len(before)))
        near = sum(
            int((np.bitwise_count(before[k] ^ before[k + 1 :]) <= DISTANCE).sum())
            for k in range(len(before))
        )
        how = f"{len(pictures)} Noto emoji, by hashes alone"
        rows += [
            _row(f"bits_{name}_recall_jpeg30", found, "fraction", how),
            _row(f"bits_{name}_equal", equal, "pairs", how),
            _row(f"bits_{name}_near", near, "pairs", how),
        ]
    return rows


def _median_hash(picture: Picture) -> int:
    levels = np.asarray(picture.convert("L").resize((32, 32), Image.Resampling.BILINEAR), float)
    wave = np.cos(np.pi / 32 * (np.arange(32) + 0.5) * np.arange(8)[:, None])
    wave[0] /= math.sqrt(2)
    values = (wave @ levels @ wave.T).reshape(-1)[1:]
    return int(sum(1 << bit for bit, is_set in enumerate(values > np.median(values), 1) if is_set))


def flatness() -> list[Row]:
    """Measure recall of low-contrast pictures after JPEG 60, by contrast."""
    pale = [
        ImageEnhance.Contrast(picture).enhance(contrast)
        for kind in ("emoji", "scenes", "clouds")
        for picture in bases(kind)[::3]
        for contrast in (0.3, 0.15, 0.08, 0.04, 0.02, 0.01)
    ]
    small = [p.resize((32, 32), Image.Resampling.BILINEAR).convert("L") for p in pale]
    levels = np.array([np.asarray(p).std() for p in small])
    before, after = hash_picture(pale), hash_picture([saved(p, "JPEG", quality=60) for p in pale])
    is_found = np.bitwise_count(before.phash_N ^ after.phash_N) <= DISTANCE
    rows = []
    for low, high in ((0.25, 1), (1, 1.5), (1.5, 2), (2, 3), (3, 5), (5, 10), (10, 20)):
        inside = (levels >= low) & (levels < high)
        how = f"deviation of {low} to {high} grey levels, {inside.sum()} pictures; flat below 2"
        rows.append(_row(f"found_at_{low}_levels", is_found[inside].mean(), "fraction", how))
    return rows


def decide(num: int) -> dict[str, float]:
    """Decide about random hashes: 10 % near copies, 5 % equal hashes, 1 % one placeholder.

    All of them are confirmed by thumbnails, which are those of clouds with a grey level changed.
    """
    rng = np.random.default_rng(0)
    cloud_of = rng.integers(0, NUM_CLOUDS, num, dtype=np.int16)

    def some(share: float) -> NDArray[np.int64]:
        return rng.integers(0, num, int(num * share))

    hashes = rng.integers(0, 2**64, num, dtype=np.uint64)
    origin, copy = some(0.1), some(0.1)
    near = hashes[origin]
    for _ in range(3):
        near ^= np.uint64(1) << rng.integers(0, 64, len(near), dtype=np.uint64)
    hashes[copy], cloud_of[copy] = near, cloud_of[origin]
    origin, copy = some(0.05), some(0.05)
    hashes[copy], cloud_of[copy] = hashes[origin], cloud_of[origin]
    placeholder = some(0.01)
    hashes[placeholder], cloud_of[placeholder] = 12345, 0
    content = rng.integers(0, 2**64, (num, 2), dtype=np.uint64)
    content[some(0.02)] = content[some(0.02)]
    score = rng.random(num, dtype=np.float32)
    pixels, weight = rng.integers(1, 10**6, num), rng.integers(1, 10**6, num)
    colours = np.zeros((num, 1), np.uint64)
    clouds = make_thumbnails([cloud(seed, 64) for seed in range(NUM_CLOUDS)])
    opened: list[Any] = []

    def thumbnails(samples: NDArray[np.int64]) -> ThumbnailTable:
        opened.append(len(samples))
        which = cloud_of[order[samples]]
        table: Any = _ManyThumbnails(clouds, which), _ManyThumbnails(coarse_levels(clouds), which)
        return ThumbnailTable(thumbnail_NB=table[0], coarse_NB=table[1])

    # Reset the recorded peak; only the columns are resident now.
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak_mb()
    # Of one process that reads no file, so other work beside it does not matter.
    began = time.process_time()
    order = rank_order(score, pixels, weight, content[:, 0])
    copies = find_duplicates(
        content[order],
        hashes[order][:, None],
        colours,
        np.zeros(num, bool),
        NearDuplicateLimits(max_distance=DISTANCE, max_colour=COLOUR),
        thumbnails,
    )
    return {
        "opened": opened[0] / num,
        "seconds": time.process_time() - began,
        "mb": _peak_mb() - before,
        "kept": float(copies.is_kept_N.mean()),
    }


class _ManyThumbnails:
    """Rows like those of a file of thumbnails, without the gigabytes."""

    def __init__(self, rows: NDArray[np.uint8], which: NDArray[np.int16]) -> None:
        self.rows, self.which = rows, which

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, samples: NDArray[np.int64]) -> NDArray[np.uint8]:
        rows = self.rows[self.which[samples]]
        # No two are equal, or they would not have to be compared.
        rows[:, 0] ^= (samples % 3).astype(np.uint8)
        return rows


def _peak_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return float(status.partition("VmHWM:")[2].split()[0]) / 1024


def scale() -> list[Row]:
    """Measure time and memory of the decision, each size in its own process."""
    rows = []
    for name, num in (("1m", 10**6), ("10m", 10**7)):
        command = [sys.executable, "-m", "tests.benchmarks.dedup", "decide", str(num)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        how = (
            f"CPU time; {num:,} planted hashes and thumbnails, distance {DISTANCE};"
            f" {found['kept']:.3f} stay"
        )
        how += f"; thumbnails of {found['opened']:.2f} of them are needed, 4.7 kB each on disk"
        rows.append(_row(f"seconds_{name}", found["seconds"], "s", how))
        how = "memory on top of the columns, at its peak, per million samples"
        rows.append(_row(f"mb_per_million_{name}", found["mb"] / (num / 10**6), "MB", how))
    return rows


def hashing() -> list[Row]:
    """Measure what hashing and shrinking add to decoding a JPEG of one megapixel."""
    buffer = io.BytesIO()
    cloud(0, 1024).resize((1024, 1024)).save(buffer, "JPEG", quality=85)
    data = buffer.getvalue()
    picture = decoded(data)
    costs = []
    actions = (
        lambda: decoded(data),
        lambda: (hash_picture([picture]), make_thumbnails([picture])),
    )
    for action in actions:
        action()
        began = time.process_time()
        for _ in range(20):
            action()
        costs.append((time.process_time() - began) / 20 * 1000)
    how = f"CPU time; decoding the same JPEG takes {costs[0]:.1f} ms"
    return [_row("hash_ms_per_megapixel", costs[1], "ms", how)]


def measure() -> list[Row]:
    """Return all figures."""
    recalls, usual = recall()
    table = []
    for d in range(9):
        chance = sum(math.comb(63, k) for k in range(d + 1)) / 2**63 * BILLION
        how = f"max_distance: {d}, hashes alone; mean over {', '.join(WHOLE)}"
        table += [
            _row(f"d{d}_recall", usual[d], "fraction", how),
            _row(f"d{d}_chance", chance, "per picture", "random hashes among a billion"),
        ]
    rows = [*recalls, *precision(), *styles(), *table, *chains(), *median()]
    return [*rows, *flatness(), *hashing(), *scale()]


def _row(key: str, value: float, unit: str, how: str) -> Row:
    rounded = float(f"{float(value):.4g}")
    return {"key": f"dedup.{key}", "value": rounded, "unit": unit, "baseline": "", "how": how}


if __name__ == "__main__":
    if sys.argv[1:2] == ["decide"]:
        sys.stdout.write(json.dumps(decide(int(sys.argv[2]))) + "\n")
    else:
        for line in measure():
            sys.stdout.write(f"{line['key']}: {line['value']} {line['unit']} ({line['how']})\n")
