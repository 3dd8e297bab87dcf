"""Draw which run was made from which, as boxes in layers.

A run is placed one layer after the latest of its parents. An edge that spans several layers gets a
lane in each layer between, so that no edge runs behind a box. Layers go from left to right in wide
windows and from top to bottom in narrow ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from consomme.report.axes import CHAR_PX
from consomme.report.model import Lineage, LineageNode
from consomme.report.svg import SvgDrawing, SvgElement, title

_BOX_H, _GAP_BOX, _LANE = 46, 14, 10
Point = tuple[float, float]
"""Position along the flow, from parents to children, and position across it."""


@dataclass(frozen=True, kw_only=True)
class GraphLayout:
    """Node ids in layers, and the route of every edge through them."""

    layers: list[list[str]]
    """Ids per layer, in order, including the ids of lanes for edges that pass the layer."""

    routes: list[list[str]] = field(default_factory=list)
    """For each edge the ids it passes: parent, lanes, child."""


def lineage_drawing(block: Lineage, *, vertical: bool) -> SvgDrawing:
    """Draw the graph.

    Raises:
        ValueError: An edge names an unknown node, or the edges form a cycle: our own bug.
    """
    layout = arrange(block.nodes, block.edges)
    box_w, gap_layer = (108, 34) if vertical else (126, 26)
    known = {node.node_id for node in block.nodes}
    along, across = (_BOX_H, box_w) if vertical else (box_w, _BOX_H)
    sizes = {n: across if n in known else _LANE for layer in layout.layers for n in layer}
    used = [sum(sizes[n] + _GAP_BOX for n in layer) - _GAP_BOX for layer in layout.layers]
    breadth = max(used, default=0)
    centres: dict[str, Point] = {}
    for depth, layer in enumerate(layout.layers):
        side = (breadth - used[depth]) / 2
        for n in layer:
            centres[n] = (depth * (along + gap_layer) + along / 2, side + sizes[n] / 2)
            side += sizes[n] + _GAP_BOX
    length = len(layout.layers) * (along + gap_layer) - gap_layer
    elements: list[SvgElement] = []
    for route in layout.routes:
        elements += _arrow([centres[n] for n in route], along, vertical)
    for node in block.nodes:
        main, side = centres[node.node_id]
        x, y = (side, main) if vertical else (main, side)
        elements.append(_box(node, x - box_w / 2, y - _BOX_H / 2, box_w))
    width, height = (breadth, length) if vertical else (length, breadth)
    return SvgDrawing(
        view_box=f"-2 -2 {width + 4} {height + 4}",
        width=width + 4,
        height=height + 4,
        label="Lineage: " + "; ".join(f"{a} to {b}" for a, b in block.edges),
        elements=elements,
    )


def arrange(nodes: Sequence[LineageNode], edges: Sequence[tuple[str, str]]) -> GraphLayout:
    """Sort nodes into layers, near their parents, with lanes for edges that pass a layer."""
    depth = _depths([node.node_id for node in nodes], edges)
    layers: list[list[str]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for node in nodes:
        layers[depth[node.node_id]].append(node.node_id)
    routes = []
    before: dict[str, list[str]] = {}
    for index, (parent, child) in enumerate(edges):
        lanes = [f"\0lane {index} {level}" for level in range(depth[parent] + 1, depth[child])]
        for level, lane in enumerate(lanes, depth[parent] + 1):
            layers[level].append(lane)
        route = [parent, *lanes, child]
        routes.append(route)
        for earlier, later in pairwise(route):
            before.setdefault(later, []).append(earlier)
    rank: dict[str, float] = {}
    for layer in layers:
        layer.sort(key=lambda n: _mean([rank[p] for p in before.get(n, [])]))
        rank |= {n: (place + 0.5) / len(layer) for place, n in enumerate(layer)}
    return GraphLayout(layers=layers, routes=routes)


def _depths(ids: Sequence[str], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    parents: dict[str, list[str]] = {n: [] for n in ids}
    for parent, child in edges:
        if parent not in parents or child not in parents:
            raise ValueError(f"lineage edge {parent!r} -> {child!r} names an unknown node")
        parents[child].append(parent)
    depth: dict[str, int] = {}
    while len(depth) < len(parents):
        ready = [n for n in parents if n not in depth and all(p in depth for p in parents[n])]
        if not ready:
            raise ValueError("lineage edges form a cycle")
        depth |= {n: max((depth[p] + 1 for p in parents[n]), default=0) for n in ready}
    return depth


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _arrow(centres: Sequence[Point], along: float, vertical: bool) -> list[SvgElement]:
    """Draw a smooth line from box to box, straight through the lanes between, and its head."""
    half = along / 2
    points = [(centres[0][0] + half, centres[0][1])]
    for main, side in centres[1:-1]:
        points += [(main - half, side), (main + half, side)]
    points.append((centres[-1][0] - half - 5, centres[-1][1]))

    def at(main: float, side: float) -> str:
        return f"{side:.1f},{main:.1f}" if vertical else f"{main:.1f},{side:.1f}"

    path = f"M{at(*points[0])}"
    for (m1, s1), (m2, s2) in pairwise(points):
        middle = (m1 + m2) / 2
        path += f"C{at(middle, s1)} {at(middle, s2)} {at(m2, s2)}"
    main, side = points[-1]
    head = f"M{at(main, side - 4)}L{at(main, side + 4)}L{at(main + 5, side)}Z"
    return [
        SvgElement(tag="path", attributes={"class": "edge", "d": path}),
        SvgElement(tag="path", attributes={"class": "head", "d": head}),
    ]


def _box(node: LineageNode, x: float, y: float, width: int) -> SvgElement:
    max_chars = int((width - 16) / CHAR_PX)
    short = node.title if len(node.title) <= max_chars else node.title[: max_chars - 1] + "…"
    box: dict[str, str | float] = {
        "class": "box",
        "x": f"{x:.1f}",
        "y": f"{y:.1f}",
        "width": width,
        "height": _BOX_H,
        "rx": 6,
    }
    return SvgElement(
        tag="g",
        children=[
            title(f"{node.verb}: {node.title}"),
            SvgElement(tag="rect", attributes=box),
            _text("verb", x + 9, y + 18, node.verb),
            _text("label", x + 9, y + 35, short),
        ],
    )


def _text(kind: str, x: float, y: float, text: str) -> SvgElement:
    attributes = {"class": kind, "x": f"{x:.1f}", "y": f"{y:.1f}"}
    return SvgElement(tag="text", attributes=attributes, text=text)
