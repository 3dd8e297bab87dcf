"""Check a caption against the scene that it describes: true, false and missing claims.

A claim is one attribute of one object (shape, colour, size, position), a count, a relation, or a
drawn word. Claims are parsed by a small English grammar without a model; words outside the grammar
are ignored.
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
    """Claims of a caption about a scene, as short phrases."""

    true: tuple[str, ...]
    false: tuple[str, ...]
    missing: tuple[str, ...]
    """Facts of the scene that the caption does not mention; wrong ones are in `false`."""


class _ClaimChecker:
    """Collects the claims of one caption."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.verdicts: dict[str, bool] = {}
        self.stated: dict[int, set[str]] = {}

    def claim(self, phrase: str, holds: bool) -> None:
        self.verdicts[phrase] = holds

    def check_mention(self, stated: dict[str, str], number: int | None) -> SceneObject | None:
        """Check a mention against its matched object; without one, all its claims are false."""
        if number is None:
            label = " ".join(stated.values())
            for attribute, value in stated.items():
                self.claim(f"{label}: {attribute} {value}", False)
            return None
        item = self.scene.objects[number]
        for attribute, value in stated.items():
            holds = getattr(item, attribute) == value
            self.claim(f"object {number + 1}: {attribute} {value}", holds)
            self.stated.setdefault(number, set()).add(attribute)
        return item

    def check_count(self, mention: re.Match[str]) -> None:
        """Check a counted mention such as `two red circles`."""
        stated = _attributes(mention)
        members = [
            number
            for number, item in enumerate(self.scene.objects)
            if all(getattr(item, key) == value for key, value in stated.items())
        ]
        number = _COUNT[mention["count"]]
        label = " ".join(stated.values()) or "objects"
        self.claim(f"{mention['count']} {label}", len(members) == number)
        if stated:
            for member in members:
                self.stated.setdefault(member, set()).update(stated)

    def check_word(self, match: re.Match[str]) -> None:
        """Check which word the caption says is written, and where."""
        word, position = match["word"], match["position"]
        self.claim(f"word {word}", word == self.scene.word)
        if position:
            self.claim(f"word at {position}", position == self.scene.word_position)

    def missing(self) -> list[str]:
        """List the facts that were not stated."""
        unstated = [
            f"object {number + 1}: {attribute} {getattr(item, attribute)}"
            for number, item in enumerate(self.scene.objects)
            for attribute in ("shape", "color", "size", "position")
            if attribute not in self.stated.get(number, set())
        ]
        if self.scene.word and not any(claim.startswith("word ") for claim in self.verdicts):
            unstated.append(f"word {self.scene.word}")
        return unstated


def _is_count(mention: re.Match[str]) -> bool:
    """Check whether a mention states a count; `one red circle` describes a single object."""
    return mention["count"] in _COUNT and (
        mention["count"] != "one" or mention["shape"] in ("object", "objects")
    )


def _attributes(mention: re.Match[str]) -> dict[str, str]:
    stated = {
        "size": _SIZE.get(mention["size"] or "", ""),
        "color": mention["color"] or "",
        "shape": _SINGULAR[mention["shape"]].replace("object", ""),
        "position": mention["position"] or "",
    }
    return {key: value for key, value in stated.items() if value}


def _agreement(stated: dict[str, str], item: SceneObject) -> int:
    """Score how well a mention agrees with an object; 0 if it cannot refer to it."""
    weights = {"shape": 4, "color": 3, "position": 2, "size": 1}
    score = sum(weights[key] for key, value in stated.items() if getattr(item, key) == value)
    if score >= weights["color"]:
        return score
    return score if score == sum(weights[key] for key in stated) else 0


def _match(scene: Scene, mentions: Sequence[tuple[dict[str, str], bool]]) -> list[int | None]:
    """Match mentions to objects so that the total agreement with the scene is maximal.

    Args:
        scene: The scene.
        mentions: Stated attributes of each mention, and whether it is definite (`the …`): only
            definite mentions may refer to an object that is matched already.

    Returns:
        For each mention the index of its object, or None.
    """
    best: dict[frozenset[int], tuple[int, list[int | None]]] = {frozenset(): (0, [])}
    for stated, is_definite in mentions:
        following: dict[frozenset[int], tuple[int, list[int | None]]] = {}
        for used, (score, path) in best.items():
            options: list[tuple[int, int | None]] = [
                (gain, number)
                for number, item in enumerate(scene.objects)
                if (is_definite or number not in used) and (gain := _agreement(stated, item))
            ]
            for gain, number in [*options, (0, None)]:
                after = used if number is None else used | {number}
                if after not in following or score + gain > following[after][0]:
                    following[after] = (score + gain, [*path, number])
        best = following
    return max(best.values(), key=lambda scored: scored[0])[1]


def check_caption(scene: Scene, text: str) -> Claims:
    """Sort a caption's claims into true, false and missing.

    Mentions are matched to objects so that their total agreement is maximal (shape counts most,
    then colour, position, size). Each object is matched once; only `the …` may refer to it again.
    If a mention agrees with no object in shape, in colour, or in everything it states, all its
    claims are false.

    Args:
        scene: The scene.
        text: Any text; case is ignored.
    """
    text = " ".join(text.lower().split())
    checker = _ClaimChecker(scene)
    words = [match for match in _WORD.finditer(text) if match["word"] not in _NO_WORD]
    for match in words:
        checker.check_word(match)
        # Blank it out: a drawn word may be the name of a shape.
        text = text[: match.start()] + " " * len(match[0]) + text[match.end() :]
    mentions = [m for m in _MENTION.finditer(text) if _is_count(m) or _attributes(m)]
    singles = [(_attributes(m), m["count"] == "the") for m in mentions if not _is_count(m)]
    matched = iter(_match(scene, singles))
    previous: tuple[int, SceneObject | None] | None = None
    for mention in mentions:
        if _is_count(mention):
            checker.check_count(mention)
            previous = None
            continue
        item = checker.check_mention(_attributes(mention), next(matched))
        if previous is not None:
            between = _RELATION.match(text[previous[0] : mention.start()])
            if between:
                _check_relation(checker.claim, previous[1], between["relation"], item)
        previous = (mention.end(), item)
    return Claims(
        true=tuple(phrase for phrase, holds in checker.verdicts.items() if holds),
        false=tuple(phrase for phrase, holds in checker.verdicts.items() if not holds),
        missing=tuple(checker.missing()),
    )


def _check_relation(
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
