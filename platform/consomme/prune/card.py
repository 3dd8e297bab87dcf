"""The model card of a pruned model: what was removed, and why."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

_HUB_ID = re.compile(r"(?:hf://)?([\w.-]+/[\w.-]+)(?:@[\w.-]+)?")


def pruned_card(
    source: str,
    *,
    removed: Sequence[int],
    num_layers: int,
    importance: Mapping[str, Any],
    choose: Mapping[str, Any],
    protected: Sequence[int],
) -> str:
    """Return a card with front matter as the hub reads it.

    Args:
        source: The model as the recipe names it.
        removed: Layers, 0-based, in the numbers of the whole model.
        num_layers: Of the whole model.
        importance: Registry node of the measure.
        choose: Registry node of the choice.
        protected: Layers that had to stay.
    """
    match = _HUB_ID.fullmatch(source)
    front = [
        "---",
        *(["base_model:", f"- {match[1]}"] if match else []),
        "library_name: transformers",
        "tags:",
        "- pruned",
        "- consomme",
        "---",
    ]
    listed = ", ".join(map(str, removed))
    what = (
        f"{source} without {len(removed)} of the {num_layers} layers of its language model:"
        f" {listed} (counted from 0). All other weights are bit for bit those of the model."
        if removed
        else f"{source}, bit for bit: no layer was removed."
    )
    lines = ["# Pruned model", "", what]
    if removed:
        lines += ["", f"Chosen by consomme: `{_node(choose)}` of importance `{_node(importance)}`."]
    if removed and protected:
        lines += ["", f"Protected layers: {', '.join(map(str, protected))}."]
    return "\n".join([*front, "", *lines, ""])


def _node(node: Mapping[str, Any]) -> str:
    options = {key: value for key, value in node.items() if key != "name"}
    return str(node["name"]) + (f" {json.dumps(options)}" if options else "")
