"""Hard negatives: captions that differ in little from a true one, made by rule from any caption.

A model that sees only which words occur cannot tell them from the true caption. Seven rules: the
four shuffles of ARO, and swap, replace and add as in SugarCrepe. ARO finds nouns and adjectives by
a tagger; here words are told apart by short lists and their places: of words in a row that are none
of the listed function words and verbs, the last one is a noun and those before it are adjectives.
That is wrong for a part of English, so a rule may leave a caption true; how often it does is
measured on scenes, where claims can be checked.

Sources: ARO, arXiv 2210.01936, and its released perturbations; SugarCrepe, arXiv 2306.14610, whose
captions a language model wrote and people checked.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from consomme.base.suggest import did_you_mean

ARO_SHUFFLES = (
    "shuffle_nouns_and_adj",
    "shuffle_allbut_nouns_and_adj",
    "shuffle_within_trigrams",
    "shuffle_trigrams",
)
"""The four of COCO-Order and Flickr30k-Order."""

_FUNCTION_WORDS = frozenset(
    "a an the this that these those some any each every no one two three four five six seven eight"
    " nine ten many several few and or but nor while as if than of in on at by to from with without"
    " into onto over under above below behind beside between near next for about against along"
    " across around after before during through inside outside off up down out there here it its"
    " he she they them his her their him we our you your i my who which what where when whose not"
    " very too so also other another both all same such only just is are was were be been being"
    " has have had do does did can could will would may might must should".split()
)
_VERBS = frozenset(
    "sits stands lies holds wears rides walks runs looks plays eats drinks jumps flies hangs reads"
    " shows contains has says goes swims sleeps carries throws hits catches leans sit stand lie"
    " hold wear ride walk run look play eat drink jump fly hang show contain parked".split()
)
_COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "pink", "black", "white", "brown")
_OPPOSITES: Mapping[str, str] = {
    one: other
    for pair in (
        "left right", "above below", "over under", "top bottom", "inside outside", "before after",
        "with without", "small large", "big little", "tall short", "old young", "open closed",
        "front back",
    )
    for one, other in (pair.split(), pair.split()[::-1])
}  # fmt: skip
_RELATIONS = frozenset("left right above below over under top bottom inside outside".split())
_NOUNS = ("dog", "cat", "car", "tree", "chair", "ball", "bird", "table", "book", "bottle")
_TOKEN = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]+")
_TRIES = 8
"""Shuffles that leave the caption as it is are tried again so many times."""


@dataclass(frozen=True, kw_only=True)
class Words:
    """Words to replace by and to add, in a fixed order."""

    nouns: tuple[str, ...] = _NOUNS
    adjectives: tuple[str, ...] = _COLORS

    @classmethod
    def of(cls, captions: Iterable[str]) -> Words:
        """Collect the nouns and adjectives of captions, so that negatives speak of like things."""
        nouns: dict[str, None] = {}
        adjectives: dict[str, None] = {}
        for caption in captions:
            tokens = _tokens(caption)
            for at, kind in _kinds(tokens).items():
                (nouns if kind == "noun" else adjectives)[tokens[at].lower()] = None
        return cls(
            nouns=tuple(sorted(nouns)) or _NOUNS, adjectives=tuple(sorted(adjectives)) or _COLORS
        )


def negative(kind: str, caption: str, sample_id: str, words: Words | None = None) -> str | None:
    """Return a caption changed by one rule; None if the rule finds nothing to change.

    The same caption of the same sample always becomes the same text.

    Args:
        kind: One of `NEGATIVES`.
        caption: A true caption.
        sample_id: Of its sample.
        words: What may take the place of others; None takes a short list.

    Raises:
        KeyError: There is no such rule.
    """
    tokens = _tokens(caption)
    rule = NEGATIVES[kind]
    rng = random.Random(f"{kind}\n{sample_id}\n{caption}")
    for _ in range(_TRIES):
        found = rule(list(tokens), rng, words or Words())
        if found is not None and [t.lower() for t in found] != [t.lower() for t in tokens]:
            return _joined(found)
    return None


def negatives(
    caption: str, sample_id: str, kinds: Sequence[str], words: Words | None = None
) -> dict[str, str]:
    """Return the caption changed by each of some rules, those that change it; all different."""
    found: dict[str, str] = {}
    for kind in kinds:
        text = negative(kind, caption, sample_id, words)
        if text is not None and text not in found.values():
            found[kind] = text
    return found


def _tokens(caption: str) -> list[str]:
    return _TOKEN.findall(caption)


def _joined(tokens: Sequence[str]) -> str:
    """Join words by spaces, and put no space before a mark of punctuation or after a bracket."""
    text = " ".join(tokens)
    text = re.sub(r"\s+([.,;:!?)\]}])", r"\1", text)
    return re.sub(r"([(\[{])\s+", r"\1", text)


def _is_content(token: str) -> bool:
    word = token.lower()
    return (
        token[0].isalpha()
        and word not in _FUNCTION_WORDS
        and word not in _VERBS
        and not (len(word) > 4 and word.endswith(("ing", "ed")))
    )


def _kinds(tokens: Sequence[str]) -> dict[int, str]:
    """Return index -> `noun` or `adjective`: of a row of content words the last one is the noun."""
    is_content = [_is_content(t) and not _is_relation(tokens, at) for at, t in enumerate(tokens)]
    return {
        at: "adjective" if at + 1 < len(tokens) and is_content[at + 1] else "noun"
        for at in range(len(tokens))
        if is_content[at]
    }


def _is_relation(tokens: Sequence[str], at: int) -> bool:
    """Whether `left` or `right` is a relation, `a dog left of a cat`, and no place."""
    if tokens[at].lower() not in ("left", "right") or [*tokens, ""][at + 1].lower() != "of":
        return False
    return not at or tokens[at - 1].lower() not in ("the", "top", "bottom", "upper", "lower", "far")


def _at(tokens: Sequence[str], kind: str) -> list[int]:
    return [at for at, one in _kinds(tokens).items() if one == kind]


def _permuted(tokens: list[str], places: Sequence[int], rng: random.Random) -> None:
    values = [tokens[at] for at in places]
    rng.shuffle(values)
    for at, value in zip(places, values, strict=True):
        tokens[at] = value


def _shuffle_nouns_and_adj(tokens: list[str], rng: random.Random, _: Words) -> list[str]:
    for kind in ("noun", "adjective"):
        _permuted(tokens, _at(tokens, kind), rng)
    return tokens


def _shuffle_others(tokens: list[str], rng: random.Random, _: Words) -> list[str]:
    content = _kinds(tokens)
    _permuted(tokens, [at for at in range(len(tokens)) if at not in content], rng)
    return tokens


def _trigrams(tokens: Sequence[str]) -> list[list[str]]:
    return [list(tokens[at : at + 3]) for at in range(0, len(tokens), 3)]


def _shuffle_within_trigrams(tokens: list[str], rng: random.Random, _: Words) -> list[str]:
    parts = _trigrams(tokens)
    for part in parts:
        rng.shuffle(part)
    return [token for part in parts for token in part]


def _shuffle_trigrams(tokens: list[str], rng: random.Random, _: Words) -> list[str]:
    parts = _trigrams(tokens)
    rng.shuffle(parts)
    return [token for part in parts for token in part]


def _class_of(token: str) -> str:
    """Return what an adjective is about, so that a color does not take the place of a size."""
    word = token.lower()
    return "color" if word in _COLORS else "measure" if word in _OPPOSITES else "other"


def _swap(kind: str) -> Rule:
    """Exchange two different words of a kind, those of two things; words of place stay."""

    def rule(tokens: list[str], rng: random.Random, _: Words) -> list[str] | None:
        nouns = _at(tokens, "noun")
        places = [at for at in _at(tokens, kind) if tokens[at].lower() not in _RELATIONS]

        def thing(at: int) -> int:
            return next((noun for noun in nouns if noun >= at), len(tokens))

        pairs = [
            (a, b)
            for k, a in enumerate(places)
            for b in places[k + 1 :]
            if tokens[a].lower() != tokens[b].lower()
            and thing(a) != thing(b)
            and _class_of(tokens[a]) == _class_of(tokens[b])
        ]
        if not pairs:
            return None
        a, b = rng.choice(pairs)
        tokens[a], tokens[b] = tokens[b], tokens[a]
        return tokens

    return rule


def _replace(kind: str) -> Rule:
    """Replace a word of a kind by another one; an adjective rather by its opposite or a color."""

    def rule(tokens: list[str], rng: random.Random, words: Words) -> list[str] | None:
        is_noun = kind == "noun"
        # A word of place is a relation, which has a rule of its own.
        places = [at for at in _at(tokens, kind) if tokens[at].lower() not in _RELATIONS]
        if not places:
            return None
        at = rng.choice(places)
        old = tokens[at].lower()
        others = words.nouns if is_noun else words.adjectives
        if not is_noun and old in _OPPOSITES:
            others = (_OPPOSITES[old],)
        elif not is_noun and old in _COLORS:
            others = tuple(one for one in words.adjectives if one in _COLORS) or _COLORS
        said = {token.lower() for token in tokens}
        others = tuple(one for one in others if one not in said and one not in _RELATIONS)
        if not others:
            return None
        tokens[at] = rng.choice(others)
        return tokens

    return rule


def _replace_relation(tokens: list[str], rng: random.Random, _: Words) -> list[str] | None:
    places = [at for at, token in enumerate(tokens) if token.lower() in _RELATIONS]
    if not places:
        return None
    at = rng.choice(places)
    tokens[at] = _OPPOSITES[tokens[at].lower()]
    return tokens


def _add_adjective(tokens: list[str], rng: random.Random, words: Words) -> list[str] | None:
    places = [at for at in _at(tokens, "noun") if tokens[at].lower() not in _RELATIONS]
    said = {token.lower() for token in tokens}
    others = [one for one in words.adjectives if one not in said and one not in _RELATIONS]
    if not places or not others:
        return None
    at = rng.choice(places)
    return [*tokens[:at], rng.choice(others), *tokens[at:]]


def _add_object(tokens: list[str], rng: random.Random, words: Words) -> list[str] | None:
    said = {token.lower() for token in tokens}
    others = [one for one in words.nouns if one not in said and one not in _RELATIONS]
    if not others:
        return None
    noun = rng.choice(others)
    end = len(tokens) if tokens and tokens[-1][0].isalnum() else len(tokens) - 1
    article = "an" if noun[0] in "aeiou" else "a"
    return [*tokens[:end], "and", article, noun, *tokens[end:]]


Rule = Callable[[list[str], random.Random, Words], "list[str] | None"]

NEGATIVES: Mapping[str, Rule] = {
    "shuffle_nouns_and_adj": _shuffle_nouns_and_adj,
    "shuffle_allbut_nouns_and_adj": _shuffle_others,
    "shuffle_within_trigrams": _shuffle_within_trigrams,
    "shuffle_trigrams": _shuffle_trigrams,
    "swap_obj": _swap("noun"),
    "swap_att": _swap("adjective"),
    "replace_obj": _replace("noun"),
    "replace_att": _replace("adjective"),
    "replace_rel": _replace_relation,
    "add_obj": _add_object,
    "add_att": _add_adjective,
}
"""Rules by name: the shuffles are called as in ARO, the others as the parts of SugarCrepe."""


def rule_name_problems(kinds: Sequence[str]) -> Iterator[str]:
    """Yield what is wrong with the names of rules in a recipe's `kinds`."""
    for kind in kinds:
        if kind not in NEGATIVES:
            yield (
                f"kinds: unknown rule {kind!r}{did_you_mean(kind, NEGATIVES)}; expected some of"
                f" {', '.join(NEGATIVES)}"
            )
    if not kinds:
        yield f"kinds: found none, expected some of {', '.join(NEGATIVES)}"
