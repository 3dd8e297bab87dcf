"""The elements of a drawing as plain data; a template writes them as SVG and escapes every text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class SvgElement:
    """One SVG element."""

    tag: str
    """Name of the element, such as `path`."""

    attributes: Mapping[str, str | float] = field(default_factory=dict)
    """Attributes in the order written; numbers appear as `str` formats them."""

    text: str = ""
    """Character data before the children."""

    children: Sequence["SvgElement"] = ()
    """Elements inside this one."""


@dataclass(frozen=True, kw_only=True)
class SvgDrawing:
    """A whole drawing."""

    view_box: str
    """Left, top, width and height of the coordinate system, separated by spaces."""

    width: int
    """In pixels."""

    height: int
    """In pixels."""

    label: str
    """Description for screen readers."""

    elements: Sequence[SvgElement]
    """In the order drawn: later elements cover earlier ones."""


def title(text: str) -> SvgElement:
    """Return a tooltip for the element that it is a child of."""
    return SvgElement(tag="title", text=text)
