"""Put values under dotted keys of a recipe that is still plain values, and write them short."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

Values = dict[str, Any]


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Values:
    """Change a recipe; mappings are merged, but one with a `name` replaces the whole strategy.

    Args:
        base: The recipe's values; not changed.
        changes: Values that differ.
    """
    found = copy.deepcopy(dict(base))
    for key, value in changes.items():
        before = found.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping) and "name" not in value:
            found[key] = merged(before, value)
        else:
            found[key] = copy.deepcopy(value)
    return found


def put(values: Values, key: str, value: Any) -> str | None:
    """Set the value of one dotted key, such as `lr`, `layers.name` or `data.0.fraction`, in place.

    Whether the recipe knows the key is for its schema to say.

    Returns:
        What is wrong with the key; None if it was set.
    """
    *way, last = key.split(".")
    node: Any = values
    for depth, part in enumerate(way):
        where = ".".join(way[: depth + 1])
        if isinstance(node, list):
            problem = _no_item(node, part, where)
            if problem:
                return problem
            node = node[int(part)]
        else:
            if node.get(part) is None:
                node[part] = {}
            node = node[part]
        if not isinstance(node, dict | list):
            return f"{where}: found {node!r}, which has no {'.'.join([*way[depth + 1 :], last])}"
    if isinstance(node, list):
        problem = _no_item(node, last, key)
        if problem:
            return problem
        node[int(last)] = copy.deepcopy(value)
    else:
        node[last] = copy.deepcopy(value)
    return None


def _no_item(node: list[Any], part: str, where: str) -> str | None:
    if part.isdigit() and int(part) < len(node):
        return None
    return f"{where}: found {part!r}, expected a number below {len(node)}, the length of the list"


def short(value: Any) -> str:
    """Write a value in few words: a strategy as its name and parameters."""
    if isinstance(value, Mapping):
        rest = ", ".join(f"{k}={short(v)}" for k, v in value.items() if k != "name")
        name = str(value.get("name", ""))
        return f"{name} ({rest})" if name and rest else name or f"({rest})"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(short, value)) + "]"
    if value is None:
        return "null"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def label(keys: Mapping[str, Any]) -> str:
    """Write a trial's keys on one line."""
    return ", ".join(f"{key}={short(value)}" for key, value in keys.items())
