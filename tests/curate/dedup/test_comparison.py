"""Copies are found and different pictures stay, on kinds of pictures that hashes confuse."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from tests.benchmarks.dedup_kinds import KINDS, render
from tests.benchmarks.dedup_pictures import EDITS

from consomme.curate.dedup.comparison import differences
from consomme.curate.dedup.confirmation import ThumbnailTable
from consomme.curate.dedup.copies import (
    Duplicates,
    NearDuplicateLimits,
    find_duplicates,
    star_clusters,
)
from consomme.curate.dedup.hash_tables import Index, block_masks, first_masks
from consomme.curate.dedup.phash import hash_picture, mirrored_colour
from consomme.curate.dedup.thumbnails import make_thumbnails, mirrored
from consomme.pipelines.dedup.recipe import DedupRecipe

RECIPE = DedupRecipe(name="defaults", view="none")
LIMITS = NearDuplicateLimits(max_distance=RECIPE.max_distance or 0, max_colour=RECIPE.max_colour)
SURE_EDITS = ("resize", "jpeg90", "jpeg60", "reencode", "flip")


def copies_among(
    pictures: Sequence[Image.Image], *, flips: bool = False, limits: NearDuplicateLimits = LIMITS
) -> Duplicates:
    """Decide about pictures with different bytes, the best first."""
    looks = hash_picture(pictures)
    thumbnails = make_thumbnails(pictures)
    hashes, colours = [looks.phash_N], [looks.colour_N]
    if flips:
        hashes.append(looks.flipped_N)
        colours.append(mirrored_colour(looks.colour_N))
    return find_duplicates(
        np.arange(len(pictures), dtype=np.uint64)[:, None],
        np.stack(hashes, axis=1),
        np.stack(colours, axis=1),
        looks.is_flat_N,
        limits,
        lambda samples: ThumbnailTable.of(thumbnails[samples]),
    )


SHORT = ("text_pages", "radiographs")
"""Kinds that every run of the tests takes; the others are for long ones."""


def difference(one: Image.Image, other: Image.Image) -> float:
    return float(differences(make_thumbnails([one]), make_thumbnails([other]))[0])


@pytest.mark.parametrize(
    "kind",
    [kind if kind in SHORT else pytest.param(kind, marks=pytest.mark.long) for kind in KINDS],
)
def test_different_pictures_of_one_kind_all_stay(kind: str) -> None:
    found = copies_among([render(kind, seed) for seed in range(250)])
    assert found.is_kept_N.all()


@pytest.mark.parametrize("kind", ["radiographs", "faces", "forms"])
def test_their_hashes_alone_would_drop_some(kind: str) -> None:
    looks = hash_picture([render(kind, seed) for seed in range(250)])
    center, _ = star_clusters(looks.phash_N[:, None], looks.colour_N[:, None], LIMITS)
    assert len(np.unique(center)) < 240


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "gradients"])
def test_edited_copies_of_every_kind_are_found(kind: str) -> None:
    pictures = [render(kind, seed) for seed in range(25)]
    for name in SURE_EDITS:
        for edit in EDITS[name]:
            copies = [edit(picture) for picture in pictures]
            found = copies_among([*pictures, *copies], flips=name == "flip")
            is_found = found.representative_N[25:] == np.arange(25)
            assert is_found.mean() >= 0.92, name
            assert found.is_kept_N[:25].all()
            assert found.difference_N.max() <= 1


def gradient(low: int, high: int) -> Image.Image:
    row = np.linspace(low, high, 96).astype(np.uint8)
    return Image.fromarray(np.tile(row, (96, 1)))


def test_brightness_counts() -> None:
    dark, bright = gradient(10, 70), gradient(180, 240)
    looks = hash_picture([dark, bright])
    assert np.bitwise_count(looks.phash_N[0] ^ looks.phash_N[1]) <= 4
    assert difference(dark, bright) > 3
    assert copies_among([dark, bright]).is_kept_N.all()
    assert difference(dark, gradient(11, 77)) <= 1


def test_one_line_of_a_page_or_one_bar_of_a_chart_is_a_difference() -> None:
    page = render("text_pages", 1)
    changed = page.copy()
    line = (16, 98, 176, 106)
    changed.paste(render("text_pages", 2).crop(line), line[:2])
    assert difference(page, changed) > 1
    chart = render("charts", 3)
    changed = chart.copy()
    ImageDraw.Draw(changed).rectangle((72, 30, 82, 104), fill=(60, 110, 180))
    assert difference(chart, changed) > 1
    for picture in (page, chart):
        assert difference(picture, EDITS["jpeg60"][0](picture)) <= 1


def dot(colour: tuple[int, int, int]) -> Image.Image:
    picture = Image.new("RGB", (128, 128), (235, 235, 235))
    ImageDraw.Draw(picture).rectangle((10, 10, 100, 110), fill=(70, 70, 70))
    ImageDraw.Draw(picture).ellipse((104, 60, 122, 78), fill=colour)
    return picture


def test_a_small_thing_in_another_colour_is_a_difference() -> None:
    red, green = dot((200, 40, 40)), dot((40, 122, 40))
    assert abs(red.convert("L").getpixel((113, 69)) - green.convert("L").getpixel((113, 69))) < 12  # type: ignore[operator]
    assert difference(red, green) > 1
    assert difference(red, EDITS["jpeg60"][0](red)) <= 1


def test_a_page_of_another_brightness_is_no_copy_but_a_slightly_brighter_one_is() -> None:
    photo = ImageEnhance.Brightness(render("photos", 5)).enhance(0.6)
    brighter = ImageEnhance.Brightness(photo)
    assert difference(photo, brighter.enhance(1.1)) <= 1
    assert difference(photo, brighter.enhance(1.3)) > 1


def test_what_is_dropped_is_a_copy_of_what_stays_and_not_of_another_copy() -> None:
    first = ImageEnhance.Brightness(render("photos", 6)).enhance(0.6)
    second, third = (ImageEnhance.Brightness(first).enhance(factor) for factor in (1.12, 1.25))
    assert difference(first, second) <= 1
    assert difference(second, third) <= 1
    assert difference(first, third) > 1
    limits = NearDuplicateLimits(max_distance=12)
    assert copies_among([first, second, third], limits=limits).representative_N.tolist() == [
        0,
        0,
        2,
    ]
    assert copies_among([second, first, third], limits=limits).representative_N.tolist() == [
        0,
        0,
        0,
    ]


def test_mirrored_copies_are_compared_mirrored() -> None:
    pictures = [render("icons", seed) for seed in range(8)]
    both = [*pictures, *map(ImageOps.mirror, pictures)]
    assert copies_among(both).is_kept_N.all()
    found = copies_among(both, flips=True)
    assert found.representative_N.tolist() == [*range(8), *range(8)]
    assert (found.difference_N == 0).all()
    thumbnails = make_thumbnails(pictures)
    assert (mirrored(mirrored(thumbnails)) == thumbnails).all()


def test_only_thumbnails_of_samples_with_near_hashes_are_opened() -> None:
    pictures = [render("photos", seed) for seed in range(40)]
    pictures += [EDITS["jpeg60"][0](picture) for picture in pictures[:3]]
    looks, thumbnails = hash_picture(pictures), make_thumbnails(pictures)
    opened: list[Index] = []

    def open_some(samples: Index) -> ThumbnailTable:
        opened.append(samples)
        return ThumbnailTable.of(thumbnails[samples])

    found = find_duplicates(
        np.arange(len(pictures), dtype=np.uint64)[:, None],
        looks.phash_N[:, None],
        looks.colour_N[:, None],
        looks.is_flat_N,
        NearDuplicateLimits(max_distance=3),
        open_some,
    )
    assert found.representative_N[40:].tolist() == [0, 1, 2]
    assert set(opened[0].tolist()) >= {0, 1, 2, 40, 41, 42}
    assert len(opened[0]) < 20


def test_thousands_of_recompressed_placeholders_leave_one() -> None:
    placeholder = render("icons", 1)
    copies = [EDITS["jpeg90"][0](placeholder), EDITS["jpeg60"][0](placeholder)]
    looks, thumbnails = (
        hash_picture([placeholder, *copies]),
        make_thumbnails([placeholder, *copies]),
    )
    which = np.random.default_rng(0).integers(0, 3, 3000)
    which[0] = 0
    found = find_duplicates(
        np.arange(3000, dtype=np.uint64)[:, None],
        looks.phash_N[which][:, None],
        looks.colour_N[which][:, None],
        np.zeros(3000, bool),
        LIMITS,
        lambda samples: ThumbnailTable.of(thumbnails[which[samples]]),
    )
    assert (found.representative_N == 0).all()


@pytest.mark.parametrize("kind", ["text_pages", "radiographs", "icons", "faces", "line_art"])
def test_copies_are_found_where_all_hashes_are_the_same(kind: str) -> None:
    pictures = [render(kind, seed) for seed in range(60)]
    pictures += [EDITS["jpeg60"][0](picture) for picture in pictures]
    thumbnails = make_thumbnails(pictures)
    none = np.zeros((120, 1), np.uint64)
    found = find_duplicates(
        np.arange(120, dtype=np.uint64)[:, None],
        none,
        none,
        np.zeros(120, bool),
        LIMITS,
        lambda samples: ThumbnailTable.of(thumbnails[samples]),
    )
    assert found.representative_N.tolist() == [*range(60), *range(60)]


def test_a_difference_depends_on_the_pair_alone() -> None:
    pictures = [render(kind, seed) for kind in KINDS for seed in range(3)]
    edited = [EDITS["crop2"][0](picture) for picture in pictures]
    one, other = make_thumbnails(pictures), make_thumbnails(edited)
    together = differences(one, other)
    alone = [differences(one[k : k + 1], other[k : k + 1])[0] for k in range(len(pictures))]
    assert together.tolist() == alone


@given(
    st.integers(0, 2**64 - 1),
    st.lists(st.integers(0, 63), max_size=5, unique=True),
    st.sampled_from([10, 100_000, 10_000_000]),
)
def test_a_pair_is_tested_in_the_first_table_where_it_meets(
    value: int, changed: list[int], num_hashes: int
) -> None:
    other = value ^ sum(1 << bit for bit in changed)
    masks = block_masks(num_hashes, 5)
    meets = [number for number, mask in enumerate(masks) if (value ^ other) & int(mask) == 0]
    first_mask = first_masks(num_hashes, 5)
    assert first_mask(np.array([value ^ other], np.uint64)).tolist() == meets[:1]
