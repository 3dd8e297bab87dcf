"""What consomme writes opens in Hugging Face `datasets`, and is read back by consomme itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.hub_datasets import opened, pictures_of
from tests.support.zoo_images import encoded, noise

from consomme.base.sample import ImageFile, ImageRef, Sample, Turn, caption_turns
from consomme.storage.stores.local import LocalStore
from consomme.storage.units import plan_units, read_unit
from consomme.storage.writers import ParquetWriter, ShardWriter, WebDatasetWriter

WRITERS: Sequence[type[ShardWriter]] = (WebDatasetWriter, ParquetWriter)
PIXELS = {kind: encoded(noise(12, 9, 1), kind) for kind in ("PNG", "JPEG", "WEBP")}
"""Encoded pictures."""

words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
texts = words.map(lambda text: f"x{text}")
hostile_keys = st.sampled_from(
    "turns messages conversations caption text txt image images jpg json system tools functions"
    " key __key__ __url__ id sample_id source meta consomme image_name query response url status"
    " answer question video is_labelled".split()
)
keys = hostile_keys | words.filter(bool)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | words
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(keys, inside, max_size=3),
    max_leaves=6,
)  # fmt: skip
names = st.one_of(
    words.filter(bool),
    st.sampled_from(
        "a.b.c ../a /etc/passwd x/y.tar __a ._a .a %2E 🙂 . folder/__a.png a.seg.png CON".split()
    ),
    st.sampled_from(["a " + "b" * 300, "a\nb"]),
)
images = st.builds(
    ImageFile,
    data=st.sampled_from(sorted(PIXELS.values())),
    name=names | names.map(lambda name: f"{name}.jpg") | names.map(lambda name: f"{name}.PNG"),
)


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    pictures = tuple(draw(st.lists(images, max_size=3)))
    kind = draw(st.sampled_from(["caption", "talk", "parts"]))
    turns: tuple[Turn, ...]
    # Marks of images in texts stand for images; those are tested elsewhere.
    said = texts.filter(lambda text: "<" not in text)
    if kind == "caption" and pictures:
        turns = caption_turns(draw(said))
    elif kind == "parts" and pictures:
        parts: list[Any] = [draw(said)]
        for index in range(len(pictures)):
            parts += [ImageRef(index), draw(said)]
        turns = (
            Turn(role="user", content=tuple(parts)),
            Turn(role="assistant", content=draw(said), is_labelled=draw(st.booleans())),
            Turn(role="user", content=draw(said)),
            Turn(role="assistant", content=draw(said)),
        )
    else:
        turns = (
            Turn(role="user", content=draw(said)),
            Turn(role="assistant", content=draw(said)),
        )
    if len(turns) > 1 and draw(st.booleans()):
        turns = (Turn(role="system", content=draw(said)), *turns)
    meta = draw(st.dictionaries(keys, values, max_size=4))
    return Sample(sample_id=draw(names), images=pictures, turns=turns, source="web", meta=meta)


sample_lists = st.lists(samples(), min_size=1, max_size=6, unique_by=lambda one: one.sample_id)


def write(writer: type[ShardWriter], folder: Path, rows: Sequence[Sample], **limits: int) -> None:
    shards = writer(LocalStore(str(folder)), "shards/part", **limits)
    for sample in rows:
        shards.write(sample)
    shards.close()
    shards.write_card("what was written")


def read(folder: Path, max_rows: int) -> list[Sample]:
    found = []
    for unit in plan_units([str(folder / "shards")], "web", max_rows=max_rows):
        good, bad = read_unit(unit)
        assert not bad
        found += [sample for _, sample in good]
    return found


@pytest.mark.parametrize("writer", WRITERS)
@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(rows=sample_lists, max_rows=st.integers(1, 4))
def test_what_a_writer_writes_a_reader_takes_back(
    tmp_path_factory: pytest.TempPathFactory,
    writer: type[ShardWriter],
    rows: list[Sample],
    max_rows: int,
) -> None:
    folder = tmp_path_factory.mktemp("written")
    write(writer, folder, rows, max_rows=max_rows)
    assert read(folder, max_rows + 1) == rows


def mixed(num: int = 12) -> list[Sample]:
    """Samples of all shapes, whose first ones do not look like the last."""
    kinds = sorted(PIXELS)
    rows = []
    for number in range(num):
        how_many = (1, 1, 1, 1, 1, 1, 3, 0, 2)[number % 9]
        pictures = tuple(
            ImageFile(data=PIXELS[kinds[(number + k) % 3]], name=f"{number}-{k}.{suffix}")
            for k, suffix in zip(range(how_many), ("jpg", "png", "webp"), strict=False)
        )
        turns = caption_turns(f"caption {number}")
        if number % 4 == 3 or not pictures:
            turns = (Turn(role="user", content="what?"), *turns)
        meta = {"noise": None, "w": number} if number % 2 else {"w": str(number), "system": [{}]}
        rows.append(
            Sample(sample_id=f"{number}", images=pictures, turns=turns, source="web", meta=meta)
        )
    return rows


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("max_rows", [100, 3])
def test_datasets_opens_a_folder_of_mixed_samples(
    tmp_path: Path, writer: type[ShardWriter], max_rows: int
) -> None:
    rows = mixed()
    write(writer, tmp_path, rows, max_rows=max_rows)
    data = opened(tmp_path / "shards", tmp_path / "cache")
    assert len(data) == len(rows)
    for row, sample in zip(data, rows, strict=True):
        assert row.get("sample_id", row.get("__key__")) == sample.sample_id
        found = pictures_of(row)
        assert len(found) == len(sample.images)
        for picture in found:
            picture.load()


@pytest.mark.parametrize("num_images", [1, 2])
def test_parquet_says_itself_what_is_an_image(tmp_path: Path, num_images: int) -> None:
    """Without the card: one shard by its path."""
    import datasets

    pictures = tuple(ImageFile(data=PIXELS["PNG"], name=f"{k}.png") for k in range(num_images))
    sample = Sample(sample_id="a", images=pictures, turns=caption_turns("a"), source="web")
    write(ParquetWriter, tmp_path, [sample])
    path = str(tmp_path / "shards/part-000000.parquet")
    data = datasets.load_dataset(
        "parquet", data_files=path, split="train", cache_dir=str(tmp_path / "cache")
    )
    wanted = datasets.Image() if num_images == 1 else datasets.List(datasets.Image())
    assert data.features["image" if num_images == 1 else "images"] == wanted
    assert len(pictures_of(data[0])) == num_images


@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@pytest.mark.parametrize("writer", WRITERS)
@given(rows=sample_lists)
def test_datasets_opens_hostile_samples(
    tmp_path_factory: pytest.TempPathFactory, writer: type[ShardWriter], rows: list[Sample]
) -> None:
    folder = tmp_path_factory.mktemp("hostile")
    write(writer, folder, rows)
    data = opened(folder / "shards", folder / "cache")
    assert [len(pictures_of(row)) for row in data] == [len(sample.images) for sample in rows]
