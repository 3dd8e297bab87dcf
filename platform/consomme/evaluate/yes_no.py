"""Read yes and no, and the figures of POPE, MME and HallusionBench."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Hashable, Sequence

from consomme.evaluate.thoughts import without_thoughts

_ENGLISH = {
    True: frozenset("yes yeah yep yup true correct".split()),
    False: frozenset("no nope nah false incorrect".split()),
}
_FIRST = {
    True: _ENGLISH[True] | frozenset("ja oui si sí sim tak да так evet نعم हाँ हां có ya".split()),
    False: _ENGLISH[False]
    | frozenset("not nein non não nie нет ні hayır لا नहीं không tidak".split()),
}
"""Words that answer a question if they come first."""

_UNSPACED = re.compile(
    r"(?P<no>不是|不对|不對|不正确|不正確|没有|沒有|否|错误|いいえ|いえ|違|아니)"
    r"|(?P<yes>是|对|對|正确|正確|有|はい|ええ|예|네)"
)
"""The same of scripts that put no spaces between words."""


def read_yes_no(answer: str) -> bool | None:
    """Read whether an answer says yes; None if it says neither, or both.

    The first word decides if it is a yes or a no. Otherwise the answer has to have words of one of
    them only: `The answer is yes.`, `There is no dog.`
    """
    text = unicodedata.normalize("NFKC", without_thoughts(answer)).casefold()
    text = re.sub(r"\bnot (?:true|correct)\b", "false", text)
    words = re.findall(r"\w+", text)
    if not words:
        return None
    for value, first in _FIRST.items():
        if words[0] in first:
            return value
    if found := _UNSPACED.match(words[0]):
        return found["yes"] is not None
    has_yes, has_no = (not _ENGLISH[value].isdisjoint(words) for value in (True, False))
    return has_yes if has_yes != has_no else None


def pope_figures(said: Sequence[bool | None], right: Sequence[bool]) -> dict[str, float]:
    """Return precision, recall and F1 of yes, and the share of yes; arXiv 2305.10355.

    An answer that says neither counts as a no, as in POPE's own evaluation.
    """
    yes = [value is True for value in said]
    hits = sum(a and b for a, b in zip(yes, right, strict=True))
    precision = hits / sum(yes) if any(yes) else 0.0
    recall = hits / sum(right) if any(right) else 0.0
    both = precision + recall
    return {
        "f1": 2 * precision * recall / both if both else 0.0,
        "precision": precision,
        "recall": recall,
        "yes_share": sum(yes) / len(yes) if yes else 0.0,
    }


def group_accuracy(verdicts: Sequence[float], groups: Sequence[Hashable]) -> float:
    """Return the share of groups all of whose answers are right.

    MME's accuracy+ has the questions about an image as its groups, HallusionBench those about a
    figure, and those with one question.
    """
    is_right: dict[Hashable, bool] = {}
    for verdict, group in zip(verdicts, groups, strict=True):
        is_right[group] = is_right.get(group, True) and verdict >= 1
    return sum(is_right.values()) / len(is_right) if is_right else 0.0
