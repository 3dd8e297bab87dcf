"""Draws which run was made from which, as boxes in layers.

The one decision: a run stands one layer after the latest of its parents, and an arrow that passes a
layer gets a place of its own in it, so that no arrow runs behind a box. Wide windows get layers
from left to right, narrow ones from top to bottom.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

from consomme.report.axes import CHAR_PX
from consomme.report.model import Lineage, LineageNode

_BOX_H, _GAP_BOX, _LANE = 46, 14, 10
Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class GraphLayout:
    """Who stands where: node ids in layers, and the stations of every arrow between them."""

    layers: list[list[str]]
    """Ids per layer, in order; ids of lanes (places for passing arrows) among them."""

    routes: list[list[str]] = field(default_factory=list)
    """For each edge the ids it passes: parent, lanes, child."""


def lineage_svg(block: Lineage, *, vertical: bool) -> str:
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
    # Centre of each id: (place along the flow, place across it).
    centres: dict[str, Point] = {}
    for depth, layer in enumerate(layout.layers):
        side = (breadth - used[depth]) / 2
        for n in layer:
            centres[n] = (depth * (along + gap_layer) + along / 2, side + sizes[n] / 2)
            side += sizes[n] + _GAP_BOX
    length = len(layout.layers) * (along + gap_layer) - gap_layer
    parts = [_arrow([centres[n] for n in route], along, vertical) for route in layout.routes]
    for node in block.nodes:
        main, side = centres[node.node_id]
        x, y = (side, main) if vertical else (main, side)
        parts.append(_box(node, x - box_w / 2, y - _BOX_H / 2, box_w))
    width, height = (breadth, length) if vertical else (length, breadth)
    label = "Lineage: " + "; ".join(f"{a} to {b}" for a, b in block.edges)
    return (
        f'<svg viewBox="-2 -2 {width + 4:.0f} {height + 4:.0f}" width="{width + 4:.0f}" '
        f'height="{height + 4:.0f}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def arrange(nodes: Sequence[LineageNode], edges: Sequence[tuple[str, str]]) -> GraphLayout:
    """Sort nodes into layers, near their parents, with lanes for arrows that pass a layer."""
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


def _arrow(centres: Sequence[Point], along: float, vertical: bool) -> str:
    """Draw a smooth line from box to box, straight through the lanes between."""
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
    return f'<path class="edge" d="{path}"/><path class="head" d="{head}"/>'


def _box(node: LineageNode, x: float, y: float, width: float) -> str:
    fitting = int((width - 16) / CHAR_PX)
    title = node.title if len(node.title) <= fitting else node.title[: fitting - 1] + "…"
    return (
        f"<g><title>{escape(node.verb)}: {escape(node.title)}</title>"
        f'<rect class="box" x="{x:.1f}" y="{y:.1f}" width="{width}" height="{_BOX_H}" rx="6"/>'
        f'<text class="verb" x="{x + 9:.1f}" y="{y + 18:.1f}">{escape(node.verb)}</text>'
        f'<text class="label" x="{x + 9:.1f}" y="{y + 35:.1f}">{escape(title)}</text></g>'
    )
