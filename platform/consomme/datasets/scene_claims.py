"""Judge a caption against the scene it describes: which claims are true, false, missing.

One decision is made here: a claim is one attribute of one object (shape, colour, size, position), a count, a
relation, or a drawn word. The judge reads a small English grammar and needs no model; words outside the
grammar make no claim.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from consomme.datasets.scenes import (
    COLORS,
    NUMBERS,
    POSITIONS,
    RELATIONS,
    SHAPES,
    Scene,
    SceneObject,
    plural,
    relation_holds,
)

_SINGULAR = {form: shape for shape in SHAPES for form in (shape, plural(shape))} | {
    "object": "object",
    "objects": "object",
}
_SIZE = {"small": "small", "little": "small", "tiny": "small", "large": "large", "big": "large"}
_COUNT = {word: number for number, word in enumerate(NUMBERS)}


def _any(words: object) -> str:
    return "|".join(sorted(words, key=len, reverse=True))  # type: ignore[call-overload]


_MENTION = re.compile(
    rf"(?:\b(?P<count>{_any(NUMBERS)}|a|an|the)\s+)?"
    rf"(?:\b(?P<size>{_any(_SIZE)})\s+)?"
    rf"(?:\b(?P<color>{_any(COLORS)})\s+)?"
    rf"\b(?P<shape>{_any(_SINGULAR)})\b"
    rf"(?:\s+(?:is |are )?(?:at|in|on) the (?P<position>{_any(POSITIONS)}))?"
)
_RELATION = re.compile(
    rf"^\s*(?:is |are |stands )?(?:to the )?(?P<relation>{_any(RELATIONS)})\s*$"
)
_WORD = re.compile(
    r"\b(?:word|text)\s+(?:is\s+|says\s+|reads\s+)?[\"'“]?(?P<word>[a-z]+)[\"'”]?"
    rf"(?:\s+(?:is )?(?:at|in|on) the (?P<position>{_any(POSITIONS)}))?"
)


@dataclass(frozen=True, kw_only=True)
class Claims:
    """What a caption claims of a scene, sorted into three heaps of short phrases."""

    true: tuple[str, ...]
    false: tuple[str, ...]
    missing: tuple[str, ...]
    """Facts of the scene that the caption does not state."""


class _Judge:
    """Collects verdicts while walking through one caption."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.verdicts: dict[str, bool] = {}
        self.stated: dict[int, set[str]] = {}

    def claim(self, phrase: str, holds: bool) -> None:
        self.verdicts[phrase] = holds

    def single(self, found: re.Match[str]) -> SceneObject | None:
        """Judge a mention of one object: which object is meant, and what of it is right?"""
        said = _attributes(found)
        definite = found["count"] == "the"
        candidates = [
            (_agreement(said, item), -number, number)
            for number, item in enumerate(self.scene.objects)
            if definite or number not in self.stated
        ]
        best = max(candidates, default=(0, 0, -1))
        label = " ".join(said.values())
        if best[0] < 3:
            for attribute, value in said.items():
                self.claim(f"{label}: {attribute} {value}", False)
            return None
        number = best[2]
        item = self.scene.objects[number]
        for attribute, value in said.items():
            holds = getattr(item, attribute) == value
            self.claim(f"object {number + 1}: {attribute} {value}", holds)
            self.stated.setdefault(number, set()).add(attribute)
        return item

    def several(self, found: re.Match[str]) -> None:
        """Judge a counted mention such as `two red circles`."""
        said = _attributes(found)
        members = [
            number
            for number, item in enumerate(self.scene.objects)
            if all(getattr(item, key) == value for key, value in said.items())
        ]
        number = _COUNT[found["count"]]
        self.claim(f"{found['count']} {' '.join(said.values()) or 'objects'}", len(members) == number)
        if said:
            for member in members:
                self.stated.setdefault(member, set()).update(said)

    def word(self, found: re.Match[str]) -> None:
        """Judge what the caption says is written, and where."""
        word, position = found["word"], found["position"]
        if word in ("is", "written", "none", "no"):
            return
        self.claim(f"word {word}", word == self.scene.word)
        if position:
            self.claim(f"word at {position}", position == self.scene.word_position)

    def missing(self) -> list[str]:
        """List what was not stated."""
        left = [
            f"object {number + 1}: {attribute} {getattr(item, attribute)}"
            for number, item in enumerate(self.scene.objects)
            for attribute in ("shape", "color", "size", "position")
            if attribute not in self.stated.get(number, set())
        ]
        if self.scene.word and not any(claim.startswith("word ") for claim in self.verdicts):
            left.append(f"word {self.scene.word}")
        return left


def _attributes(found: re.Match[str]) -> dict[str, str]:
    said = {
        "size": _SIZE.get(found["size"] or "", ""),
        "color": found["color"] or "",
        "shape": _SINGULAR[found["shape"]].replace("object", ""),
        "position": found["position"] or "",
    }
    return {key: value for key, value in said.items() if value}


def _agreement(said: dict[str, str], item: SceneObject) -> int:
    weights = {"shape": 4, "color": 3, "position": 2, "size": 1}
    return sum(weights[key] for key, value in said.items() if getattr(item, key) == value)


def check_caption(scene: Scene, text: str) -> Claims:
    """Sort a caption's claims into true, false and missing.

    Each mention of an object is matched to the not yet mentioned object it agrees with best (shape counts
    most, then colour, position, size); `the …` may come back to an object. A mention that agrees with
    no object in shape or colour is false in everything it says.

    Args:
        scene: The truth.
        text: Any text; case does not matter.
    """
    text = " ".join(text.lower().split())
    judge = _Judge(scene)
    mentions = list(_MENTION.finditer(text))
    previous: tuple[int, SceneObject | None] | None = None
    for found in mentions:
        if found["count"] in _COUNT and (
            found["count"] != "one" or found["shape"] in ("object", "objects")
        ):
            judge.several(found)
            previous = None
            continue
        if not _attributes(found):
            continue
        item = judge.single(found)
        if previous is not None:
            between = _RELATION.match(text[previous[0] : found.start()])
            if between:
                _judge_relation(judge.claim, previous[1], between["relation"], item)
        previous = (found.end(), item)
    for found in _WORD.finditer(text):
        judge.word(found)
    return Claims(
        true=tuple(phrase for phrase, holds in judge.verdicts.items() if holds),
        false=tuple(phrase for phrase, holds in judge.verdicts.items() if not holds),
        missing=tuple(judge.missing()),
    )


def _judge_relation(
    claim: Callable[[str, bool], None],
    first: SceneObject | None,
    relation: str,
    second: SceneObject | None,
) -> None:
    if first is None or second is None:
        claim(f"something {relation} something", False)
        return
    phrase = f"{first.color} {first.shape} {relation} {second.color} {second.shape}"
    claim(phrase, relation_holds(first, relation, second))
