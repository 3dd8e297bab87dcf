"""Which of the six main objects of web pictures a caption is about, by a table of words.

In a run of adjacent listed words only the last one counts, as in English compounds: "coffee shop"
is a building, "dog food" is food, "apple tree" is a plant. The object that is named most often is
the main one; of equals, the first named.

Of the 1,653 names of the shipped Noto emoji 53 % get one of the six: 486 are people (or faces), 145
animals, 114 food, 65 text, 35 buildings and 33 plants. The rest are vehicles, tools, clocks, arrows
and the like.

Source: POINTS, arXiv 2409.04828, appendix E, balances a data set by these objects. The paper
does not say how it found them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import pyarrow as pa

from consomme.base.checked import Checked, rule
from consomme.curate.tag.object_words import HINTS, IRREGULAR, OTHER, WORDS
from consomme.curate.tag.tagger import TAGGERS, ModelOpener, TagColumns, TagFunction, TaggerInput

NONE = "other"
"""Main object of a caption that names none of them."""

Phrase = tuple[str, ...]
Lexicon = Mapping[Phrase, str]
"""Phrase of words in the singular -> the object that it names."""


@TAGGERS.register("objects")
@dataclass(frozen=True, kw_only=True)
class Objects(Checked):
    """Which object a caption is about: person, text, building, food, animal, plant, or other.

    Uses a table of English words; other languages get `other`. Source: POINTS, appendix E.
    """

    words: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Additional words: object -> nouns in the singular. They override the table and may add
    objects to the six; `other: [...]` removes words."""

    model: ClassVar[str] = ""
    needs_pictures: ClassVar[bool] = False

    @rule
    def _words_are_nouns(self) -> Iterator[str]:
        for name, words in self.words.items():
            empty = [word for word in words if not _tokens(word)]
            if not name.strip() or empty:
                yield f"words: found {name!r}: {list(words)}; expected an object and English nouns"

    @property
    def data_version(self) -> str:
        """Hash of the table."""
        text = json.dumps([WORDS, HINTS, OTHER, IRREGULAR], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def columns(self) -> Mapping[str, pa.DataType]:
        """Return the main object, and all objects in the order in which they are named."""
        return {"object": pa.string(), "objects": pa.list_(pa.string())}

    def open(self, open_model: ModelOpener) -> TagFunction:
        """Build the lexicons."""
        lexicons = build_lexicons(self.words)

        def tag(inputs: Sequence[TaggerInput]) -> TagColumns:
            objects_of = [objects_in(item.assistant_text, lexicons) for item in inputs]
            return TagColumns(
                columns={
                    "object": [main_object(objects) for objects in objects_of],
                    "objects": [list(dict.fromkeys(objects)) for objects in objects_of],
                },
                problems={},
            )

        return tag


def build_lexicons(words: Mapping[str, Sequence[str]]) -> tuple[Lexicon, Lexicon]:
    """Build the lexicons of names and of hints from the table and additional words."""
    names = {_phrase(word): obj for obj, text in WORDS.items() for word in text.split(",")}
    names |= {_phrase(word): NONE for word in OTHER.split(",")}
    extra = {_phrase(word): obj for obj, nouns in words.items() for word in nouns}
    hints = {_phrase(word): obj for obj, text in HINTS.items() for word in text.split(",")}
    return names | extra, {phrase: obj for phrase, obj in hints.items() if phrase not in extra}


def main_object(objects: Sequence[str]) -> str:
    """Return the object named most often, of equals the first; `other` if there is none."""
    # A counter keeps the order of first mention.
    return Counter(objects).most_common(1)[0][0] if objects else NONE


def objects_in(text: str, lexicons: tuple[Lexicon, Lexicon]) -> list[str]:
    """Return the objects that a text names, in order, with repetitions.

    Args:
        text: A caption.
        lexicons: From `build_lexicons`; the second is used only if the first finds nothing.
    """
    for lexicon in lexicons:
        matches = [name for part in _parts(text) for name in _named(part, lexicon)]
        if matches:
            return [name for name in matches if name != NONE]
    return []


def _named(tokens: Sequence[str], lexicon: Lexicon) -> list[str]:
    """Match the longest listed phrases from left to right; of adjacent ones the last counts."""
    longest = max(map(len, lexicon))
    matches: list[tuple[int, str]] = []
    at = 0
    while at < len(tokens):
        for size in range(min(longest, len(tokens) - at), 0, -1):
            name = lexicon.get(tuple(tokens[at : at + size]))
            if name is None:
                continue
            if matches and matches[-1][0] == at:
                matches.pop()
            matches.append((at + size, name))
            at += size
            break
        else:
            at += 1
    return [name for _, name in matches]


def _parts(text: str) -> list[list[str]]:
    """Split a text at punctuation, and each part into words in the singular."""
    return [_tokens(part) for part in re.split(r"[^\w\s'’.-]|[.](?=\s|$)|\s-\s", text)]


def _tokens(text: str) -> list[str]:
    words = re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)?", text.casefold())
    return [singular(re.sub(r"['’]s$", "", word)) for word in words]


def _phrase(text: str) -> Phrase:
    return tuple(_tokens(text))


def singular(word: str) -> str:
    """Remove a plural ending; other words may lose letters as well, as they do in the table."""
    if word in IRREGULAR:
        return IRREGULAR[word]
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("ches", "shes", "sses", "xes", "zes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word
