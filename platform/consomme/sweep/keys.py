"""Set dotted keys in a recipe given as plain values, and format keys and values for people."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

Values = dict[str, Any]


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Values:
    """Merge changes into a recipe; a mapping with a `name` replaces the whole strategy.

    Args:
        base: The recipe's values; not changed.
        changes: Values to set; other mappings are merged key by key.
    """
    values = copy.deepcopy(dict(base))
    for key, value in changes.items():
        old = values.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and "name" not in value:
            values[key] = merged(old, value)
        else:
            values[key] = copy.deepcopy(value)
    return values


def set_value(values: Values, key: str, value: Any) -> str | None:
    """Set the value of one dotted key, such as `lr`, `layers.name` or `data.0.fraction`, in place.

    Unknown keys are set too; the schema of the recipe reports them.

    Returns:
        Why the key cannot be set; None if it was set.
    """
    *parents, last = key.split(".")
    node: Any = values
    for depth, part in enumerate(parents):
        where = ".".join(parents[: depth + 1])
        if isinstance(node, list):
            problem = _index_problem(node, part, where)
            if problem:
                return problem
            node = node[int(part)]
        else:
            if node.get(part) is None:
                node[part] = {}
            node = node[part]
        if not isinstance(node, dict | list):
            rest = ".".join([*parents[depth + 1 :], last])
            return f"{where}: found {node!r}, which has no {rest}"
    if isinstance(node, list):
        problem = _index_problem(node, last, key)
        if problem:
            return problem
        node[int(last)] = copy.deepcopy(value)
    else:
        node[last] = copy.deepcopy(value)
    return None


def _index_problem(node: list[Any], part: str, where: str) -> str | None:
    if part.isdigit() and int(part) < len(node):
        return None
    return f"{where}: found {part!r}, expected a number below {len(node)}, the length of the list"


def format_value(value: Any) -> str:
    """Format a value briefly: a strategy as its name and parameters."""
    if isinstance(value, Mapping):
        rest = ", ".join(f"{k}={format_value(v)}" for k, v in value.items() if k != "name")
        name = str(value.get("name", ""))
        return f"{name} ({rest})" if name and rest else name or f"({rest})"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(format_value, value)) + "]"
    if value is None:
        return "null"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def label(keys: Mapping[str, Any]) -> str:
    """Format the keys of a trial on one line."""
    return ", ".join(f"{key}={format_value(value)}" for key, value in keys.items())
