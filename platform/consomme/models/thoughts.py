"""Options of chat templates, and the empty thoughts that templates of reasoning models write.

A template that is told not to think writes an empty thought after the prompt, or before an answer,
or both, by the family. It is no part of the answer, on whichever side it stands.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from consomme.base.errors import CheckpointError

NO_THINKING: Mapping[str, bool | int | str] = {"enable_thinking": False, "thinking": False}
"""Options by which families turn thinking off, for templates that know one of them."""

_OPEN = (
    r"<think>|<thinking>|<thought>|<seed:think>|<\|channel>thought|<\|START_THINKING\|>"
    r"|\[THINK\]|◁think▷"
)
_CLOSE = (
    r"</think>|</thinking>|</thought>|</seed:think>|<channel\|>|<\|END_THINKING\|>|\[/THINK\]"
    r"|◁/think▷"
)
_THOUGHT = re.compile(rf"\s*(?:{_OPEN})?\s*(?:{_CLOSE})?\s*")
_THOUGHT_AT_END = re.compile(rf"(?:{_OPEN})\s*(?:{_CLOSE})?\s*$")


def template_options(template: Any, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a chat template is rendered with.

    Args:
        template: Of a processor or a tokenizer: a text, or texts by name.
        wanted: From the recipe; they win over `NO_THINKING`.

    Raises:
        CheckpointError: The template does not know an option of the recipe.
    """
    text = "\n".join(template.values()) if isinstance(template, Mapping) else str(template)
    for name in wanted:
        if not _knows(text, name):
            raise CheckpointError(
                f"template: found {name}, but the model's chat template has no such option; leave"
                " it out, or name one that stands in chat_template.jinja beside the model"
            )
    return {**{k: v for k, v in NO_THINKING.items() if _knows(text, k)}, **wanted}


def _knows(template: str, option: str) -> bool:
    return re.search(rf"\b{re.escape(option)}\b", template) is not None


def answer_start(prompt: str, rendered: str, answer: str) -> int | None:
    """Find where an answer begins in a rendered conversation.

    Args:
        prompt: The conversation before the answer, with the generation prompt.
        rendered: The whole conversation.
        answer: Stripped.

    Returns:
        None if the answer does not follow its prompt unchanged. Between the two there may be white
        space, which templates trim on either side, and an empty thought.
    """
    bases = [prompt, prompt.rstrip(), _THOUGHT_AT_END.sub("", prompt).rstrip()]
    base = next((one for one in bases if rendered.startswith(one)), None)
    if base is None:
        return None
    begin = len(base)
    while begin < len(rendered) and rendered[begin].isspace():
        begin += 1
    if rendered.startswith(answer, begin):
        return begin
    thought = _THOUGHT.match(rendered, len(base))
    begin = thought.end() if thought else begin
    return begin if rendered.startswith(answer, begin) else None
