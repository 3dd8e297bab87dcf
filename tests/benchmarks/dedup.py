"""Recall and precision of dedup, and the cost of deciding about millions of pictures.

    python -m tests.benchmarks.dedup            # print the figures; run.py stores them

Pictures are the embedded emoji (hard: many differ by design in a colour or a hand), scenes, and
clouds: noise with the spectrum of photographs, as a stand-in for them. Two pictures are copies if
the defaults of the recipe say so.
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
from consomme.curate.dedup.copies import (
    NearDuplicateLimits,
    find_duplicates,
    rank_order,
    star_clusters,
)
from consomme.curate.dedup.phash import PictureHashes, colour_gap, hash_picture, mirrored_colour
from consomme.datasets import emoji, scenes
from consomme.pipelines.dedup.recipe import DedupRecipe

Row = dict[str, Any]
RECIPE = DedupRecipe(name="defaults", view="none")
DISTANCE = RECIPE.max_distance or 0
COLOUR = RECIPE.max_colour
STYLES = (*emoji.TRAIN_STYLES, emoji.HELD_OUT_STYLE)
BILLION = 10**9


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
    """Measure recall of edited copies, and its mean over the usual edits for each distance."""
    rows, usual = [], []
    before = {kind: hash_picture(bases(kind)) for kind in ("emoji", "scenes", "clouds")}
    for name, edits in EDITS.items():
        gaps = {
            kind: np.concatenate(
                [
                    apart(looks, hash_picture([edit(p) for p in bases(kind)]), flips=name == "flip")
                    for edit in edits
                ]
            )
            for kind, looks in before.items()
        }
        found = {kind: (gap <= DISTANCE).mean() for kind, gap in gaps.items()}
        how = ", ".join(f"{kind} {share:.3f}" for kind, share in found.items())
        how += "; flips: true" if name == "flip" else ""
        rows.append(_row(f"recall_{name}", np.mean(list(found.values())), "fraction", how))
        if name in WHOLE:
            curves = [[(gap <= d).mean() for d in range(9)] for gap in gaps.values()]
            usual.append(np.mean(curves, axis=0))
    return rows, np.mean(usual, axis=0)


def _pair_gaps(
    looks: PictureHashes,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return all pairs at most 8 bits apart: first, second, bits; plus 100 for other colours."""
    firsts, seconds, gaps = [], [], []
    for number in range(len(looks.phash_N)):
        bits = np.bitwise_count(looks.phash_N[number] ^ looks.phash_N[number + 1 :])
        (near,) = np.nonzero(bits <= 8)
        other = near + number + 1
        colours = np.full(len(near), looks.colour_N[number])
        is_alike = colour_gap(colours, looks.colour_N[other]) <= COLOUR
        firsts.append(np.full(len(near), number))
        seconds.append(other)
        gaps.append(np.where(is_alike, bits[near], bits[near].astype(np.int64) + 100))
    return np.concatenate(firsts), np.concatenate(seconds), np.concatenate(gaps)


def precision() -> tuple[list[Row], NDArray[np.float64]]:
    """Measure the share of found pairs that are copies; every picture has exactly one copy."""
    rows, curve = [], np.zeros(9)
    pools = {
        "emoji": [decoded(entry.image) for entry in emoji.load("noto")],
        "scenes": [scenes.render(scenes.make_scene(k)).convert("RGB") for k in range(1500)],
        "clouds": [cloud(seed, 64) for seed in range(1500)],
    }
    for kind, pictures in pools.items():
        copies = [saved(resized(p, 0.75), "JPEG", quality=75) for p in pictures]
        size = len(pictures)
        one, other, gap = _pair_gaps(hash_picture([*pictures, *copies]))
        is_copy = other - one == size
        shares = [_share(is_copy[gap <= d]) for d in range(9)]
        how = f"pairs of {size} {kind} and a copy of each (0.75 ×, JPEG 75); defaults"
        rows.append(_row(f"precision_{kind}", shares[DISTANCE], "fraction", how))
        by_shape = _share(is_copy[gap % 100 <= DISTANCE])
        how = "the same with max_colour: 255"
        rows.append(_row(f"precision_{kind}_any_colour", by_shape, "fraction", how))
        # Without the copies: every dropped picture is a false positive.
        looks = hash_picture(pictures)
        middle, _ = star_clusters(
            looks.phash_N[:, None],
            looks.colour_N[:, None],
            NearDuplicateLimits(max_distance=DISTANCE, max_colour=COLOUR),
        )
        lost = 1 - len(set(middle.tolist())) / size
        how = f"{size} different {kind} without copies: share that is dropped all the same"
        rows.append(_row(f"wrongly_dropped_{kind}", lost, "fraction", how))
        if kind == "emoji":
            curve = np.array(shares)
    return rows, curve


def _share(is_copy: NDArray[np.bool_]) -> float:
    return float(is_copy.mean()) if is_copy.size else 1.0


def styles() -> list[Row]:
    """Measure how often one emoji in two styles, which are different pictures, counts as a copy."""
    looks, found, total = {}, 0, 0
    for style in STYLES:
        entries = emoji.load(style)
        seen = hash_picture([decoded(entry.image) for entry in entries])
        looks[style] = ({entry.code: k for k, entry in enumerate(entries)}, seen)
    for index, style in enumerate(STYLES):
        for other in STYLES[index + 1 :]:
            codes, there = looks[style][0], looks[other][0]
            shared = sorted(set(codes) & set(there))
            gap = apart(
                _take(looks[style][1], [codes[code] for code in shared]),
                _take(looks[other][1], [there[code] for code in shared]),
            )
            found, total = found + int((gap <= DISTANCE).sum()), total + len(shared)
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
    """Decide about random hashes: 10 % near copies, 5 % equal hashes, 1 % one placeholder."""
    rng = np.random.default_rng(0)

    def some(share: float) -> NDArray[np.int64]:
        return rng.integers(0, num, int(num * share))

    hashes = rng.integers(0, 2**64, num, dtype=np.uint64)
    near = hashes[some(0.1)]
    for _ in range(3):
        near ^= np.uint64(1) << rng.integers(0, 64, len(near), dtype=np.uint64)
    hashes[some(0.1)] = near
    hashes[some(0.05)] = hashes[some(0.05)]
    hashes[some(0.01)] = 12345
    content = rng.integers(0, 2**64, (num, 2), dtype=np.uint64)
    content[some(0.02)] = content[some(0.02)]
    score = rng.random(num, dtype=np.float32)
    pixels, weight = rng.integers(1, 10**6, num), rng.integers(1, 10**6, num)
    colours = np.zeros((num, 1), np.uint64)
    # Reset the recorded peak; only the columns are resident now.
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak_mb()
    began = time.monotonic()
    order = rank_order(score, pixels, weight, content[:, 0])
    copies = find_duplicates(
        content[order],
        hashes[order][:, None],
        colours,
        np.zeros(num, bool),
        NearDuplicateLimits(max_distance=DISTANCE, max_colour=COLOUR),
    )
    return {
        "seconds": time.monotonic() - began,
        "mb": _peak_mb() - before,
        "kept": float(copies.is_kept_N.mean()),
    }


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
        how = f"{num:,} planted hashes, distance {DISTANCE}; {found['kept']:.3f} stay"
        rows.append(_row(f"seconds_{name}", found["seconds"], "s", how))
        how = "memory on top of the columns, at its peak, per million samples"
        rows.append(_row(f"mb_per_million_{name}", found["mb"] / (num / 10**6), "MB", how))
    return rows


def hashing() -> list[Row]:
    """Measure what hashing adds to decoding a JPEG of one megapixel."""
    buffer = io.BytesIO()
    cloud(0, 1024).resize((1024, 1024)).save(buffer, "JPEG", quality=85)
    data = buffer.getvalue()
    picture = decoded(data)
    costs = []
    for action in (lambda: decoded(data), lambda: hash_picture([picture])):
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
    precisions, curve = precision()
    table = []
    for d in range(9):
        chance = sum(math.comb(63, k) for k in range(d + 1)) / 2**63 * BILLION
        how = f"max_distance: {d}; mean over {', '.join(WHOLE)}"
        table += [
            _row(f"d{d}_recall", usual[d], "fraction", how),
            _row(f"d{d}_precision_emoji", curve[d], "fraction", f"max_distance: {d}"),
            _row(f"d{d}_chance", chance, "per picture", "random hashes among a billion"),
        ]
    rows = [*recalls, *precisions, *styles(), *table, *chains(), *median()]
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
