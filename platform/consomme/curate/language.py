"""Tell the language and the script of short texts, and count words in any script."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from consomme.base.errors import RecipeError

UNKNOWN = "und"
"""What ISO 639 calls a language that is not known."""


_SPACELESS = (
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3038-\u303b\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
"""Han characters and kana, which are written without spaces between words."""


_WORD = re.compile(rf"[{_SPACELESS}]|[^\W_{_SPACELESS}]+(?:['’.-][^\W_{_SPACELESS}]+)*")


@cache
def language_table(languages: tuple[str, ...] = ()) -> Any:
    """Load py3langid's table, once per choice of languages; some 100 MB.

    Args:
        languages: ISO 639 codes to choose from; none means all that are known.

    Returns:
        A `LanguageIdentifier`: `classify` names the best guess, `rank` all, with probabilities.

    Raises:
        RecipeError: A code is not known.
    """
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    check_languages(languages)
    identifier: Any = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    if languages:
        identifier.set_languages(languages)
    return identifier


def check_languages(languages: Sequence[str]) -> None:
    """Refuse codes of languages that are not in the table.

    Raises:
        RecipeError: Some are not; names them, and those there are.
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
    """Count words; of Han and kana each character counts as one, as there are no spaces.

    "don't", "3.5" and "t-shirt" are one word each. Thai, Lao, Khmer and Burmese have no spaces
    either, but words of many characters: there, use the number of characters.
    """
    return len(_WORD.findall(text))


def script_of(text: str) -> str:
    """Return the script of most letters by its Unicode name, such as `latin`; empty for no letters.

    Hiragana and katakana count together as `kana`. Of equals, the first in the alphabet.
    """
    found = Counter(script for mark in text if (script := _script(mark)))
    return min(found, key=lambda script: (-found[script], script)) if found else ""


@cache
def _script(mark: str) -> str:
    """Read the script out of a letter's name: `CYRILLIC SMALL LETTER A` is Cyrillic."""
    if not mark.isalpha():
        return ""
    # Bold, full-width and raised letters are letters of their script in another form.
    plain = unicodedata.normalize("NFKC", mark)[0]
    first = re.split(r"[ -]", unicodedata.name(plain, ""))[0].lower()
    return _SCRIPTS.get(first, first)


_SCRIPTS = {"cjk": "han", "ideographic": "han", "hiragana": "kana", "katakana": "kana"}
