"""Cards show the text and all pictures of a sample in their places, and say what they leave out."""

from dataclasses import replace

import pytest
from tests.report.test_html import Page
from tests.support.many_pictures import (
    asks,
    caption,
    dialogue,
    document,
    picture,
    sample_of,
    says,
    text,
    three,
)

from consomme.base.sample import ImageRef, Sample, Turn
from consomme.report import model
from consomme.report.html import render
from consomme.report.samples import (
    MAX_CHARS,
    MAX_PARTS,
    MAX_PICTURES,
    MAX_TURNS,
    sample_card,
    shown_turns,
)


def told(sample: Sample, marked: int | None = None) -> list[tuple[str, list[str]]]:
    """Roles, and parts as text: a picture by its number, what is left out in brackets."""
    return [
        (turn.role, [part if isinstance(part, str) else name_of(part) for part in turn.parts])
        for turn in shown_turns(sample, marked=marked)
    ]


def name_of(part: model.ShownPicture | model.Omitted) -> str:
    if isinstance(part, model.Omitted):
        return f"({part.text})"
    return f"[{part.label}{'!' if part.is_marked else ''}]"


def page_of(*items: model.GalleryItem) -> Page:
    section = model.Section(title="Part", blocks=[model.Gallery(items=items)])
    return Page(render(model.Report(title="Run", sections=[section])))


def test_a_caption_of_one_picture_is_a_picture_with_a_title() -> None:
    card = sample_card(caption("one", 1), lines=("a line",), badge="kept")
    assert (card.image_bytes, card.title) == (picture(1), "a scene, one")
    assert not card.turns


def test_pictures_stand_where_they_stand() -> None:
    asked = ["is it in ", "[1]", " or in ", "[2]", " and not in ", "[3]", "?"]
    assert told(three("a", 1, 2, 3)) == [("user", asked), ("assistant", ["in the second of them"])]
    assert told(dialogue("a", 1, 2)) == [
        ("system", ["answer in one word."]),
        ("user", ["[1]", "what color is it?"]),
        ("assistant", ["blue"]),
        ("user", ["[2]", "what color is it?"]),
        ("assistant", ["red"]),
    ]
    assert told(document("a", 1, 2)) == [
        ("", ["this is about some shapes. ", "[1]", " a scene with the number 1. ", *TAIL])
    ]


TAIL = ["[2]", " a scene with the number 2. "]


def test_pictures_without_a_place_stand_before_the_text() -> None:
    conversation = sample_of("a", (asks("which?"), says("one")), picture(1), picture(2))
    assert told(conversation)[0] == ("user", ["[1]", "[2]", "which?"])
    series = sample_of("a", (says("two scenes"),), picture(1), picture(2))
    assert told(series) == [("", ["[1]", "[2]", "two scenes"])]


def test_a_text_has_no_picture() -> None:
    card = sample_card(text("a"))
    assert card.image_bytes == b""
    page = page_of(card)
    assert page.all("img") == []
    assert page.all("div", "no-image") == [], "nothing is missing"
    assert "a triangle has three sides" in page.text


def test_an_answer_that_is_not_learned_says_so() -> None:
    turns = (asks(0, "what?"), replace(says("this"), is_labelled=False), asks("and?"), says("that"))
    roles = [role for role, _ in told(sample_of("a", turns, picture(1)))]
    assert roles == ["user", "assistant (not learned)", "user", "assistant"]


def test_many_pictures_in_a_row_become_one_remark() -> None:
    number = MAX_PICTURES + 5
    sample = sample_of(
        "a",
        (asks(*range(number), "how many?"), says("many")),
        *[picture(1)] * number,
    )
    ((_, parts), answer) = told(sample)
    assert parts == [
        *(f"[{k + 1}]" for k in range(MAX_PICTURES)),
        "(+ 5 more pictures)",
        "how many?",
    ]
    assert answer == ("assistant", ["many"])
    ((_, parts), _) = told(sample, marked=number - 1)
    assert parts[-3:] == ["(+ 5 more pictures)", f"[{number}!]", "how many?"]


def test_a_long_document_is_cut_and_says_so() -> None:
    ((_, parts),) = told(document("a", *range(1, 41)))
    assert len(parts) == MAX_PARTS + 1
    assert parts[-1] == f"(+ {81 - MAX_PARTS} more texts and pictures)"
    ((_, parts),) = told(document("a", *range(1, 41)), marked=39)
    assert parts[-1] == "[40!]"


def test_a_long_conversation_is_cut_and_says_so() -> None:
    number = 10
    turns: tuple[Turn, ...] = ()
    for k in range(number):
        turns += (asks(k, "what?"), says("this"))
    sample = sample_of("a", turns, *[picture(1)] * number)
    found = told(sample)
    assert len(found) == MAX_TURNS + 1
    assert found[-1] == ("", ["(+ 12 more turns with 6 pictures)"])
    found = told(sample, marked=9)
    assert found[-2] == ("user", ["[10!]", "what?"])
    assert found[-1] == ("", ["(+ 11 more turns with 5 pictures)"])


def test_a_long_text_is_cut() -> None:
    ((_, (part,)),) = told(sample_of("a", (says("a" * (MAX_CHARS + 1)),)))
    assert part == "a" * MAX_CHARS + " …"


def test_a_picture_that_nobody_can_show_keeps_its_place() -> None:
    sample = sample_of("a", (asks("is ", 0, " or ", 1, "?"), says("no")), b"broken", picture(1))
    page = page_of(sample_card(sample, marked=1))
    assert len(page.all("img")) == 1
    assert len(page.all("div", "no-image")) == 1
    assert len(page.all("span", "marked")) == 1
    assert [shot["title"] for shot in page.all("span", "shot")] == [
        "picture 1 of 2",
        "picture 2 of 2",
    ]


@pytest.mark.parametrize("text", ["<b>bold</b>", "line\none", "{{ 7 * 7 }}", "`code`"])
def test_texts_are_shown_as_they_are(text: str) -> None:
    turn = Turn(role="assistant", content=("before ", ImageRef(0), text))
    html = render(
        model.Report(
            title="Run",
            sections=[
                model.Section(
                    title="Part",
                    blocks=[
                        model.Gallery(items=[sample_card(sample_of("a", (turn,), picture(1)))]),
                        model.BeforeAfter(
                            items=[
                                model.BeforeAfterItem(
                                    before=shown_turns(sample_of("a", (turn,), picture(1))),
                                    after=text,
                                )
                            ]
                        ),
                    ],
                )
            ],
        )
    )
    page = Page(html)
    assert page.all("b") == []
    assert "".join(page.words).count(text) >= 3
    assert len(page.all("img")) == 2
