"""Labelled noise: every kind occurs, matches its label, and depends on the sample alone."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageStat

from consomme.base.errors import RecipeError
from consomme.base.sample import Sample
from consomme.datasets.scene_claims import check_caption
from consomme.datasets.scenes import make_scene
from consomme.datasets.sources import EmojiSource, SceneSource
from consomme.datasets.truth import SceneTruth
from consomme.datasets.web_noise import KINDS, NEAR_DUPLICATE, add_noise

CLEAN = list(SceneSource(num=400)())
NOISY = add_noise(CLEAN, fraction=0.5, seed=3)


def by_kind(samples: list[Sample]) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.meta["noise"], []).append(sample)
    return found


def test_every_kind_occurs_about_equally_often_and_every_sample_is_labelled() -> None:
    kinds = by_kind(NOISY)
    assert set(kinds) == {"clean", *KINDS}
    damaged = {kind: len(kinds[kind]) for kind in KINDS}
    assert 160 < sum(damaged.values()) < 240
    assert max(damaged.values()) < 3 * min(damaged.values())


def test_the_label_tells_the_truth() -> None:
    original = {sample.sample_id: sample for sample in CLEAN}
    for sample in NOISY:
        kind = sample.meta["noise"]
        if kind == "clean":
            assert sample.caption == original[sample.sample_id].caption
            assert "clean_caption" not in sample.meta
            continue
        before = original[sample.sample_id.removesuffix("-copy")]
        assert sample.meta["clean_caption"] == before.caption != sample.caption
        if kind != NEAR_DUPLICATE:
            assert sample.images[0].data == before.images[0].data
    kinds = by_kind(NOISY)
    captions = {sample.caption for sample in CLEAN}
    assert all(sample.caption in captions for sample in kinds["mismatched"])
    assert all(s.caption.endswith("...") for s in kinds["truncated"])
    assert all(s.caption[:3] == s.meta["clean_caption"][:3] for s in kinds["truncated"])
    assert all(", " in sample.caption for sample in kinds["keyword_list"])
    assert all("ein " in sample.caption for sample in kinds["other_language"])


def test_what_noise_takes_from_a_caption_the_judge_sees() -> None:
    kinds = by_kind(NOISY)
    for kind in ("file_name", "boilerplate", "other_language"):
        for sample in kinds[kind]:
            true, false, missing = SceneTruth()(sample, sample.caption) or (0, 0, 0)
            assert (true, false) == (0, 0), (kind, sample.caption)
            assert missing > 0
    wrong = [SceneTruth()(sample, sample.caption) for sample in kinds["mismatched"]]
    assert all(claims and claims[1] > 0 for claims in wrong)
    for sample in kinds["clean"]:
        scene = make_scene(sample.meta["scene_seed"])
        assert not check_caption(scene, sample.caption).missing


def test_near_duplicates_are_additional_and_look_the_same() -> None:
    copies = by_kind(NOISY)[NEAR_DUPLICATE]
    ids = [sample.sample_id for sample in NOISY]
    assert len(NOISY) == len(CLEAN) + len(copies)
    assert len(set(ids)) == len(ids)
    for copy in copies:
        place = ids.index(copy.sample_id)
        original = NOISY[place - 1]
        assert copy.meta["duplicate_of"] == original.sample_id
        assert original.meta["noise"] == "clean"
        assert copy.images[0].data != original.images[0].data
        with (
            Image.open(io.BytesIO(copy.images[0].data)) as a,
            Image.open(io.BytesIO(original.images[0].data)) as b,
        ):
            assert a.format == "JPEG"
            assert a.size != b.size
            difference = ImageChops.difference(
                a.resize((16, 16)), b.convert("RGB").resize((16, 16))
            )
            assert max(ImageStat.Stat(difference).mean) < 20


@given(st.permutations(range(60)))
def test_order_does_not_matter(order: list[int]) -> None:
    plain = {s.sample_id: s for s in add_noise(CLEAN[:60], fraction=0.9, seed=1)}
    shuffled = add_noise([CLEAN[index] for index in order], fraction=0.9, seed=1)
    assert {s.sample_id: s for s in shuffled} == plain


def test_only_mismatched_depends_on_the_other_samples() -> None:
    few = {s.sample_id: s for s in add_noise(CLEAN[:50], fraction=0.9, seed=1)}
    many = {s.sample_id: s for s in add_noise(CLEAN, fraction=0.9, seed=1)}
    for sample_id, sample in few.items():
        assert many[sample_id].meta["noise"] == sample.meta["noise"]
        if sample.meta["noise"] != "mismatched":
            assert many[sample_id] == sample


def test_another_seed_damages_other_samples() -> None:
    def damaged(seed: int) -> set[str]:
        noisy = add_noise(CLEAN, fraction=0.5, seed=seed, kinds=["spam"])
        return {s.sample_id for s in noisy if s.meta["noise"] == "spam"}

    assert damaged(1) == damaged(1) != damaged(2)


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, {"clean"}), (1.0, {"spam"})])
def test_the_extremes(fraction: float, expected: set[str]) -> None:
    noisy = add_noise(CLEAN[:50], fraction=fraction, seed=0, kinds=["spam"])
    assert {sample.meta["noise"] for sample in noisy} == expected


def test_names_that_are_the_same_in_all_languages_are_not_called_damaged() -> None:
    emoji = list(EmojiSource()())
    for seed in range(3):
        noisy = add_noise(emoji, fraction=1.0, seed=seed, kinds=["other_language"])
        for before, after in zip(emoji, noisy, strict=True):
            changed = after.caption != before.caption
            assert after.meta["noise"] == ("other_language" if changed else "clean")


def test_an_unknown_kind_is_named_with_a_suggestion() -> None:
    with pytest.raises(RecipeError, match="'mismatch'; did you mean 'mismatched'"):
        add_noise(CLEAN[:1], fraction=0.5, seed=0, kinds=["spam", "mismatch"])
