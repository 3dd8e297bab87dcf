"""Samples of any number of images in training: long ones, shares, sizes of images, rejects."""

import dataclasses
import io
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.pipelines.train.test_feed import feed, layout_of, step_of
from tests.support.families import make, noise
from tests.support.image_conversations import SIZES, says, user

from consomme.base.errors import RecipeError
from consomme.base.sample import ImageFile, ImageRef, Reject, Sample, Turn
from consomme.models.chat_prefix import chat_encoder_for
from consomme.models.weights import open_processor
from consomme.pipelines.train.images import resized_size
from consomme.pipelines.train.lengths import lengths_of
from consomme.pipelines.train.recipe import TrainRecipe, TrainSource
from consomme.pipelines.train.samples import (
    PreparedSample,
    Preparer,
    encode,
    shuffled,
)
from consomme.pipelines.train.shorten import shorter_documents, shorter_turns, with_turns
from consomme.storage.stores.open import open_store
from consomme.storage.writers import ParquetWriter

Q = tuple(f"question {number}?" for number in range(4))
A = tuple(f"the answer is {number}" for number in range(4))


def sample_of(turns: Sequence[Turn], num_images: int, sample_id: str = "s") -> Sample:
    images = []
    for index in range(num_images):
        stream = io.BytesIO()
        noise(index, *SIZES[index]).save(stream, "PNG")
        images.append(ImageFile(data=stream.getvalue(), name=f"{sample_id}-{index}.png"))
    return Sample(sample_id=sample_id, images=tuple(images), turns=tuple(turns), source="t")


TALK = sample_of(
    [user(0, Q[0]), says(A[0]), user(1, Q[1]), says(A[1]), user("and ", 2, "?"), says(A[2])], 3
)
DOCUMENT = sample_of(
    [
        Turn(
            role="assistant",
            content=(
                "first ",
                ImageRef(0),
                " a star ",
                ImageRef(1),
                ImageRef(2),
                " two squares" * 20,
            ),
        )
    ],
    3,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("qwen2_vl", tmp_path_factory.mktemp("many") / "qwen2_vl")


@pytest.fixture(scope="module")
def chat(model: Path) -> Any:
    return chat_encoder_for(*open_processor(model))


@pytest.fixture
def recipe(model: Path) -> TrainRecipe:
    return TrainRecipe(
        name="t",
        model=str(model),
        data=(TrainSource(inputs=("a",)),),
        global_batch=4,
        micro_batch=2,
        max_reject_fraction=0.9,
    )


def prepare(
    recipe: TrainRecipe, chat: Any, sample: Sample, **source: Any
) -> PreparedSample | Reject:
    source = {"inputs": ("a",), **source}
    return Preparer(recipe, chat, 4096).prepare(sample, TrainSource(**source), random.Random(0))


def num_tokens(recipe: TrainRecipe, chat: Any, sample: Sample) -> int:
    made = prepare(recipe, chat, sample)
    assert isinstance(made, PreparedSample), made
    return made.num_tokens


def test_a_conversation_loses_whole_turns_with_their_images(recipe: TrainRecipe, chat: Any) -> None:
    whole = num_tokens(recipe, chat, TALK)
    for kept in (2, 1):
        shorter, indices = with_turns(TALK, TALK.turns[: 2 * kept])
        assert indices == list(range(kept))
        limit = num_tokens(recipe, chat, shorter)
        for max_tokens in (limit, limit + 1):
            made = prepare(
                replace(recipe, max_tokens=max_tokens, too_long="drop_turns"), chat, TALK
            )
            assert isinstance(made, PreparedSample)
            assert made.is_shortened
            assert made.sample.turns == TALK.turns[: 2 * kept]
            assert made.sample.images == TALK.images[:kept]
            assert made.num_tokens == limit
            row = encode(chat, made)
            assert len(row.input_ids) == limit
            assert row.pixels is not None
            images = row.input_ids.count(chat.image_token_id)
            assert images == row.pixels.num_tokens
    one_turn = num_tokens(recipe, chat, with_turns(TALK, TALK.turns[:2])[0])
    for changes in (
        {"too_long": "reject", "max_tokens": whole - 1},
        {"too_long": "cut_document", "max_tokens": whole - 1},
        {"too_long": "drop_turns", "max_tokens": one_turn - 1},
    ):
        made = prepare(replace(recipe, **changes), chat, TALK)  # type: ignore[arg-type]
        assert isinstance(made, Reject)
        assert made.reason == "sequence_too_long"
        assert f"{whole} tokens, max_tokens is {changes['max_tokens']}" in made.detail
    made = prepare(replace(recipe, max_tokens=whole, too_long="drop_turns"), chat, TALK)
    assert isinstance(made, PreparedSample)
    assert (made.is_shortened, made.sample.turns) == (False, TALK.turns)


def test_a_document_loses_its_last_images_with_their_text(recipe: TrainRecipe, chat: Any) -> None:
    whole = num_tokens(recipe, chat, DOCUMENT)
    for too_long in ("cut_document", "shorten"):
        made = prepare(replace(recipe, max_tokens=whole - 1, too_long=too_long), chat, DOCUMENT)  # type: ignore[arg-type]
        assert isinstance(made, PreparedSample)
        # Two images without a text between them go together.
        assert made.sample.turns[0].content == ("first ", ImageRef(0), " a star")
        assert made.sample.images == DOCUMENT.images[:1]
        assert made.num_labelled > 0
    for changes in ({"too_long": "drop_turns"}, {"too_long": "shorten", "max_tokens": 10}):
        made = prepare(replace(recipe, **{"max_tokens": whole - 1, **changes}), chat, DOCUMENT)  # type: ignore[arg-type]
        assert isinstance(made, Reject)
        assert made.reason == "sequence_too_long"


def test_what_can_be_left_of_a_sample() -> None:
    system, tool = Turn(role="system", content="s"), Turn(role="tool", content="t")
    turns = (system, user(Q[0]), says("call"), tool, says(A[0]), user(Q[1]), says(A[1]), user(Q[2]))
    assert shorter_turns(turns) == [turns[:5], turns[:7]]
    assert shorter_turns(turns[:5]) == []
    assert shorter_turns((user("a"), user("b"), says("c"))) == []
    parts = ("a", ImageRef(0), "b", ImageRef(1), "c ", ImageRef(0))
    document = (Turn(role="assistant", content=parts),)
    found = [turns[0].content for turns in shorter_documents(document)]
    assert found == [("a", ImageRef(0), "b"), ("a", ImageRef(0), "b", ImageRef(1), "c")]
    # Images are numbered anew, and an image that is shown twice is still there.
    sample, kept = with_turns(TALK, (user(2, "x", 0, 2), says("y")))
    assert kept == [0, 2]
    assert sample.turns[0].content == (ImageRef(1), "x", ImageRef(0), ImageRef(1))
    assert sample.images == (TALK.images[0], TALK.images[2])


def test_unlabelled_turns_are_not_learned(recipe: TrainRecipe, chat: Any) -> None:
    turns = (user(0, Q[0]), says(A[0], is_labelled=False), user(1, Q[1]), says(A[1]))
    made = prepare(recipe, chat, sample_of(turns, 2))
    assert isinstance(made, PreparedSample)
    (span,) = encode(chat, made).spans
    assert made.num_labelled == span[1] - span[0]
    # What is left without the last turn has nothing to learn.
    short = replace(recipe, max_tokens=made.num_tokens - 1, too_long="drop_turns")
    rejected = prepare(short, chat, sample_of(turns, 2))
    assert isinstance(rejected, Reject)
    assert rejected.reason == "sequence_too_long"
    none = prepare(recipe, chat, sample_of(turns[:2], 1))
    assert isinstance(none, Reject)
    assert (none.reason, "labelled" in none.detail) == ("conversation_malformed", True)
    empty = (user(0, Q[0]), says("", is_labelled=False), user(Q[1]), says(A[1]))
    assert isinstance(prepare(recipe, chat, sample_of(empty, 1)), PreparedSample)


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((100, 50), (None, None), (100, 50)),
        ((100, 50), (None, 5000), (100, 50)),
        ((100, 50), (None, 1250), (50, 25)),
        ((1000, 1), (None, 100), (316, 1)),
        ((100, 50), (20000, None), (200, 100)),
        ((10, 10), (50, 60), (7, 7)),
    ],
)
def test_images_are_kept_within_pixels(
    size: tuple[int, int], limits: tuple[int | None, int | None], expected: tuple[int, int]
) -> None:
    low, high = limits
    assert resized_size(size, scale=1.0, min_pixels=low, max_pixels=high) == expected


def test_pixels_of_a_recipe_reach_the_model_and_the_plan(
    recipe: TrainRecipe, chat: Any, tmp_path: Path
) -> None:
    (one,) = shards(tmp_path / "shards", [[TALK]])
    tokens = {}
    for name, changes in (
        ("as they are", {}),
        ("few", {"max_pixels": 700}),
        ("many", {"min_pixels": 4000}),
    ):
        changed = replace(recipe, data=(one,), **changes)  # type: ignore[arg-type]
        fed = feed(changed, tmp_path / name)
        (passes,) = {fed.take(0, 0, 1, layout_of(changed)).passes[0][0][0].num_tokens}
        notes: list[str] = []
        planned = lengths_of(changed, recipe.model, notes, can_pack=True)
        assert planned.mean.num_tokens == passes
        tokens[name] = passes
    assert tokens["few"] < tokens["as they are"] < tokens["many"]
    with pytest.raises(RecipeError, match="min_pixels: found 9, expected at most max_pixels=4"):
        replace(recipe, min_pixels=9, max_pixels=4)


def shards(folder: Path, sources: Sequence[Sequence[Sample]]) -> list[TrainSource]:
    found = []
    for number, samples in enumerate(sources):
        writer = ParquetWriter(open_store(str(folder)), f"s{number}", max_rows=10)
        for sample in samples:
            writer.write(sample)
        writer.close()
        found.append(TrainSource(inputs=(f"{folder}/s{number}*",)))
    return found


def mixed(num: int) -> list[Sample]:
    """Texts, samples of one image, conversations of three, and documents."""
    shapes = [
        ((user(Q[0]), says(A[0])), 0),
        ((user(0, Q[1]), says(A[1])), 1),
        (TALK.turns, 3),
        (DOCUMENT.turns, 3),
    ]
    return [sample_of(*shapes[k % 4], sample_id=f"m{k}") for k in range(num)]


def test_shortened_samples_are_counted_once(recipe: TrainRecipe, chat: Any, tmp_path: Path) -> None:
    data = shards(tmp_path / "shards", [mixed(12)])
    long = min(num_tokens(recipe, chat, TALK), num_tokens(recipe, chat, DOCUMENT))
    changed = replace(recipe, data=tuple(data), max_tokens=long - 1, too_long="shorten")
    fed = feed(changed, tmp_path / "run")
    for batch in range(7):
        step_of(fed, batch, 1)
    assert fed.check() == {"samples": 12, "rejected": 0, "shortened": 6}
    cut = replace(changed, too_long="cut_document")
    fed = feed(cut, tmp_path / "cut")
    for batch in range(7):
        step_of(fed, batch, 1)
    assert fed.check() == {
        "samples": 9,
        "rejected": 3,
        "rejected/sequence_too_long": 3,
        "shortened": 3,
    }


def test_samples_of_several_images_may_be_refused(recipe: TrainRecipe, tmp_path: Path) -> None:
    data = tuple(shards(tmp_path / "shards", [mixed(8)]))
    fed = feed(replace(recipe, data=data), tmp_path / "run")
    fed.refuse_several_images("it cannot")
    steps = [step_of(fed, batch, 2) for batch in range(4)]
    assert fed.check() == {
        "samples": 4,
        "rejected": 4,
        "rejected/conversation_unsupported": 4,
    }
    lines = [
        json.loads(line)
        for path in (tmp_path / "run" / "rejects").iterdir()
        for line in path.read_text().splitlines()
    ]
    assert {line["detail"] for line in lines} == {"it cannot"}
    again = feed(replace(recipe, data=data), tmp_path / "again", steps[1][1])
    again.refuse_several_images("it cannot")
    assert [step_of(again, batch, 1) for batch in (2, 3)] == steps[2:]


def test_sources_share_out_answers(recipe: TrainRecipe, tmp_path: Path) -> None:
    """Answers of one source are about eight times as long; a third of the tokens are from it."""
    brief = [sample_of((user(Q[0]), says("a star")), 0, f"b{k}") for k in range(10)]
    wordy = [sample_of((user(0, Q[0]), says("a star and " * 8)), 1, f"w{k}") for k in range(10)]
    data = shards(tmp_path / "shards", [brief, wordy])
    weighted = (replace(data[0], weight=2.0), replace(data[1], weight=1.0))
    changed = replace(recipe, data=weighted, shares="answer_tokens")
    fed = feed(changed, tmp_path / "run")
    steps = [step_of(fed, batch, 2) for batch in range(20)]
    tokens = fed.check()
    first, second = (tokens[f"answer_tokens/data[{k}]"] for k in range(2))
    assert first / second == pytest.approx(2, rel=0.1)
    assert first + second == sum(fed.stream.drawn)
    counts = [sum(name[0] == kind for ids, _ in steps for name in ids) for kind in "bw"]
    assert counts[0] > 8 * counts[1]
    again = feed(changed, tmp_path / "again", steps[8][1])
    assert [step_of(again, batch, 3) for batch in range(9, 20)] == steps[9:]
    planned = lengths_of(changed, recipe.model, [], can_pack=False)
    by_samples = lengths_of(replace(changed, shares="samples"), recipe.model, [], can_pack=False)
    assert planned.mean.num_labelled < by_samples.mean.num_labelled
    with pytest.raises(RecipeError, match=r"shares: found answer_tokens, but data\[1\] has no"):
        replace(changed, data=(weighted[0], data[1]))


def test_questions_are_shuffled_with_their_images() -> None:
    pairs = [(user(k, Q[k]), says(A[k])) for k in range(3)]
    talk = tuple(turn for pair in pairs for turn in pair)
    orders = {shuffled(talk, random.Random(seed)) for seed in range(20)}
    assert len(orders) == 6
    for order in orders:
        assert sorted(zip(order[::2], order[1::2], strict=True), key=str) == sorted(pairs, key=str)
    # All questions are about images that only the first one begins with.
    shared = (user(0, 1, Q[0]), says(A[0]), user(Q[1]), says(A[1]), user(Q[2]), says(A[2]))
    for order in {shuffled(shared, random.Random(seed)) for seed in range(20)}:
        assert order[0].parts[:2] == (ImageRef(0), ImageRef(1))
        assert not any(turn.image_indices for turn in order[1:])
        texts = [turn.text for turn in order]
        assert sorted(texts[::2]) == list(Q[:3])
        assert all(A[Q.index(q)] == a for q, a in zip(texts[::2], texts[1::2], strict=True))


def test_what_is_trained_on_does_not_depend_on_the_shape_of_a_recipe(recipe: TrainRecipe) -> None:
    """A new field at its default is a run of before."""
    from consomme.base.recipe import fingerprint

    names = ("shares", "max_tokens", "too_long", "min_pixels", "max_pixels")
    fields = {one.name: one for one in dataclasses.fields(TrainRecipe)}
    changes = ("answer_tokens", 9, "shorten", 9, 9)
    for name, changed in zip(names, changes, strict=True):
        assert fingerprint(recipe, {}) != fingerprint(replace(recipe, **{name: changed}), {})  # type: ignore[arg-type]
        assert fields[name].metadata
