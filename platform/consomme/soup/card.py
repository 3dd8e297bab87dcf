"""The model card of a soup: what was mixed, and how."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from consomme.soup.mixing import ModelMix

_HUB_ID = re.compile(r"(?:hf://)?([\w.-]+/[\w.-]+)(?:@[\w.-]+)?")


def group_shares(mix: ModelMix) -> dict[str, dict[str, float]]:
    """Return the shares of each part of the model by label; only for a mix with groups."""
    assert mix.groups is not None
    labels = [one.name for one in mix.ingredients]
    return {
        name: dict(zip(labels, shares, strict=True))
        for name, shares in zip(mix.groups.names, mix.shares_G, strict=True)
    }


def model_card(mix: ModelMix, method: Mapping[str, Any]) -> str:
    """Return a card with front matter as the hub reads it.

    Args:
        mix: What was mixed.
        method: Node of the method.
    """
    sources = [one.source for one in (*mix.ingredients, *([mix.base] if mix.base else []))]
    ids = [match[1] for source in sources if (match := _HUB_ID.fullmatch(source))]
    front = [
        "---",
        *(["base_model:", *(f"- {one}" for one in dict.fromkeys(ids))] if ids else []),
        "library_name: transformers",
        "tags:",
        "- merge",
        "- model-soup",
        "- consomme",
        "---",
    ]
    options = {key: value for key, value in method.items() if key != "name"}
    how = f"`{method['name']}`" + (f" with `{json.dumps(options)}`" if options else "")
    lines = [
        "# Model soup",
        "",
        f"Weights of {len(mix.ingredients)} models, mixed by consomme with the method {how}.",
        "",
        "| ingredient | model | share |",
        "| --- | --- | --- |",
        *(
            f"| {one.name} | {one.source} | {share:.4f} |"
            for one, share in zip(mix.ingredients, mix.shares, strict=True)
        ),
    ]
    if mix.groups:
        labels = [one.name for one in mix.ingredients]
        lines += [
            "",
            "These are means; each part of the model has shares of its own:",
            "",
            f"| part | {' | '.join(labels)} |",
            f"| --- | {' | '.join('---' for _ in labels)} |",
            *(
                f"| {part} | {' | '.join(f'{shares[label]:.4f}' for label in labels)} |"
                for part, shares in group_shares(mix).items()
            ),
        ]
    if mix.base:
        lines += ["", f"Differences are those from {mix.base.source}."]
    return "\n".join([*front, "", *lines, ""])
