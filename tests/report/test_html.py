"""The page is one well-formed file that shows every figure and runs nothing."""

import re
from html.parser import HTMLParser
from typing import get_args

import pytest

from consomme.report import model
from consomme.report.html import render

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 16
HOSTILE = [
    "<script>alert('x')</script>\" onerror=\"alert(1) & more",
    '"><img src=x onerror=alert(1)>',
    "'><svg onload=alert(1)>",
    "{{7*7}} {% include 'page.html.j2' %} {# gone #}",
    "</title></style></section>--><b>",
    "`<i>` &lt;i&gt;",
]
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Collects tags, attributes and words, and fails on tags that do not close."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str, kind: str = "") -> list[dict[str, str | None]]:
        return [
            a for t, a in self.tags if t == tag and kind in [*(a.get("class") or "").split(), ""]
        ]


def page_of(*blocks: model.Block, **options) -> Page:
    sections = [model.Section(title="Part", lead_text="Lead.", blocks=blocks)]
    return Page(render(model.Report(title="Run", sections=sections, **options)))


def every_block(words: str) -> list[model.Block]:
    item = model.GalleryItem(image_bytes=PNG, title=words, lines=[words], badge=words)
    parts = [
        words,
        model.ShownPicture(image_bytes=PNG, title=words, label=words),
        model.Omitted(text=words),
    ]
    turns = [model.ShownTurn(role=words, parts=parts)]
    whole = model.GalleryItem(title="", turns=turns, lines=[words], badge=words)
    pair = model.BeforeAfterItem(
        image_bytes=PNG, before=words, after=words, notes=[(words, "good")]
    )
    long_pair = model.BeforeAfterItem(before=turns, after=turns)
    step = model.SearchStep(candidate=words, score=1.0, best_before=0.5, accepted=True, note=words)
    nodes = [
        model.LineageNode(node_id="a", verb=words, title=words),
        model.LineageNode(node_id=words, verb="b", title="b"),
    ]
    return [
        model.Paragraph(text=words),
        model.Table(columns=[words, "n"], rows=[[words, 1]], caption=words),
        model.Histogram(series={words: [1, 2]}, edges=[0, 1, 2], x_label=words, caption=words),
        model.Curves(series={words: [(0, 1)]}, x_label=words, y_label=words, caption=words),
        model.Dots(
            dots=[model.Dot(label=words, x=1, y=2)], x_label=words, y_label=words, caption=words
        ),
        model.Gallery(items=[item, whole], caption=words),
        model.BeforeAfter(
            items=[pair, long_pair], before_label=words, after_label=words, caption=words
        ),
        model.LayerStrip(rows=[(words, 4, [0, 2])], caption=words),
        model.LayerShades(rows=[(words, [0.5, -1.0, 2.0])], caption=words),
        model.ShadedMatrix(labels=[words, "b"], rows=[[None, 0.5], [-1, None]], caption=words),
        model.Steps(items=[step], score_label=words, caption=words),
        model.Lineage(nodes=nodes, edges=[("a", words)], caption=words),
    ]


def page_with(words: str) -> Page:
    section = model.Section(title=words, lead_text=words, blocks=every_block(words))
    report = model.Report(
        title=words, subtitle=words, facts=[(words, words)], footer=words, sections=[section] * 2
    )
    return Page(render(report))


def shape_of(page: Page) -> list[tuple[str, list[str]]]:
    """Tags and names of attributes, without the widths and texts that depend on the words."""
    return [(tag, list(attributes)) for tag, attributes in page.tags]


@pytest.mark.parametrize("words", HOSTILE)
def test_every_block_shows_hostile_text_as_text(words):
    page, harmless = (
        page_with(words),
        page_with(words.translate(str.maketrans("<>{}'\"&", "x" * 7))),
    )

    assert shape_of(page) == shape_of(harmless), "the text added a tag or an attribute"
    assert page.all("script") == []
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    text, shown = (" ".join(part.replace("`", "").split()) for part in (page.text, words))
    assert text.count(shown) > 30


def test_every_class_of_block_is_rendered():
    assert {type(block) for block in every_block("x")} == set(get_args(model.Block))


def test_the_page_needs_nothing_from_outside():
    html = render(
        model.Report(title="Run", sections=[model.Section(title="s", blocks=every_block("x"))])
    )
    page = Page(html)

    links = [a.get(k) for _, a in page.tags for k in ("src", "href") if a.get(k)]
    assert all(link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"url\(|@import|https?://", html)
    policy = next(a for a in page.all("meta") if "http-equiv" in a)["content"]
    assert policy.startswith("default-src 'none'")


def test_charts_exist_for_both_widths_and_describe_themselves():
    page = page_of(
        model.Histogram(
            series={"good": [5, 1], "noise": [1, 3]},
            edges=[1, 10, 100],
            x_label="perplexity",
            cut=10,
            kept_side="left",
            log_x=True,
        )
    )
    drawings = page.all("svg")
    assert {d["width"] for d in drawings} == {"760", "340"}
    assert drawings[0]["aria-label"] == (
        "Histogram of perplexity. good: 6 samples, noise: 4 samples; cut at 10, left side kept."
    )
    assert len(page.all("path", "area")) == 4
    assert "← kept · cut 10" in page.text


def test_tables_name_their_rows_and_columns_and_round_for_reading():
    page = page_of(
        model.Table(
            columns=["run", "accuracy", "kept", "seconds"],
            rows=[["full", 0.87123, "1.8 %", 1234567], ["sparse", None, "–", 2.0]],
            highlight=[1],
            caption="Equal steps.",
        )
    )
    assert [a["scope"] for a in page.all("th")] == ["col"] * 4 + ["row"] * 2
    assert "0.871 1.8 % 1,234,567" in page.text
    assert len(page.all("tr", "highlight")) == 1
    assert len(page.all("td", "number")) == 6
    with pytest.raises(ValueError, match="row 0 has 1 cells under 2"):
        model.Table(columns=["a", "b"], rows=[["only one"]])


def test_pictures_are_embedded_and_unknown_formats_become_placeholders():
    items = [
        model.GalleryItem(image_bytes=PNG, title="png"),
        model.GalleryItem(image_bytes=b"\xff\xd8\xff\xe0", title="jpeg"),
        model.GalleryItem(image_bytes=b"II*\0", title="tiff", mime="image/tiff"),
        model.GalleryItem(image_bytes=b"<svg onload='x'/>", title="svg", mime="image/svg+xml"),
    ]
    page = page_of(model.Gallery(items=items))

    assert [a["src"].split(";")[0] for a in page.all("img")] == [
        "data:image/png",
        "data:image/jpeg",
    ]
    assert [a["alt"] for a in page.all("img")] == ["png", "jpeg"]
    assert len(page.all("div", "no-image")) == 2


def test_layers_and_decisions_can_be_read_without_colours():
    page = page_of(
        model.LayerStrip(rows=[("sparse", 12, [0, 4, 8])]),
        model.Steps(
            items=[
                model.SearchStep(candidate="a", score=0.8, best_before=None, accepted=True),
                model.SearchStep(candidate="b", score=0.75, best_before=0.8, accepted=False),
            ]
        ),
    )
    strip = page.all("span", "strip")[0]
    assert strip["aria-label"] == "3 of 12 layers: 0, 4, 8"
    assert len(page.all("i", "on")) == 3
    assert "b left out 0.800 0.750 −0.050" in page.text


def test_empty_blocks_do_not_fail():
    page = page_of(
        model.Curves(series={}, x_label="step", y_label="loss"),
        model.Curves(series={"nan": [(0, float("nan"))]}, x_label="step", y_label="loss"),
        model.Histogram(series={}, edges=[0, 1], x_label="x"),
        model.Gallery(items=[]),
        model.Steps(items=[]),
        model.Lineage(nodes=[], edges=[]),
        model.Table(columns=["a"], rows=[]),
    )
    assert "NaN" not in page.text
    assert "nan" not in str(page.all("polyline"))


def test_sections_are_listed_and_reachable():
    sections = [model.Section(title="One"), model.Section(title="Two")]
    page = Page(render(model.Report(title="Run", sections=sections)))
    assert [a["href"] for a in page.all("a")] == ["#s1", "#s2"]
    assert [a["id"] for a in page.all("section")] == ["s1", "s2"]
