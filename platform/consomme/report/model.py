"""The content of a report, separate from its look.

Pipelines fill these plain records and write no HTML; `consomme.report.html` renders them and
computes no figure. Any text may come from a data set: it is escaped when rendered. In `lead_text`
and `Paragraph`, a blank line starts a new paragraph and `backticks` set code.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Cell = str | int | float | None
"""A table cell; None is shown as a dash, numbers are right-aligned and rounded for reading."""

Tone = Literal["good", "bad", "neutral"]
"""Colour of a badge."""


@dataclass(frozen=True, kw_only=True)
class Paragraph:
    """Running text."""

    text: str
    """Plain text; a blank line starts a new paragraph."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under named columns; the first column names the row."""

    columns: Sequence[str]
    """Column headings."""

    rows: Sequence[Sequence[Cell]]
    """One sequence per row, as long as `columns`."""

    caption: str = ""
    """One sentence on how to read it."""

    highlight: Collection[int] = ()
    """Indices of the rows to highlight."""

    def __post_init__(self) -> None:
        """Refuse rows of another length, whose figures would stand under the wrong headings."""
        for index, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                found = f"{len(row)} cells under {len(self.columns)} columns"
                raise ValueError(f"table row {index} has {found}: {list(row)!r}")


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts of one quantity in bins, for one or several groups over the same bins."""

    series: Mapping[str, Sequence[float]]
    """Group -> counts, one per bin."""

    edges: Sequence[float]
    """Bin edges in rising order, one more than bins."""

    x_label: str
    """The quantity, with its unit."""

    cut: float | None = None
    """The threshold between kept and dropped samples; drawn as a line."""

    kept_side: Literal["left", "right"] | None = None
    """Side of the cut that was kept; shaded."""

    log_x: bool = False
    """Logarithmic axis; all edges must be positive."""

    normalise: bool = False
    """Show each bin as a share of its group, so that groups of different size are comparable."""

    caption: str = ""
    """One sentence on what it shows."""


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Lines over a common x axis, such as losses over steps."""

    series: Mapping[str, Sequence[tuple[float, float]]]
    """Name -> points in rising x."""

    x_label: str
    """Meaning and unit of x."""

    y_label: str
    """Meaning and unit of y."""

    caption: str = ""
    """One sentence on what it shows."""


@dataclass(frozen=True, kw_only=True)
class Dot:
    """One point of a scatter plot."""

    label: str
    """Written next to it: a few characters."""

    x: float
    """Position on the x axis."""

    y: float
    """Position on the y axis."""

    is_other: bool = False
    """Whether it is there for comparison only: smaller, and of another colour."""


@dataclass(frozen=True, kw_only=True)
class Dots:
    """A scatter plot, such as accuracy over time."""

    dots: Sequence[Dot]
    """At least one point."""

    x_label: str
    """Meaning and unit of x."""

    y_label: str
    """Meaning and unit of y."""

    caption: str = ""
    """One sentence on what it shows."""


@dataclass(frozen=True, kw_only=True)
class ShownPicture:
    """A picture in its place in a text."""

    image_bytes: bytes
    """The encoded picture; one that browsers cannot show becomes a placeholder."""

    title: str
    """What it is, such as `picture 2 of 3`; read aloud, and shown when pointed at."""

    label: str = ""
    """A number or a word, written on the picture."""

    is_marked: bool = False
    """Whether it is the one that the card is about; framed."""

    mime: str = ""
    """MIME type; empty: detected from the bytes."""


@dataclass(frozen=True, kw_only=True)
class Omitted:
    """Says what is left out here."""

    text: str
    """Such as `+ 4 more pictures`."""


@dataclass(frozen=True, kw_only=True)
class ShownTurn:
    """One turn of a sample: its texts and pictures, in their order."""

    role: str
    """Who says it; empty for a caption or a document, which nobody says."""

    parts: Sequence[str | ShownPicture | Omitted]
    """In the order of the turn."""


@dataclass(frozen=True, kw_only=True)
class GalleryItem:
    """One sample: a picture with its text, or texts and pictures in their order."""

    title: str
    """Usually the caption, or the sample id; not shown if there are turns."""

    image_bytes: bytes = b""
    """The encoded picture; one that browsers cannot show becomes a placeholder."""

    turns: Sequence[ShownTurn] = ()
    """Texts and pictures in their order, instead of the title; see `consomme.report.samples`."""

    lines: Sequence[str] = ()
    """Further facts, one per line."""

    badge: str = ""
    """What happened to the sample, in a word or two, such as `kept` or `noise: spam`."""

    badge_kind: Tone = "neutral"
    """Colour of the badge."""

    mime: str = ""
    """MIME type; empty: detected from the bytes."""


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Samples side by side."""

    items: Sequence[GalleryItem]
    """In the order shown."""

    caption: str = ""
    """One sentence on what it shows."""

    is_wide: bool = False
    """Whether the pictures are wide, such as two side by side."""


@dataclass(frozen=True, kw_only=True)
class BeforeAfterItem:
    """One sample with its text before and after."""

    before: str | Sequence[ShownTurn]
    """Caption before; or texts and pictures in their order."""

    after: str | Sequence[ShownTurn]
    """Caption after; or texts and pictures in their order."""

    image_bytes: bytes = b""
    """The encoded picture; none if the pictures stand in the texts, or there is none."""

    notes: Sequence[tuple[str, Tone]] = ()
    """Short remarks on the new caption, such as `("3 true claims", "good")`."""

    mime: str = ""
    """MIME type; empty: detected from the bytes."""


@dataclass(frozen=True, kw_only=True)
class BeforeAfter:
    """Captions before and after rewriting, with their pictures."""

    items: Sequence[BeforeAfterItem]
    """In the order shown."""

    before_label: str = "before"
    """Heading of the first text column."""

    after_label: str = "after"
    """Heading of the second text column."""

    caption: str = ""
    """One sentence on what it shows."""


@dataclass(frozen=True, kw_only=True)
class LayerStrip:
    """Which layers of the language model receive updates."""

    rows: Sequence[tuple[str, int, Collection[int]]]
    """(name, number of layers, selected layers counted from 0)."""

    caption: str = ""
    """One sentence on what it shows."""


@dataclass(frozen=True, kw_only=True)
class LayerShades:
    """A number for each layer of the language model, as a strip of shades."""

    rows: Sequence[tuple[str, Sequence[float]]]
    """(name, a finite number for each layer); each row has shades of its own."""

    caption: str = ""
    """One sentence on what it shows, with the lowest and the highest number."""


@dataclass(frozen=True, kw_only=True)
class ShadedMatrix:
    """A number for every two things, as a table of shades: one colour above zero, one below."""

    labels: Sequence[str]
    """Of rows and columns."""

    rows: Sequence[Sequence[float | None]]
    """As many rows and columns as labels; None leaves a cell empty."""

    caption: str = ""
    """One sentence on what it shows."""

    @property
    def largest(self) -> float:
        """Largest distance from zero, which has the full shade; 1 if there is none."""
        return max((abs(v) for row in self.rows for v in row if v is not None), default=0.0) or 1.0


@dataclass(frozen=True, kw_only=True)
class SearchStep:
    """One decision of a search over soups."""

    candidate: str
    """What was tried."""

    score: float
    """Score with the candidate."""

    best_before: float | None
    """Score to beat; None for the first."""

    accepted: bool
    """Whether the candidate was added to the soup."""

    note: str = ""
    """Further remark."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The decisions of a search, in the order they were made."""

    items: Sequence[SearchStep]
    """First decision first."""

    score_label: str = "score"
    """What the score is, such as `held-out accuracy`."""

    caption: str = ""
    """One sentence on what it shows."""


@dataclass(frozen=True, kw_only=True)
class LineageNode:
    """One run in a lineage."""

    node_id: str
    """Unique in the lineage."""

    verb: str
    """Verb of the run, such as `train`."""

    title: str
    """Name and fingerprint, or the result."""


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Which run was made from which."""

    nodes: Sequence[LineageNode]
    """All runs."""

    edges: Sequence[tuple[str, str]]
    """(parent node_id, child node_id); no cycles."""

    caption: str = ""
    """One sentence on what it shows."""


Block = (
    Paragraph
    | Table
    | Histogram
    | Curves
    | Dots
    | Gallery
    | BeforeAfter
    | LayerStrip
    | LayerShades
    | ShadedMatrix
    | Steps
    | Lineage
)
"""Any content of a section; `templates/blocks.html.j2` has one macro per class."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the report with its own heading."""

    title: str
    """Heading; also the entry in the table of contents."""

    lead_text: str = ""
    """The finding, in a few sentences, before the evidence."""

    blocks: Sequence[Block] = ()
    """The evidence."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """A whole page."""

    title: str
    """Heading of the page."""

    subtitle: str = ""
    """One sentence below the heading."""

    facts: Sequence[tuple[str, str]] = ()
    """(label, value): the key figures, shown first."""

    sections: Sequence[Section] = ()
    """In the order shown."""

    footer: str = ""
    """Small print: versions, run folder, command."""
