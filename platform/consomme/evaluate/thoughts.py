"""Take a model's thoughts off its answer."""

from __future__ import annotations

import re

_NAMES = "think|thinking|thought|thoughts|reasoning|seed:think"
_PAIRED = re.compile(
    rf"<(?P<name>{_NAMES})>.*?</(?P=name)>"
    r"|<\|channel>thought.*?<channel\|>"
    r"|<\|START_THINKING\|>.*?<\|END_THINKING\|>"
    r"|\[THINK\].*?\[/THINK\]|◁think▷.*?◁/think▷",
    re.DOTALL | re.IGNORECASE,
)
_CLOSED_ONLY = re.compile(
    rf"^.*(?:</(?:{_NAMES})>|<\|END_THINKING\|>|\[/THINK\]|◁/think▷)", re.DOTALL | re.IGNORECASE
)
_OPEN_ONLY = re.compile(
    rf"(?:<(?:{_NAMES})>|<\|START_THINKING\|>|\[THINK\]|◁think▷).*$", re.DOTALL | re.IGNORECASE
)
_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.DOTALL | re.IGNORECASE)


def without_thoughts(text: str) -> str:
    """Return an answer without the thoughts before it.

    Where a chat template opens the thought, the text only closes it. A thought that is not closed
    has no answer after it: the model ran out of tokens. What stands in `<answer>` is the answer.
    """
    text = _PAIRED.sub("", text)
    text = _CLOSED_ONLY.sub("", text)
    text = _OPEN_ONLY.sub("", text)
    if found := _ANSWER.findall(text):
        text = found[-1]
    return text.strip()
