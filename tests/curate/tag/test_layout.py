"""What a sample is made of, and its text without the pictures in it."""

import pytest
from tests.curate.tag.cases import tagger_input
from tests.support.many_pictures import caption, dialogue, document, mixed, text, three

from consomme.base.sample import ImageRef, Turn
from consomme.curate.tag.judges import question_answer_pairs
from consomme.curate.tag.layout import Layout
from consomme.curate.tag.tagger import TaggerInput, text_of


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
