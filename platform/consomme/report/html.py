"""Renders a report as one HTML file that needs no network, no script and no other file.

The one decision: everything that came from outside passes through `escape` exactly once, here or in
the drawing modules, and the page forbids itself scripts and foreign resources by its own policy, so
a caption written by an attacker stays a caption.
"""

import base64
import re
from collections.abc import Callable, Collection, Sequence
from functools import cache
from html import escape
from importlib import resources

from consomme.report import model
from consomme.report.axes import read_number
from consomme.report.charts import WIDTHS, curves_svg, dots_svg, histogram_svg, legend
from consomme.report.lineage import lineage_svg

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"RIFF", "image/webp"),
)
_NUMBER = re.compile(r"[+−-]?\d[\d,.]*( ?[^\d\s]{1,6}| \([\d.,]+ %\))?|–")
_SHORT = 18
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def render(report: model.Report) -> str:
    """Return the page."""
    anchors = [f"s{i}" for i in range(1, len(report.sections) + 1)]
    contents = "".join(
        f'<li><a href="#{anchor}">{escape(section.title)}</a></li>'
        for anchor, section in zip(anchors, report.sections, strict=True)
    )
    sections = "".join(map(_section, anchors, report.sections))
    facts = "".join(
        f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>"
        for label, value in report.facts
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(report.title)}</title><style>{_style()}</style></head>\n<body>"
        f"<header><h1>{escape(report.title)}</h1>"
        + (f'<p class="subtitle">{_inline(report.subtitle)}</p>' if report.subtitle else "")
        + (f'<dl class="facts">{facts}</dl>' if facts else "")
        + (f'<nav aria-label="Contents"><ol>{contents}</ol></nav>' if len(anchors) > 1 else "")
        + f"</header>\n<main>{sections}</main>\n"
        + (f"<footer>{_paragraphs(report.footer)}</footer>" if report.footer else "")
        + "</body></html>\n"
    )


def _section(anchor: str, section: model.Section) -> str:
    blocks = "\n".join(_block(block) for block in section.blocks)
    lead = f'<div class="lead">{_paragraphs(section.lead_text)}</div>' if section.lead_text else ""
    return f'<section id="{anchor}"><h2>{escape(section.title)}</h2>{lead}\n{blocks}</section>\n'


def _block(block: model.Block) -> str:
    match block:
        case model.Paragraph():
            return f'<div class="text">{_paragraphs(block.text)}</div>'
        case model.Table():
            return _table(block)
        case model.Histogram():
            names = {n: f"{sum(c):,.0f}" for n, c in block.series.items()}
            return _chart(lambda width: histogram_svg(block, width), names, block.caption)
        case model.Curves():
            ends = {n: read_number(s[-1][1]) if s else "" for n, s in block.series.items()}
            return _chart(lambda width: curves_svg(block, width), ends, block.caption)
        case model.Dots():
            return _chart(lambda width: dots_svg(block, width), {}, block.caption)
        case model.Gallery():
            items = "".join(map(_gallery_item, block.items))
            return _figure(f'<div class="gallery">{items}</div>', block.caption)
        case model.BeforeAfter():
            return _before_after(block)
        case model.LayerStrip():
            rows = "".join(_layers(*row) for row in block.rows)
            return _figure(f'<div class="layers">{rows}</div>', block.caption)
        case model.Steps():
            return _steps(block)
        case model.Lineage():
            drawings = (
                f'<div class="wide scroll">{lineage_svg(block, vertical=False)}</div>'
                f'<div class="narrow scroll">{lineage_svg(block, vertical=True)}</div>'
            )
            return _figure(drawings, block.caption)


def _figure(content: str, caption: str, kind: str = "") -> str:
    words = f"<figcaption>{_inline(caption)}</figcaption>" if caption else ""
    return f'<figure class="{kind}">{content}{words}</figure>'


def _chart(draw: Callable[[int], str], names: dict[str, str], caption: str) -> str:
    drawings = "".join(f'<div class="{kind}">{draw(w)}</div>' for kind, w in WIDTHS.items())
    return _figure(legend(names) + drawings, caption, "chart")


def _table(block: model.Table) -> str:
    columns = [[row[i] for row in block.rows] for i in range(len(block.columns))]
    kinds = [_column_kind(column) for column in columns]
    head = "".join(
        f'<th scope="col"{kind}>{escape(name)}</th>'
        for kind, name in zip(kinds, block.columns, strict=True)
    )
    body = []
    for index, row in enumerate(block.rows):
        cells = [f'<th scope="row"{kinds[0]}>{_cell(row[0])}</th>']
        cells += [f"<td{k}>{_cell(c)}</td>" for k, c in zip(kinds[1:], row[1:], strict=True)]
        mark = ' class="highlight"' if index in block.highlight else ""
        body.append(f"<tr{mark}>{''.join(cells)}</tr>")
    return _scrolling_table(block.caption, head, "".join(body))


def _scrolling_table(caption: str, head: str, body: str) -> str:
    # The caption stands outside, or a narrow window would scroll it away with the columns.
    return _figure(
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>",
        caption,
    )


def _column_kind(cells: Sequence[model.Cell]) -> str:
    """Set numbers right, and keep short words on one line."""
    present = [cell for cell in cells if cell is not None]
    if present and all(not isinstance(c, str) or _NUMBER.fullmatch(c) for c in present):
        return ' class="number"'
    return ' class="short"' if all(len(str(c)) <= _SHORT for c in present) else ""


def _cell(cell: model.Cell) -> str:
    if cell is None:
        return "–"
    return escape(read_number(cell)) if isinstance(cell, int | float) else _inline(cell)


def _gallery_item(item: model.GalleryItem) -> str:
    lines = "".join(f"<p>{escape(line)}</p>" for line in item.lines)
    badge = _badge(item.badge, item.badge_kind) if item.badge else ""
    return (
        f'<figure class="card">{_image(item.image_bytes, item.mime, item.title)}'
        f"<figcaption>{badge}"
        f'<strong title="{escape(item.title)}">{escape(item.title)}</strong>{lines}'
        "</figcaption></figure>"
    )


def _before_after(block: model.BeforeAfter) -> str:
    rows = []
    for item in block.items:
        notes = "".join(_badge(words, tone) for words, tone in item.notes)
        rows.append(
            f'<article class="pair">{_image(item.image_bytes, item.mime, item.after)}'
            f"<div><h3>{escape(block.before_label)}</h3><p>{escape(item.before)}</p></div>"
            f"<div><h3>{escape(block.after_label)}</h3><p>{escape(item.after)}</p>"
            + (f'<p class="notes">{notes}</p>' if notes else "")
            + "</div></article>"
        )
    return _figure(f'<div class="pairs">{"".join(rows)}</div>', block.caption)


def _layers(name: str, num_layers: int, selected: Collection[int]) -> str:
    chosen = set(selected)
    cells = "".join(f'<i class="{"on" if j in chosen else "off"}"></i>' for j in range(num_layers))
    listed = ", ".join(str(j) for j in sorted(chosen)) or "none"
    label = f"{len(chosen)} of {num_layers} layers trained: {listed}"
    return (
        f'<div class="layer-row"><span class="layer-name">{escape(name)}</span>'
        f'<span class="strip" role="img" aria-label="{escape(label)}">{cells}</span>'
        f'<span class="muted">{len(chosen)} / {num_layers}</span></div>'
    )


def _steps(block: model.Steps) -> str:
    number = ' class="number"'
    names = [("step", number), ("candidate", ""), ("before", number)]
    names += [(block.score_label, number), ("change", number)]
    head = "".join(f'<th scope="col"{kind}>{escape(name)}</th>' for name, kind in names)
    body = []
    for index, step in enumerate(block.items, 1):
        change = "" if step.best_before is None else _signed(step.score - step.best_before)
        badge = _badge("added", "good") if step.accepted else _badge("left out", "neutral")
        note = f'<span class="note">{_inline(step.note)}</span>' if step.note else ""
        cells = (_cell(step.best_before), _cell(step.score), change)
        body.append(
            f"<tr><td{number}>{index}</td>"
            f'<th scope="row">{escape(step.candidate)} {badge}{note}</th>'
            + "".join(f"<td{number}>{cell}</td>" for cell in cells)
            + "</tr>"
        )
    return _scrolling_table(block.caption, head, "".join(body))


def _signed(change: float) -> str:
    return f"+{read_number(change)}" if change > 0 else read_number(change)


def _badge(words: str, tone: model.Tone) -> str:
    return f'<span class="badge {tone}">{escape(words)}</span>'


def _image(data: bytes, mime: str, alt: str) -> str:
    kinds = [kind for start, kind in _SIGNATURES if data.startswith(start)]
    shown = mime if mime in {kind for _, kind in _SIGNATURES} else (kinds[0] if kinds else "")
    if not shown:
        return '<div class="no-image" role="img" aria-label="not shown">not shown</div>'
    encoded = base64.b64encode(data).decode()
    return f'<img src="data:{shown};base64,{encoded}" alt="{escape(alt)}" loading="lazy">'


def _paragraphs(text: str) -> str:
    parts = [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
    return "".join(f"<p>{_inline(part)}</p>" for part in parts)


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


@cache
def _style() -> str:
    return resources.files("consomme.report").joinpath("style.css").read_text(encoding="utf-8")
