"""What benchmarks are called in tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def benchmark_name(node: Mapping[str, Any]) -> str:
    """Name a benchmark in tables: its registered name and the parameters that identify it."""
    if node.get("label"):
        return str(node["label"]).replace("/", "-")
    guided = _guided(node.get("guidance"))
    if "file" in node:
        # What stands in a file is called as the file is.
        parts = [str(node["file"]).rstrip("/").rpartition("/")[2].partition(".")[0]]
        parts += [key for key in ("circular", "blank", "text_only") if node.get(key)]
        return "_".join([*parts, *guided]).replace("/", "-")
    parts = [str(node["name"]), *(str(node[key]) for key in ("style",) if key in node)]
    if node.get("kinds"):
        parts.append("+".join(node["kinds"]))
    if "num_images" in node:
        parts.append(f"{node['num_images']}_images")
    if node.get("blank"):
        parts.append("blank")
    if node.get("shuffled"):
        parts.append(f"shuffled_{node['shuffled']}")
    return "_".join([*parts, *guided])


def _guided(guidance: Mapping[str, Any] | None) -> Sequence[str]:
    """Name a guidance by its strength, and by what is not as in the paper."""
    if guidance is None:
        return ()
    boxes = (guidance.get("boxes") or {}).get("name", "data")
    others = (boxes, guidance.get("mask", "blackout"), guidance.get("area", "boxes"))
    usual = ("data", "blackout", "boxes")
    named = [one for one, as_usual in zip(others, usual, strict=True) if one != as_usual]
    return (f"guided_{guidance.get('alpha', 1):g}", *named)


def shown_figure(figure: str) -> str:
    """Return the name of a figure as people read it: `accuracy` of `accuracy_fraction`."""
    return figure.removesuffix("_fraction").replace("_", " ")
