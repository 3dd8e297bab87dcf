"""Dedup of samples with no, one and several pictures: every picture counts, a rule decides."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.dedup_runs import deduped, groups, hashed, kept, scored, written
from tests.support.many_pictures import caption, dialogue, document, mixed, text, three

from consomme.base.sample import Sample
from consomme.execution.stage import DecodedSample, Outcome, merge
from consomme.ops.verify import verify
from consomme.pipelines.dedup import report as report_dedup
from consomme.pipelines.dedup import run as dedup
from consomme.pipelines.dedup.preview import preview
from consomme.pipelines.dedup.recipe import DedupRecipe
from consomme.pipelines.dedup.stage import HashStage
from consomme.report import model as page
from consomme.storage.ledger.run_folder import RunFolder
from consomme.vision.decode import decode


def planted() -> list[Sample]:
    """Samples of every kind, and copies of their pictures in others."""
    return [
        *mixed(),
        # All three pictures of three-0, in another order.
        three("again", 12, 10, 11),
        # One picture of three-1 beside one that is new.
        dialogue("part", 13, 200),
        # The second picture of dialogue-0, alone.
        caption("alone", 31),
        # The same picture twice, and no other sample has it.
        three("inside", 210, 210, 211),
    ]


DROPPED = {
    "all_copies": {"again", "alone"},
    "any_copy": {"again", "alone", "part"},
    "first_copy": {"again", "alone", "part"},
}


@pytest.fixture(scope="module")
def hashes(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("many")
    return hashed(folder, written(folder / "data", planted()), 6)


@pytest.mark.parametrize("rule", DROPPED)
def test_a_sample_goes_with_its_pictures_by_the_rule(hashes: str, tmp_path: Path, rule) -> None:
    done = deduped(tmp_path, hashes, drop_sample_if=rule)
    names = {sample.sample_id for sample in planted()}
    assert names - kept(done.url) == DROPPED[rule]
    assert done.counts["samples"] == len(names)
    assert done.counts["kept"] == len(names) - len(DROPPED[rule])
    assert (done.counts["exact"], done.counts["near"]) == (len(DROPPED[rule]), 0)
    assert done.decisions["pictures"] == sum(len(sample.images) for sample in planted())
    assert done.decisions["without_pictures"] == 4
    assert done.decisions["copies_inside"] == 1
    assert verify(done.url).problems == ()


def test_groups_name_the_pictures(hashes: str, tmp_path: Path) -> None:
    rows = groups(deduped(tmp_path, hashes).url)
    found = {}
    for row in rows:
        name = (row["sample_id"], row["image_index"], row["kept"], row["reason"])
        found.setdefault(row["group"], []).append(name)
    pairs = {frozenset(group) for group in found.values()}
    expected = [
        {("three-0", 0, True, None), ("again", 1, False, "exact")},
        {("three-0", 1, True, None), ("again", 2, False, "exact")},
        {("three-0", 2, True, None), ("again", 0, False, "exact")},
        {("dialogue-0", 1, True, None), ("alone", 0, False, "exact")},
        {("inside", 0, True, None), ("inside", 1, True, "exact")},
    ]
    # Which of two samples is better depends on their bytes and ids; these have more pictures.
    settled = {pair for pair in pairs if not any("three-1" in name for name in pair)}
    by_name = [{(name, image, is_kept) for name, image, is_kept, _ in pair} for pair in settled]
    assert len(pairs) == 6
    for group in expected:
        names = {(name, image) for name, image, _, _ in group}
        assert any({(name, image) for name, image, _ in pair} == names for pair in by_name)
    (both,) = (pair for pair in pairs if any("three-1" in name for name in pair))
    assert {(name, is_kept) for name, _, is_kept, _ in both} == {("three-1", True), ("part", True)}


def test_how_units_are_cut_makes_no_difference(tmp_path: Path) -> None:
    samples = planted()
    data = written(tmp_path / "a", samples)
    urls = [hashed(tmp_path, data, rows) for rows in (1, 5, 1024)]
    urls.append(hashed(tmp_path, written(tmp_path / "b", samples[::-1], 4), 3))
    for rule in DROPPED:
        done = [
            deduped(tmp_path / f"{rule}{k}", url, drop_sample_if=rule) for k, url in enumerate(urls)
        ]
        assert [kept(one.url) for one in done] == [kept(done[0].url)] * 4
        assert [one.counts for one in done] == [done[0].counts] * 4


def test_the_better_sample_is_the_scored_one_then_that_with_more_pictures(tmp_path: Path) -> None:
    samples = [caption("one", 1), dialogue("two", 1, 2), document("three", 1, 2, 3), text("none")]
    data = written(tmp_path / "data", samples)
    hashes = hashed(tmp_path, data, 2)
    assert kept(deduped(tmp_path / "size", hashes).url) == {"three", "none"}
    scores = scored(tmp_path, data, 3, {"one": 3.0, "two": 2.0, "none": 1.0})
    best = deduped(
        tmp_path / "best", hashes, scores=scores, best_by="perplexity", drop_sample_if="any_copy"
    )
    assert kept(best.url) == {"one", "none"}
    assert best.decisions["num_unscored"] == 1
    every = deduped(tmp_path / "all", hashes, scores=scores, best_by="perplexity")
    assert kept(every.url) == {"one", "two", "three", "none"}


def test_texts_alone_all_stay(tmp_path: Path) -> None:
    data = written(tmp_path / "data", [text("a"), text("b")])
    done = deduped(tmp_path, hashed(tmp_path, data, 8))
    assert kept(done.url) == {"a", "b"}
    assert done.counts == {"samples": 2, "kept": 2, "exact": 0, "near": 0}
    assert groups(done.url) == []
    (section,) = report_dedup.sections([done], {})
    assert "2 of 2 samples stay" in section.lead_text


def test_one_picture_each_has_the_columns_that_it_always_had() -> None:
    one = [DecodedSample(row=0, sample=caption("a", 1), images=(image(1),))]
    two = [
        DecodedSample(row=1, sample=text("b"), images=()),
        DecodedSample(row=2, sample=dialogue("c", 1, 2), images=(image(1), image(2))),
    ]
    plain, many = HashStage().work(one).table, HashStage().work([*one, *two]).table
    assert plain.column_names == [
        *("row", "sample_id", "content_hash", "phash", "phash_flipped", "colour", "is_flat"),
        *("num_pixels", "num_bytes", "thumbnail"),
    ]
    assert many.column_names == [*plain.column_names, "further_hashes", "further_thumbnails"]
    assert many.num_rows == 3, "one row per sample"
    first = many.slice(0, 1).select(plain.column_names)
    assert first.to_pylist() == plain.to_pylist()
    assert many["content_hash"].to_pylist()[1] is None
    assert [len(more or []) for more in many["further_hashes"].to_pylist()] == [0, 0, 1]


def test_pieces_of_a_unit_with_and_without_more_pictures_are_joined() -> None:
    pieces = [
        HashStage().work([DecodedSample(row=0, sample=caption("a", 1), images=(image(1),))]),
        HashStage().work(
            [DecodedSample(row=1, sample=dialogue("c", 1, 2), images=(image(1), image(2)))]
        ),
    ]
    joined: Outcome = merge(pieces)
    assert joined.table.num_rows == 2
    assert joined.table["further_hashes"].to_pylist()[0] is None
    assert len(joined.table["further_hashes"].to_pylist()[1]) == 1


def image(seed: int):
    return decode(caption("x", seed).images[0].data)


def test_the_report_marks_the_picture_in_its_sample(hashes: str, tmp_path: Path) -> None:
    done = deduped(tmp_path, hashes)
    (section,) = report_dedup.sections([done], {})
    assert "24 of 26 samples stay" in section.lead_text
    assert "4 samples have none and stay" in section.lead_text
    assert "of the same sample, for which no sample goes: 1." in section.lead_text
    (gallery,) = (block for block in section.blocks if isinstance(block, page.Gallery))
    again = [item for item in gallery.items if "picture 1 of 3" in item.lines]
    assert again
    for item in gallery.items:
        if item.turns:
            marked = [
                part.label
                for turn in item.turns
                for part in turn.parts
                if isinstance(part, page.ShownPicture) and part.is_marked
            ]
            place = [line for line in item.lines if line.startswith("picture ")]
            assert [f"picture {label} of" in place[0] for label in marked if label] == [True] * len(
                [label for label in marked if label]
            )


def test_a_preview_decides_as_the_run_and_shows_whole_samples(hashes: str, tmp_path: Path) -> None:
    data = str(Path(hashes).parents[1] / "data")
    done = deduped(tmp_path, hashes)
    for given in ({"hashes": hashes}, {"inputs": (data,)}):
        shown = preview(DedupRecipe(name="look", root=str(tmp_path / "p"), **given))
        counts = {name: int(number) for name, number in shown.table["rows"]}
        assert counts == {k: done.counts[k] for k in ("samples", "kept", "exact", "near")}
        assert shown.what == "all 26 samples"
        assert "drop_sample_if: all_copies" in Path(shown.page).read_text()


@pytest.mark.ray
def test_a_run_on_ray(hashes: str, tmp_path: Path, lent_ray: None) -> None:
    samples = planted()
    broken = three("broken", 220, 221, 222)
    bad = replace(broken.images[2], data=broken.images[2].data[:60])
    broken = replace(broken, images=(*broken.images[:2], bad))
    data = written(tmp_path / "data", [*samples, broken])
    done = dedup.run(
        DedupRecipe(
            name="ray", root=str(tmp_path), inputs=(data,), unit_rows=5, max_reject_fraction=0.1
        )
    )
    assert kept(done.url) == kept(deduped(tmp_path, hashes).url)
    assert done.counts["rejected/image_truncated"] == 1
    (reject,) = RunFolder.at(done.url).rejects()
    assert "image 3 of 3" in reject.detail
    again = dedup.run(DedupRecipe(name="twice", root=str(tmp_path), view=done.url))
    assert again.counts["kept"] == again.counts["samples"] == done.counts["kept"]
    for url in (done.url, again.url):
        assert verify(url).problems == ()
