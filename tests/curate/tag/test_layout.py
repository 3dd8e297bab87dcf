"""What a sample is made of, its text without the pictures in it, and the size of these."""

from dataclasses import replace
from typing import Any

import pytest
from PIL import Image
from tests.curate.tag.cases import tagger_input
from tests.support.many_pictures import caption, dialogue, document, mixed, text, three
from tests.support.zoo_images import encoded

from consomme.base.sample import ImageFile, ImageRef, Sample, Turn
from consomme.curate.tag.judges import question_answer_pairs
from consomme.curate.tag.layout import Layout, Size
from consomme.curate.tag.tagger import TagColumns, TaggerInput, text_of


def test_layouts() -> None:
    samples = [caption("a", 1), text("b"), three("c", 1, 2, 3), document("d", 1, 2), mixed()[0]]
    samples.append(dialogue("e", 1, 2))
    tag = Layout().open(lambda _: None)  # type: ignore[arg-type, return-value]
    found = tag([TaggerInput(sample=sample) for sample in samples]).columns
    assert found["layout"] == [
        *("caption", "text", "conversation", "document", "caption", "conversation")
    ]
    assert found["num_images"] == [1, 0, 3, 2, 1, 2]
    assert found["num_turns"] == [1, 2, 2, 1, 1, 5]
    assert set(found) == set(Layout().columns)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("as it is  ", "as it is  "),
        (("a cat.", ImageRef(0), "a dog."), "a cat. a dog."),
        (("in ", ImageRef(0), " or ", ImageRef(1), "?"), "in  or ?"),
        ((ImageRef(0), "first"), "first"),
        (("last", ImageRef(0), ImageRef(1)), "last"),
        (("one\n", ImageRef(0), "two"), "one\ntwo"),
    ],
)
def test_words_do_not_grow_together_where_a_picture_stands(content, expected) -> None:
    assert text_of(Turn(role="user", content=content)) == expected


def test_the_text_of_a_document_is_all_its_text() -> None:
    item = TaggerInput(sample=document("a", 7, 8))
    assert item.assistant_text.split(". ") == [
        "this is about some shapes",
        " a scene with the number 7",
        " a scene with the number 8",
        "",
    ]


def test_only_learned_answers_are_asked_for() -> None:
    sample = tagger_input("q", "a", "r", "b").sample
    unlearned = Turn(role="assistant", content="a", is_labelled=False)
    turns = (sample.turns[0], unlearned, *sample.turns[2:])
    changed = type(sample)(
        sample_id="x", images=sample.images, turns=turns, source="s", meta=sample.meta
    )
    assert question_answer_pairs(changed) == [("r", "b")]


def of_sizes(*sizes: tuple[int, int], name: str = "a") -> TaggerInput:
    files = tuple(
        ImageFile(data=encoded(Image.new("RGB", size), "PNG"), name=f"{k}.png")
        for k, size in enumerate(sizes)
    )
    turns = (Turn(role="assistant", content="a"),)
    return TaggerInput(
        sample=Sample(sample_id=name, images=files, turns=turns, source="s", meta={})
    )


def sizes_of(*inputs: TaggerInput, **options: Any) -> TagColumns:
    return Size(**options).open(lambda _: None)(inputs)  # type: ignore[arg-type, return-value]


def test_sizes_are_read_without_decoding() -> None:
    inputs = [of_sizes((300, 200)), of_sizes(), of_sizes((64, 640), (100, 50), (400, 400))]
    found = sizes_of(*inputs)
    assert found.columns["width"] == [300, None, 100]
    assert found.columns["height"] == [200, None, 50]
    assert found.columns["aspect"] == [1.5, None, 10.0]
    total = sum(len(file.data) for file in inputs[2].sample.images) / 1e6
    assert found.columns["megabytes"][2] == pytest.approx(total)
    assert set(found.columns) == set(Size().columns)
    first = sizes_of(*inputs, images="first").columns
    assert (first["width"], first["height"]) == ([300, None, 64], [200, None, 640])
    each = sizes_of(*inputs, images="each").columns
    assert each["width"] == [(300,), None, (64, 100, 400)]
    assert each["aspect"] == [[1.5], None, [10.0, 2.0, 1.0]]


def test_what_has_no_size_is_a_reject() -> None:
    bad = of_sizes((3, 3), (4, 4))
    files = (bad.sample.images[0], ImageFile(data=b"<html>", name="b.png"))
    found = sizes_of(TaggerInput(sample=replace(bad.sample, images=files)), of_sizes((3, 3)))
    assert found.problems[0].reason == "image_undecodable"
    assert found.problems[0].detail.startswith("b.png: ")
    assert list(found.problems) == [0]
    assert found.columns["width"] == [None, 3]
