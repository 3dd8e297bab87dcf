"""Judge a caption against the scene it describes: which claims are true, false, missing.

One decision is made here: a claim is one attribute of one object (shape, colour, size, position), a
count, a relation, or a drawn word. The judge reads a small English grammar and needs no model;
words outside the grammar make no claim.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
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
_RELATION = re.compile(rf"^\s*(?:is |are |stands )?(?:to the )?(?P<relation>{_any(RELATIONS)})\s*$")
_WORD = re.compile(
    r"\b(?:word|text)\s+(?:is\s+|says\s+|reads\s+)?[\"'“]?(?P<word>[a-z]+)[\"'”]?"
    rf"(?:\s+(?:is )?(?:at|in|on) the (?P<position>{_any(POSITIONS)}))?"
)

_NO_WORD = frozenset("is are written none no at in on the a an and that which of or".split())


@dataclass(frozen=True, kw_only=True)
class Claims:
    """What a caption claims of a scene, sorted into three heaps of short phrases."""

    true: tuple[str, ...]
    false: tuple[str, ...]
    missing: tuple[str, ...]
    """Facts of the scene about which the caption says nothing; what it says wrongly is `false`."""


class _Judge:
    """Collects verdicts while walking through one caption."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.verdicts: dict[str, bool] = {}
        self.stated: dict[int, set[str]] = {}

    def claim(self, phrase: str, holds: bool) -> None:
        self.verdicts[phrase] = holds

    def single(self, said: dict[str, str], number: int | None) -> SceneObject | None:
        """Judge what a mention says of the object it was matched to; of none, all is false."""
        if number is None:
            label = " ".join(said.values())
            for attribute, value in said.items():
                self.claim(f"{label}: {attribute} {value}", False)
            return None
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
        label = " ".join(said.values()) or "objects"
        self.claim(f"{found['count']} {label}", len(members) == number)
        if said:
            for member in members:
                self.stated.setdefault(member, set()).update(said)

    def word(self, found: re.Match[str]) -> None:
        """Judge what the caption says is written, and where."""
        word, position = found["word"], found["position"]
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


def _is_count(found: re.Match[str]) -> bool:
    """Whether a mention says how many there are; `one red circle` describes a circle."""
    return found["count"] in _COUNT and (
        found["count"] != "one" or found["shape"] in ("object", "objects")
    )


def _attributes(found: re.Match[str]) -> dict[str, str]:
    said = {
        "size": _SIZE.get(found["size"] or "", ""),
        "color": found["color"] or "",
        "shape": _SINGULAR[found["shape"]].replace("object", ""),
        "position": found["position"] or "",
    }
    return {key: value for key, value in said.items() if value}


def _agreement(said: dict[str, str], item: SceneObject) -> int:
    """How well a mention fits an object; 0 if it cannot be meant."""
    weights = {"shape": 4, "color": 3, "position": 2, "size": 1}
    right = sum(weights[key] for key, value in said.items() if getattr(item, key) == value)
    if right >= weights["color"]:
        return right
    return right if right == sum(weights[key] for key in said) else 0


def _match(scene: Scene, mentions: Sequence[tuple[dict[str, str], bool]]) -> list[int | None]:
    """Match mentions to objects so that the caption as a whole agrees with the scene best.

    Args:
        scene: The truth.
        mentions: What each says, and whether it is definite (`the …`): only such a mention may come
            back to an object that another one has.

    Returns:
        For each mention the index of its object, or None.
    """
    best: dict[frozenset[int], tuple[int, list[int | None]]] = {frozenset(): (0, [])}
    for said, is_definite in mentions:
        following: dict[frozenset[int], tuple[int, list[int | None]]] = {}
        for used, (score, path) in best.items():
            options: list[tuple[int, int | None]] = [
                (gain, number)
                for number, item in enumerate(scene.objects)
                if (is_definite or number not in used) and (gain := _agreement(said, item))
            ]
            for gain, number in [*options, (0, None)]:
                after = used if number is None else used | {number}
                if after not in following or score + gain > following[after][0]:
                    following[after] = (score + gain, [*path, number])
        best = following
    return max(best.values(), key=lambda found: found[0])[1]


def check_caption(scene: Scene, text: str) -> Claims:
    """Sort a caption's claims into true, false and missing.

    Mentions of objects are matched to objects so that the whole agrees best (shape counts most,
    then colour, position, size). Each object is matched once; only `the …` may come back to it.
    A mention that agrees with no object in shape, in colour, or in all it says is false in
    everything it says.

    Args:
        scene: The truth.
        text: Any text; case does not matter.
    """
    text = " ".join(text.lower().split())
    judge = _Judge(scene)
    written = [found for found in _WORD.finditer(text) if found["word"] not in _NO_WORD]
    for found in written:
        judge.word(found)
        # A written word may be the name of a shape.
        text = text[: found.start()] + " " * len(found[0]) + text[found.end() :]
    mentions = [m for m in _MENTION.finditer(text) if _is_count(m) or _attributes(m)]
    singles = [(_attributes(m), m["count"] == "the") for m in mentions if not _is_count(m)]
    matched = iter(_match(scene, singles))
    previous: tuple[int, SceneObject | None] | None = None
    for mention in mentions:
        if _is_count(mention):
            judge.several(mention)
            previous = None
            continue
        item = judge.single(_attributes(mention), next(matched))
        if previous is not None:
            between = _RELATION.match(text[previous[0] : mention.start()])
            if between:
                _judge_relation(judge.claim, previous[1], between["relation"], item)
        previous = (mention.end(), item)
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
