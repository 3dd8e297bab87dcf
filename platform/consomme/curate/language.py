"""Identify language and script of short texts, and count words in any script."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from consomme.base.errors import RecipeError

UNKNOWN = "und"
"""ISO 639 code of an undetermined language."""


_SPACELESS = (
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3038-\u303b\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
"""Han characters and kana, which are written without spaces between words."""


_WORD = re.compile(rf"[{_SPACELESS}]|[^\W_{_SPACELESS}]+(?:['’.-][^\W_{_SPACELESS}]+)*")


@cache
def language_table(languages: tuple[str, ...] = ()) -> Any:
    """Load py3langid's table, once per set of languages; about 100 MB.

    Args:
        languages: ISO 639 codes to choose from; empty means all known languages.

    Returns:
        A `LanguageIdentifier`: `classify` returns the best guess, `rank` all, with probabilities.

    Raises:
        RecipeError: A code is unknown.
    """
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    check_languages(languages)
    identifier: Any = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    if languages:
        identifier.set_languages(languages)
    return identifier


def check_languages(languages: Sequence[str]) -> None:
    """Check that codes of languages are in the table.

    Raises:
        RecipeError: Some are not; the message names them, and the known ones.
    """
    known = _known_languages() if languages else frozenset()
    unknown = sorted(set(languages) - known)
    if unknown:
        raise RecipeError(
            f"languages: {', '.join(unknown)} not known; expected some of"
            f" {', '.join(sorted(known))}"
        )


@cache
def _known_languages() -> frozenset[str]:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return frozenset(LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True).labels)


def num_words(text: str) -> int:
    """Count words; each character of Han and kana, which have no spaces, counts as one.

    "don't", "3.5" and "t-shirt" are one word each. Thai, Lao, Khmer and Burmese have no spaces
    either, but words of several characters; use the number of characters for them.
    """
    return len(_WORD.findall(text))


def script_of(text: str) -> str:
    """Return the script of most letters by its Unicode name, such as `latin`; empty for no letters.

    Hiragana and katakana count together as `kana`. Ties go to the first in alphabetical order.
    """
    counts = Counter(script for char in text if (script := _script(char)))
    return min(counts, key=lambda script: (-counts[script], script)) if counts else ""


@cache
def _script(char: str) -> str:
    """Return the script from a letter's Unicode name: `CYRILLIC SMALL LETTER A` is Cyrillic."""
    if not char.isalpha():
        return ""
    # Bold, full-width and superscript letters are compatibility forms of their script's letters.
    plain = unicodedata.normalize("NFKC", char)[0]
    first = re.split(r"[ -]", unicodedata.name(plain, ""))[0].lower()
    return _SCRIPTS.get(first, first)


_SCRIPTS = {"cjk": "han", "ideographic": "han", "hiragana": "kana", "katakana": "kana"}
