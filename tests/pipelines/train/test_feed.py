"""The batch server gives the same steps to any number of ranks, and from any checkpoint on."""

import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.samples import with_image

from consomme.base.errors import DataError, RecipeError
from consomme.base.sample import Sample, Turn
from consomme.datasets.sources import SceneSource
from consomme.models.chat import ChatEncoder
from consomme.models.weights import open_vlm
from consomme.pipelines.train.context import TrainContext
from consomme.pipelines.train.feed import BatchServer, ReadUnits
from consomme.pipelines.train.recipe import TrainRecipe, TrainSource
from consomme.pipelines.train.samples import (
    PreparedSample,
    UnitContents,
    encode,
    plan_source,
    shuffled,
)
from consomme.storage.stores.open import open_store
from consomme.storage.writers import WebDatasetWriter
from consomme.train.packing import RowLayout
from consomme.vision.decode import decode

SCENES = list(SceneSource(num=40)())


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four shards of ten samples; the third image of each is truncated."""
    folder = tmp_path_factory.mktemp("shards")
    writer = WebDatasetWriter(open_store(str(folder)), "s", max_rows=10)
    for number, sample in enumerate(SCENES):
        image = sample.images[0].data[:90] if number % 10 == 2 else sample.images[0].data
        writer.write(with_image(sample, image))
    writer.close()
    return str(folder)


class LocalReader:
    """Reads units in this process, and counts them."""

    def __init__(self) -> None:
        self.units: list[tuple[int, str]] = []

    def __call__(
        self, reads: Sequence[ReadUnits], num_readers: int | None
    ) -> Iterator[UnitContents]:
        for read in reads:
            for contents in read():
                self.units.append((read.epoch, contents.unit_id))
                yield contents


@pytest.fixture
def recipe(shards: str, debug_vlm: Path) -> TrainRecipe:
    return TrainRecipe(
        name="t",
        model=str(debug_vlm),
        data=(
            TrainSource(inputs=(f"{shards}/s-00000[01].tar",)),
            TrainSource(inputs=(f"{shards}/s-00000[23].tar",), weight=60.0),
        ),
        global_batch=8,
        micro_batch=3,
        shuffle_units=1,
        max_reject_fraction=0.2,
    )


def feed(
    recipe: TrainRecipe, folder: Path, state: dict[str, Any] | None = None, read: Any = None
) -> BatchServer:
    context = TrainContext(
        recipe=recipe, start=recipe.model, folder_url=str(folder), is_private=True
    )
    return BatchServer(context, state, read or LocalReader())


def layout_of(recipe: TrainRecipe) -> RowLayout:
    return RowLayout(micro_batch=recipe.micro_batch, pack_tokens=recipe.pack_tokens)


def step_of(feed: BatchServer, batch: int, world: int) -> tuple[list[str], dict[str, Any]]:
    layout = layout_of(feed.recipe)
    shares = [feed.take(batch, rank, world, layout) for rank in range(world)]
    ids = [
        one.sample.sample_id
        for share in shares
        for rows in share.passes
        for row in rows
        for one in row
    ]
    return sorted(ids), json.loads(json.dumps(shares[0].state))


@pytest.mark.parametrize("pack_tokens", [None, 100])
def test_any_number_of_ranks_gets_the_same_steps(
    recipe: TrainRecipe, tmp_path: Path, pack_tokens: int | None
) -> None:
    recipe = replace(recipe, pack_tokens=pack_tokens)
    feeds = {world: feed(recipe, tmp_path / str(world)) for world in (1, 2, 3)}
    for batch in range(12):
        found = {world: step_of(one, batch, world) for world, one in feeds.items()}
        assert found[1] == found[2] == found[3]
        assert len(found[1][0]) == 8


def test_it_resumes_from_a_checkpoint_with_other_ranks(recipe: TrainRecipe, tmp_path: Path) -> None:
    whole = feed(recipe, tmp_path / "whole")
    steps = [step_of(whole, batch, 2) for batch in range(14)]
    for stop in (1, 5, 11):
        read = LocalReader()
        resumed = feed(recipe, tmp_path / "resumed", steps[stop - 1][1], read)
        assert step_of(resumed, stop, 3) == steps[stop]
        # At most one unit of each source, and the next one.
        assert len(read.units) <= 4
        assert [step_of(resumed, batch, 3) for batch in range(stop + 1, 14)] == steps[stop + 1 :]


def test_weights_and_epochs(recipe: TrainRecipe, tmp_path: Path) -> None:
    ids = (
        Counter(one for batch in range(18) for one in step_of(fed, batch, 1)[0])
        if (fed := feed(recipe, tmp_path))
        else Counter()
    )
    # 144 samples, a quarter of them from the first source: twice its 18, and six times the other's.
    assert set(ids.values()) == {2, 6}
    assert len(ids) == 36


def test_rejects_are_written_once_and_counted_once(recipe: TrainRecipe, tmp_path: Path) -> None:
    fed = feed(recipe, tmp_path)
    for batch in range(18):
        step_of(fed, batch, 1)
    assert fed.check() == {"samples": 36, "rejected": 4, "rejected/image_truncated": 4}
    lines = [
        json.loads(line)
        for path in sorted((tmp_path / "rejects").iterdir())
        for line in path.read_text().splitlines()
    ]
    assert {line["sample_id"] for line in lines} == {SCENES[k].sample_id for k in (2, 12, 22, 32)}
    assert len(lines) == 4


def test_too_many_rejects_stop_the_run_as_soon_as_that_is_certain(
    recipe: TrainRecipe, tmp_path: Path
) -> None:
    fed = feed(replace(recipe, max_reject_fraction=0.03), tmp_path)
    with pytest.raises(DataError, match=r"2 of 40 .* \(image_truncated 2\), more than .*=0\.03"):
        [step_of(fed, batch, 1) for batch in range(18)]


def test_small_sources_are_read_once_unless_they_vary(recipe: TrainRecipe, tmp_path: Path) -> None:
    for changes, epochs in (({}, {0}), ({"max_upscale": 1.5}, {0, 1, 2, 3, 4, 5})):
        read = LocalReader()
        fed = feed(replace(recipe, **changes), tmp_path / str(len(changes)), None, read)  # type: ignore[arg-type]
        for batch in range(18):
            step_of(fed, batch, 1)
        assert {epoch for epoch, _ in read.units} == epochs
        assert max(Counter(read.units).values()) == 1


def test_first_samples_are_not_consumed(recipe: TrainRecipe, tmp_path: Path) -> None:
    fed, other = feed(recipe, tmp_path / "a"), feed(recipe, tmp_path / "b")
    first = [one.sample.sample_id for one in fed.first_samples(20)]
    assert [one.sample.sample_id for one in fed.first_samples(3)] == first[:3]
    found = [step_of(fed, batch, 2) for batch in range(5)]
    assert found == [step_of(other, batch, 2) for batch in range(5)]
    assert sorted(first[:8]) == found[0][0]


@pytest.fixture(scope="module")
def chat(debug_vlm: Path) -> ChatEncoder:
    model, processor = open_vlm(debug_vlm)
    return ChatEncoder(model.config, processor)


def test_images_are_enlarged_by_another_factor_in_every_epoch(
    recipe: TrainRecipe, tmp_path: Path, chat: ChatEncoder
) -> None:
    scales: dict[str, set[float]] = {}
    fed = feed(replace(recipe, max_upscale=2.0), tmp_path)
    for batch in range(18):
        for rows in fed.take(batch, 0, 1, layout_of(fed.recipe)).passes:
            for row in rows:
                for one in row:
                    scales.setdefault(one.sample.sample_id, set()).add(one.scale)
    assert {len(some) for some in scales.values()} == {2, 6}
    assert all(1 <= scale <= 2 for some in scales.values() for scale in some)

    class ImageSizes:
        has_vision = True

        def encode(self, turns: Any, images: Any, *, skip_rewritten: bool) -> tuple[int, int]:
            (image,) = images
            size: tuple[int, int] = image.size
            return size

    sample = SCENES[0]
    width, height = decode(sample.images[0].data).size  # type: ignore[union-attr]
    made = PreparedSample(sample=sample, num_tokens=0, scale=1.5)
    assert encode(ImageSizes(), made) == (round(1.5 * width), round(1.5 * height))
    assert encode(ImageSizes(), replace(made, scale=1.0)) == (width, height)


def test_questions_are_shuffled_with_their_answers() -> None:
    def turn(role: str, content: str) -> Turn:
        return Turn(role=role, content=content)

    pairs = [(turn("user", f"q{k}"), turn("assistant", f"a{k}")) for k in range(5)]
    talk = (turn("system", "s"), *(one for pair in pairs for one in pair))
    orders = set()
    for seed in range(9):
        made = shuffled(talk, random.Random(seed))
        assert made[0] == talk[0]
        assert sorted(zip(made[1::2], made[2::2], strict=True), key=lambda p: p[0].content) == pairs
        orders.add(made)
    assert len(orders) > 5
    odd = (*talk, turn("user", "q"))
    assert shuffled(odd, random.Random(0)) == odd


def test_a_source_may_shuffle_its_questions(
    recipe: TrainRecipe, tmp_path: Path, debug_vlm: Path
) -> None:
    turns = tuple(
        Turn(role=role, content=f"{role} {k}") for k in range(4) for role in ("user", "assistant")
    )
    writer = WebDatasetWriter(open_store(str(tmp_path / "talks")), "s", max_rows=10)
    for sample in SCENES[:4]:
        writer.write(Sample(**{**vars(sample), "turns": turns}))
    writer.close()
    source = TrainSource(inputs=(str(tmp_path / "talks"),), shuffle_turns=True)
    fed = feed(replace(recipe, data=(source,), global_batch=4), tmp_path / "run")
    seen = set()
    for batch in range(5):
        for rows in fed.take(batch, 0, 1, layout_of(fed.recipe)).passes:
            seen |= {one.sample.turns for row in rows for one in row}
    assert len(seen) > 4
    assert all(sorted(t.text for t in one) == sorted(t.text for t in turns) for one in seen)
    # The image is what all questions are about, so it stays before the first of them.
    assert all([bool(t.image_indices) for t in one] == [True, *[False] * 7] for one in seen)


def test_a_source_without_samples_is_named(shards: str) -> None:
    Path(f"{shards}/none.jsonl").write_text("")
    with pytest.raises(DataError, match=r"data\[3\]: .*holds no samples"):
        plan_source(TrainSource(inputs=(f"{shards}/none.jsonl",)), "data[3]")


def test_a_share_of_the_data_lies_inside_a_larger_one(recipe: TrainRecipe, tmp_path: Path) -> None:
    ids: dict[float, set[str]] = {}
    weights: dict[float, float] = {}
    for fraction in (0.25, 0.5, 1.0):
        source = TrainSource(inputs=recipe.data[0].inputs, fraction=fraction)
        plan = plan_source(source, "data[0]")
        weights[fraction] = plan.weight
        some = replace(recipe, data=(source,), max_reject_fraction=0.5)
        one = feed(some, tmp_path / str(fraction))
        ids[fraction] = {name for batch in range(12) for name in step_of(one, batch, 1)[0]}
        # Samples outside the share are not rejects either.
        assert one.check()["samples"] == len(ids[fraction])
    assert ids[0.25] < ids[0.5] < ids[1.0]
    assert len(ids[1.0]) == 18
    # The number is approximate; the choice is fixed.
    assert 5 <= len(ids[0.5]) <= 13
    assert weights == {0.25: 5.0, 0.5: 10.0, 1.0: 20.0}


@pytest.mark.parametrize("fraction", [0.0, 1.5, -0.1])
def test_a_share_that_is_none_is_refused(fraction: float) -> None:
    with pytest.raises(RecipeError, match=r"fraction: found .*more than 0 and at most 1"):
        TrainSource(inputs=("a",), fraction=fraction)
