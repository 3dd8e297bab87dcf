"""Chat messages of naive references, independent of consomme's own layout of conversations."""

from collections.abc import Sequence
from typing import Any

from consomme.base.sample import Turn


def to_messages(
    turns: Sequence[Turn], *, has_image: bool, has_parts: bool = True
) -> list[dict[str, Any]]:
    """Convert turns of text to chat messages; one image goes first in the first user turn."""
    messages: list[dict[str, Any]] = []
    for turn in turns:
        if not has_parts:
            messages.append({"role": turn.role, "content": turn.text})
            continue
        parts: list[dict[str, str]] = [{"type": "text", "text": turn.text}]
        if has_image and turn.role == "user" and not any(m["role"] == "user" for m in messages):
            parts.insert(0, {"type": "image"})
        messages.append({"role": turn.role, "content": parts})
    return messages
