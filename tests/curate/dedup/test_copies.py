"""Copies: who is near whom, who stays, and that nothing but rank and looks decides it."""

import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from consomme.curate.dedup.confirmation import ThumbnailTable
from consomme.curate.dedup.copies import (
    NearDuplicateLimits,
    find_duplicates,
    first_of_equal,
    rank_order,
    star_clusters,
)
from consomme.curate.dedup.hash_tables import Index, block_masks
from consomme.curate.dedup.phash import (
    FLAT_LEVELS,
    colour_gap,
    hash_grey,
    hash_picture,
    mirrored_colour,
)
from consomme.curate.dedup.thumbnails import NUM_BYTES
from consomme.datasets import scenes

Words = NDArray[np.uint64]


def words(*values: int) -> Words:
    return np.array(values, dtype=np.uint64)


def column(*values: int) -> Words:
    return words(*values)[:, None]


def looking_the_same(samples: Index) -> ThumbnailTable:
    """Thumbnails that confirm every pair."""
    return ThumbnailTable.of(np.zeros((len(samples), NUM_BYTES), np.uint8))


def scene(seed: int) -> Image.Image:
    return scenes.render(scenes.make_scene(seed)).convert("RGB")


def saved(image: Image.Image, file_format: str, **options: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def bits(one: int, other: int) -> int:
    return bin(int(one) ^ int(other)).count("1")


# Hashes that crowd around few centres, as copies do, and leave many bits alone, as real ones do.
HASHES = st.lists(
    st.builds(
        lambda centre, flips: centre ^ sum(1 << bit for bit in set(flips)),
        st.sampled_from([0, 0x0F0F_0F0F_0F0F_0F0F, 0xFFFF_0000_FFFF_0000, 2**64 - 1]),
        st.lists(st.integers(0, 63), max_size=9),
    ),
    max_size=40,
)
COLOURS = st.lists(st.sampled_from([0, 3, 9, 0x0900_0000_0000_0000]), min_size=80, max_size=80)


def brute_force(
    hash_NS: Words, colour_NS: Words, limits: NearDuplicateLimits
) -> tuple[list[int], list[int]]:
    """Stars by their definition: one after the other, comparing with all that stay."""

    def distance(one: int, other: int) -> int:
        return min(
            bits(hash_NS[one, a], hash_NS[other, b])
            if colour_gap(colour_NS[one, a : a + 1], colour_NS[other, b : b + 1])[0]
            <= limits.max_colour
            else 99
            for a in range(hash_NS.shape[1])
            for b in range(hash_NS.shape[1])
        )

    middles: list[int] = []
    looks: dict[tuple[int, ...], int] = {}
    found: list[tuple[int, int]] = []
    for number in range(len(hash_NS)):
        same = looks.setdefault((*hash_NS[number], *colour_NS[number]), number)
        near = [(distance(number, middle), middle) for middle in middles]
        near = [entry for entry in near if entry[0] <= limits.max_distance]
        if same != number:
            found.append(found[same])
        elif near:
            found.append(min(near))
        else:
            middles.append(number)
            found.append((0, number))
    return [middle for _, middle in found], [gap for gap, _ in found]


@given(HASHES, COLOURS, st.integers(0, 8), st.sampled_from([0, 6, 255]), st.booleans())
def test_stars_are_those_of_comparing_everything(
    values: list[int], colours: list[int], max_distance: int, max_colour: int, two_sides: bool
) -> None:
    sides = 2 if two_sides else 1
    size = len(values) // sides * sides
    hash_NS = np.array(values[:size], dtype=np.uint64).reshape(-1, sides)
    colour_NS = np.array(colours[:size], dtype=np.uint64).reshape(-1, sides)
    limits = NearDuplicateLimits(max_distance=max_distance, max_colour=max_colour)
    middle, distance = star_clusters(hash_NS, colour_NS, limits)
    assert (middle.tolist(), distance.tolist()) == brute_force(hash_NS, colour_NS, limits)


def test_among_thousands_who_stays_is_near_nobody_better_that_stays() -> None:
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 2**64, 60, dtype=np.uint64)
    hash_N = centres[rng.integers(0, 60, 3000)]
    for _ in range(3):
        hash_N = hash_N ^ (np.uint64(1) << rng.integers(0, 64, 3000, dtype=np.uint64))
    hash_N = np.unique(hash_N)[rng.permutation(len(np.unique(hash_N)))]
    none = np.zeros((len(hash_N), 1), np.uint64)
    middle, distance = star_clusters(hash_N[:, None], none, NearDuplicateLimits(max_distance=4))
    stays = middle == np.arange(len(hash_N))
    for number in range(len(hash_N)):
        gaps = np.bitwise_count(hash_N[number] ^ hash_N[:number]).astype(int)
        gaps[~stays[:number]] = 99
        assert stays[number] == (gaps > 4).all()
        if not stays[number]:
            assert middle[number] == gaps.argmin()
            assert distance[number] == gaps.min()
    assert 300 < stays.sum() < 2000


@given(
    st.integers(0, 2**64 - 1),
    st.lists(st.integers(0, 63), max_size=8, unique=True),
    st.sampled_from([10, 100_000, 10_000_000, 1_000_000_000]),
)
def test_two_hashes_within_the_distance_agree_under_some_mask(
    value: int, changed: list[int], num_hashes: int
) -> None:
    other = value ^ sum(1 << bit for bit in changed)
    masks = block_masks(num_hashes, len(changed))
    assert any(value & int(mask) == other & int(mask) for mask in masks)


def test_more_hashes_get_longer_masks() -> None:
    lengths = [int(block_masks(10**power, 4)[0]).bit_count() for power in (3, 6, 9)]
    assert lengths == sorted(set(lengths))


def test_near_copies_form_stars_and_not_chains() -> None:
    left, between, right = 0, 0b1111, 0b1111_1111
    limits = NearDuplicateLimits(max_distance=4)

    def middles(*values: int) -> list[int]:
        return star_clusters(column(*values), column(0, 0, 0), limits)[0].tolist()

    assert middles(between, left, right) == [0, 0, 0]
    assert middles(left, between, right) == [0, 0, 2]
    assert middles(left, right, between) == [0, 1, 0]


def test_a_copy_goes_to_the_nearest_that_stays() -> None:
    middle, distance = star_clusters(
        column(0, 0b1_1111, 0b1_1110), column(0, 0, 0), NearDuplicateLimits(max_distance=4)
    )
    assert middle.tolist() == [0, 1, 1]
    assert distance.tolist() == [0, 0, 1]


def test_equal_bytes_share_the_fate_of_the_best_of_them() -> None:
    copies = find_duplicates(
        column(7, 8, 8, 9, 9),
        column(0, 0b11, 0b11, 2**60 - 1, 2**60 - 1),
        column(0, 0, 0, 0, 0),
        np.zeros(5, bool),
        NearDuplicateLimits(max_distance=4),
        looking_the_same,
    )
    assert copies.representative_N.tolist() == [0, 0, 0, 3, 3]
    assert copies.distance_N.tolist() == [0, 2, 2, 0, 0]
    assert copies.is_exact_N.tolist() == [False, False, False, False, True]
    assert copies.is_kept_N.tolist() == [True, False, False, True, False]


def test_flat_pictures_are_copies_only_if_their_bytes_are_equal() -> None:
    copies = find_duplicates(
        column(1, 2, 2),
        column(0, 0, 0),
        column(0, 0, 0),
        np.array([True, True, True]),
        NearDuplicateLimits(max_distance=4),
        looking_the_same,
    )
    assert copies.representative_N.tolist() == [0, 1, 1]


def test_without_nearness_only_equal_bytes_are_copies() -> None:
    content = np.array([[1, 5], [1, 6], [1, 5]], np.uint64)
    zeros = np.zeros((3, 1), np.uint64)
    copies = find_duplicates(content, zeros, zeros, np.zeros(3, bool), None, looking_the_same)
    assert copies.representative_N.tolist() == [0, 1, 0]


def test_a_hundred_thousand_placeholders_leave_one() -> None:
    rng = np.random.default_rng(0)
    hash_N = np.concatenate([np.full(100_000, 12345), rng.integers(0, 2**62, 50_000)])
    none = np.zeros((150_000, 1), np.uint64)
    middle, _ = star_clusters(
        hash_N.astype(np.uint64)[:, None], none, NearDuplicateLimits(max_distance=4)
    )
    assert (middle[:100_000] == 0).all()
    assert (middle[100_000:] == np.arange(100_000, 150_000)).all()


def test_no_samples_are_no_trouble() -> None:
    none = np.zeros((0, 1), np.uint64)
    copies = find_duplicates(
        none, none, none, np.zeros(0, bool), NearDuplicateLimits(max_distance=4), looking_the_same
    )
    assert copies.representative_N.size == 0
    assert first_of_equal(none).size == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=30))
def test_equal_rows_are_numbered_by_the_first(rows: list[tuple[int, int]]) -> None:
    table = np.array(rows, np.uint64).reshape(-1, 2)
    assert first_of_equal(table).tolist() == [rows.index(row) for row in rows]


def test_the_best_is_the_best_scored_then_the_largest_then_the_heaviest_then_by_id() -> None:
    samples = [  # score, pixels, bytes, hash of the id
        (2.0, 10, 10, 9 << 32),
        (1.0, 30, 10, 9 << 32),
        (1.0, 20, 30, 9 << 32),
        (1.0, 20, 20, 1 << 32),
        (1.0, 20, 20, 2 << 32),
        (-0.0, 20, 20, 3 << 32),
        (0.0, 20, 20, 4 << 32),
        (-5.0, 99, 99, 0),
        (float("-inf"), 99, 99, 0),
        (float("nan"), 999, 99, 0),
    ]
    for seed in range(5):
        shuffled = np.random.default_rng(seed).permutation(len(samples))
        score, pixels, weight, ids = zip(*(samples[k] for k in shuffled), strict=True)
        order = rank_order(np.array(score), np.array(pixels), np.array(weight), words(*ids))
        assert shuffled[order].tolist() == list(range(len(samples)))
    order = rank_order(None, np.array([1, 2]), np.array([1, 1]), words(0, 0))
    assert order.tolist() == [1, 0]


def grey_of(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR).convert("L"))


def direct_hash(grey_YX: NDArray[np.uint8]) -> int:
    """The hash by the textbook formula of the cosine transform, term by term."""

    def coefficient(v: int, u: int) -> float:
        scale = math.sqrt((1 if v == 0 else 2) * (1 if u == 0 else 2)) / 32
        return scale * math.fsum(
            float(grey_YX[y, x])
            * math.cos(math.pi * (2 * y + 1) * v / 64)
            * math.cos(math.pi * (2 * x + 1) * u / 64)
            for y in range(32)
            for x in range(32)
        )

    places = [(v, u) for v in range(8) for u in range(8) if v or u]
    values = {place: coefficient(*place) for place in places}
    limit = sum(map(abs, values.values())) / len(values) / 20
    return sum(1 << (8 * v + u) for (v, u), value in values.items() if value > limit)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_hash_is_that_of_the_textbook_formula(seed: int) -> None:
    grey_YX = grey_of(scene(seed))
    phash, flipped = hash_grey(np.stack([grey_YX]))
    assert int(phash[0]) == direct_hash(grey_YX)
    assert int(flipped[0]) == direct_hash(grey_YX[:, ::-1])
    assert int(hash_picture([scene(seed)]).phash_N[0]) == int(phash[0])


def test_a_mirror_image_has_the_flipped_hash_and_colours() -> None:
    images = [scene(seed) for seed in range(20)]
    here, there = hash_picture(images), hash_picture([ImageOps.mirror(image) for image in images])
    assert np.bitwise_count(here.flipped_N ^ there.phash_N).max() <= 2
    assert colour_gap(mirrored_colour(here.colour_N), there.colour_N).max() <= 2
    assert np.bitwise_count(here.phash_N ^ there.phash_N).mean() > 16


def test_copies_look_alike_and_other_pictures_do_not() -> None:
    images = [scene(seed) for seed in range(40)]
    here = hash_picture(images)
    for edit in (
        lambda image: image.resize((90, 90), Image.Resampling.BICUBIC),
        lambda image: saved(image, "JPEG", quality=60),
        lambda image: saved(image, "WEBP", quality=80),
    ):
        there = hash_picture([edit(image) for image in images])
        assert (np.bitwise_count(here.phash_N ^ there.phash_N) <= 4).mean() > 0.9
        assert colour_gap(here.colour_N, there.colour_N).max() <= 8
    others = np.bitwise_count(here.phash_N[:, None] ^ here.phash_N[None])
    assert (others[~np.eye(40, dtype=bool)] > 4).all()


def disc(colour: tuple[int, int, int]) -> Image.Image:
    x, y = np.meshgrid(np.arange(64) - 31.5, np.arange(64) - 31.5)
    pixels = np.full((64, 64, 3), 255, np.uint8)
    pixels[(x - 8) ** 2 + y**2 < 300] = colour
    return Image.fromarray(pixels)


def test_the_same_thing_in_another_colour_is_no_copy() -> None:
    looks = hash_picture([disc((200, 30, 30)), disc((30, 30, 200)), disc((205, 32, 28))])
    assert np.bitwise_count(looks.phash_N ^ looks.phash_N[0]).max() <= 4
    hash_NS, colour_NS = looks.phash_N[:, None], looks.colour_N[:, None]
    by_colour, _ = star_clusters(
        hash_NS, colour_NS, NearDuplicateLimits(max_distance=4, max_colour=8)
    )
    assert by_colour.tolist() == [0, 1, 0]
    by_shape, _ = star_clusters(
        hash_NS, colour_NS, NearDuplicateLimits(max_distance=4, max_colour=255)
    )
    assert by_shape.tolist() == [0, 0, 0]


def test_a_nearly_uniform_picture_is_flat_and_a_faint_drawing_is_not() -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray((200 + rng.integers(-1, 2, (64, 64, 3))).astype(np.uint8))
    faint = disc((244, 244, 244))
    assert np.asarray(faint.convert("L")).std() > FLAT_LEVELS
    looks = hash_picture([Image.new("RGB", (9, 9), "white"), noise, faint, scene(0)])
    assert looks.is_flat_N.tolist() == [True, True, False, False]


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (500, 2), (31, 33)])
def test_pictures_of_any_shape_and_mode_have_hashes(size: tuple[int, int]) -> None:
    for mode in ("L", "RGB", "CMYK"):
        assert hash_picture([Image.new(mode, size)]).is_flat_N.tolist() == [True]
    assert hash_picture([]).phash_N.size == 0
