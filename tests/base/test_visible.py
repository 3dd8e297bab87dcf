"""Characters that change the text around them are seen, in reports and on the terminal."""

import unicodedata

import pytest

from consomme.base.visible import visible
from consomme.report import model
from consomme.report.html import render

HIDDEN = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) == "Cc"]
BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def test_controls_and_marks_of_direction_are_replaced_by_their_code() -> None:
    for char in (set(HIDDEN) | set(BIDI)) - set("\t\n"):
        assert visible(f"a{char}b") == f"a⟨U+{ord(char):04X}⟩b"
    assert visible("a\tb\nc") == "a\tb\nc"


@pytest.mark.parametrize("text", ["קו", "خط", "नमस्ते क्‍ष", "👩‍👩‍👧", "naïve – “x”", "日本"])
def test_scripts_stay_as_they_are(text: str) -> None:
    assert visible(text) == text


def test_a_report_shows_what_a_caption_hides() -> None:
    caption = "a dog \u202egnp.exe\u202c <b>"
    table = model.Table(columns=["id", caption], rows=[["x", caption]], caption=caption)
    blocks = [table, model.Paragraph(text=caption)]
    page = model.Report(
        title=caption,
        subtitle=caption,
        facts=[("n", caption)],
        sections=[model.Section(title=caption, blocks=blocks)],
    )
    text = render(page)
    assert not set(BIDI) & set(text)
    assert text.count("⟨U+202E⟩gnp.exe⟨U+202C⟩ &lt;b&gt;") >= 7
