"""Render a report as one HTML file that needs no network, no script and no other file.

The markup is in `templates/`; Jinja2 escapes every value that a template inserts. The page's own
Content-Security-Policy forbids scripts and external resources as a second line of defence.
"""

import base64
import dataclasses
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from consomme.base.secrets import redact
from consomme.base.visible import visible
from consomme.report import model
from consomme.report.axes import read_number
from consomme.report.charts import WIDTHS, chart_drawing, legend
from consomme.report.lineage import lineage_drawing

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"RIFF", "image/webp"),
)
"""First bytes of a file and its MIME type, for every format that browsers show."""

_NUMBER = re.compile(r"[+−-]?\d[\d,.]*( ?[^\d\s]{1,6}| \([\d.,]+ %\))?|–")
_SHORT_LENGTH = 18


def render(report: model.Report) -> str:
    """Return the page."""
    return environment().get_template("page.html.j2").render(report=_clean(report))


def _clean(value: Any) -> Any:
    """Remove secrets from all texts of a report."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **{name: _clean(part) for name, part in fields.items()})
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, list | tuple):
        return type(value)(_clean(part) for part in value)
    return (
        {name: _clean(part) for name, part in value.items()} if isinstance(value, dict) else value
    )


@cache
def environment() -> Environment:
    """Return the template environment, created once per process."""
    env = Environment(
        loader=PackageLoader("consomme.report"),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.globals["chart_widths"] = WIDTHS
    env.filters |= {
        "macro_name": _macro_name,
        "split_code": _split_code,
        "split_paragraphs": _split_paragraphs,
        "number": _number,
        "signed_number": _signed_number,
        "column_classes": _column_classes,
        "data_uri": _data_uri,
        "kind": lambda part: type(part).__name__,
        "legend": legend,
        "chart_drawing": chart_drawing,
        "lineage_drawing": lineage_drawing,
    }
    return env


def _shown(value: Any) -> Any:
    """Make hidden characters of a text visible; what templates themselves write has none."""
    return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _macro_name(block: model.Block) -> str:
    """Return the name of the macro in `blocks.html.j2`: `before_after` for `BeforeAfter`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(block).__name__).lower()


def _split_code(text: str) -> list[str]:
    """Split at pairs of backticks: every second part is code."""
    return re.split(r"`([^`]+)`", text)


def _split_paragraphs(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]


def _number(value: float | None) -> str:
    return "–" if value is None else read_number(value)


def _signed_number(change: float) -> str:
    return f"+{read_number(change)}" if change > 0 else read_number(change)


def _column_classes(block: model.Table) -> list[str]:
    return [_column_class([row[i] for row in block.rows]) for i in range(len(block.columns))]


def _column_class(cells: Sequence[model.Cell]) -> str:
    """Align numbers right, and keep short words on one line."""
    present = [cell for cell in cells if cell is not None]
    if present and all(not isinstance(c, str) or _NUMBER.fullmatch(c) for c in present):
        return "number"
    return "short" if all(len(str(c)) <= _SHORT_LENGTH for c in present) else ""


def _data_uri(item: model.GalleryItem | model.BeforeAfterItem | model.ShownPicture) -> str:
    """Return the image as a data URI, or an empty string if browsers do not show its format."""
    supported = {mime for _, mime in _SIGNATURES}
    detected = [mime for start, mime in _SIGNATURES if item.image_bytes.startswith(start)]
    mime = item.mime if item.mime in supported else (detected[0] if detected else "")
    return f"data:{mime};base64,{base64.b64encode(item.image_bytes).decode()}" if mime else ""
