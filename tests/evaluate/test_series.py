"""Benchmarks of several images: each control shows what it says, and only the truth is right."""

import pytest

from consomme.base.errors import RecipeError
from consomme.base.sample import ImageRef, turns_of
from consomme.datasets.scene_series import series_from
from consomme.datasets.sources import SAMPLE_SOURCES
from consomme.evaluate.benchmarks import BENCHMARKS
from consomme.evaluate.names import benchmark_name
from consomme.pipelines.evaluate.recipe import EvaluateRecipe

NAMES = {"scene_which": 3, "scene_changes": 2, "scene_documents": 3}


def build(name: str, **fields):
    return BENCHMARKS.build({"name": name, "num": 24, **fields})


def pixels(item):
    return [image.tobytes() for image in item.images]


@pytest.mark.parametrize(("name", "num_images"), NAMES.items())
def test_the_truth_is_right_and_the_answers_to_other_questions_are_not(name, num_images):
    benchmark = build(name)
    items = benchmark.items()
    truths = [item.truth for item in items]
    assert {len(item.images) for item in items} == {num_images}
    found = benchmark.measure([f" {truth.upper()}" for truth in truths])
    assert next(iter(found)) == "accuracy_fraction"
    assert found["accuracy_fraction"] == 1.0
    assert found["num_questions"] == 24
    assert found["accuracy_low_fraction"] < 1.0
    assert benchmark.measure([""] * 24)["accuracy_fraction"] == 0.0
    # What the most frequent answer to each kind of question reaches.
    made = [
        one
        for _, one in series_from(benchmark.task, benchmark.first_seed, 24, "filled", num_images)
    ]
    fixed = [
        max([o.answer for o in made if o.kind == one.kind], key=[
            o.answer for o in made if o.kind == one.kind
        ].count)
        for one in made
    ]  # fmt: skip
    by_chance = benchmark.measure(fixed)
    assert by_chance["accuracy_fraction"] == by_chance["accuracy_of_fixed_answers_fraction"]
    assert by_chance["accuracy_of_fixed_answers_fraction"] < 0.75


@pytest.mark.parametrize("name", NAMES)
def test_controls_change_the_images_and_nothing_else(name):
    own, blank, others, order = (
        build(name, **fields).items()
        for fields in ({}, {"blank": True}, {"shuffled": "items"}, {"shuffled": "order"})
    )
    for items in (blank, others, order):
        assert [(i.turns, i.truth) for i in items] == [(i.turns, i.truth) for i in own]
    assert all(len(image.getcolors(9999)) == 1 for item in blank for image in item.images)
    assert [pixels(item) for item in others] == [*map(pixels, own[1:]), pixels(own[0])]
    assert [pixels(i) for i in order] == [[*pixels(i)[1:], pixels(i)[0]] for i in own]
    assert all(pixels(one) != pixels(other) for one, other in zip(own, order, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_kinds_of_questions_can_be_chosen(name):
    whole = build(name)
    kinds = whole.known_kinds
    parts = [build(name, kinds=[kind]) for kind in kinds]
    assert sum(len(part.items()) for part in parts) == 24
    chosen = build(name, kinds=list(kinds[:2]))
    truths = [(item.turns, item.truth) for item in chosen.items()]
    assert [t for t in ((i.turns, i.truth) for i in whole.items()) if t in truths] == truths
    with pytest.raises(RecipeError, match="unknown kind of question 'colour'; did you mean"):
        build("scene_changes", kinds=["colour"])


def test_a_benchmark_asks_as_the_training_data_do():
    for name in NAMES:
        asked = build(name, first_seed=0).items()
        samples = SAMPLE_SOURCES.build({"name": name, "num": 24, "first_seed": 0})()
        for item, sample in zip(asked, samples, strict=True):
            turns = turns_of(sample, "describe the image.")
            if sample.is_document:
                assert (*item.turns[0].parts, item.truth) == turns[0].parts
                assert isinstance(item.turns[0].parts[-1], ImageRef)
            else:
                assert item.placed_turns == turns[:-1]
                assert item.truth == turns[-1].text


def test_two_controls_at_once_are_refused():
    with pytest.raises(RecipeError, match="blank=true and shuffled=order"):
        build("scene_which", blank=True, shuffled="order")


def test_benchmarks_that_would_share_a_name_are_refused():
    nodes = [{"name": "scene_which"}, {"name": "scene_which", "blank": True}]
    nodes += [{"name": "scene_which", "shuffled": one} for one in ("items", "order")]
    nodes += [{"name": "scene_which", "num_images": 4}]
    assert len({benchmark_name(node) for node in nodes}) == 5
    models = {"nano": "package://models/nano"}
    EvaluateRecipe(name="a", models=models, benchmarks=tuple(nodes))
    twice = (*nodes, {"name": "scene_which", "num": 5})
    with pytest.raises(RecipeError, match="found 2 that are called scene_which in tables"):
        EvaluateRecipe(name="a", models=models, benchmarks=twice)
