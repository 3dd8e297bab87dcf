"""Length, language and script of the assistant's text; of a document, of all its text.

py3langid (n-gram counts, 139 languages) returns a language with a confidence. Below
`min_confidence` the language is `und` (ISO 639: undetermined); the confidence is stored for other
thresholds. Short texts can rarely be identified: of the 8,265 names of the shipped Noto emoji in
five languages (5 to 16 characters) the best guess is right for 58 %. With a threshold of 0.5 it
names 35 % of them, 98.8 % of those correctly; "a large red circle at the top left" has a confidence
of 0.93. A text takes about 0.04 ms, loading the table 0.7 s and 100 MB.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, ClassVar

import pyarrow as pa

from consomme.base.bounds import Fraction
from consomme.base.checked import Checked
from consomme.curate.language import UNKNOWN, language_table, num_words, script_of
from consomme.curate.tag.tagger import TAGGERS, ModelOpener, TagColumns, TagFunction, TaggerInput


@TAGGERS.register("text")
@dataclass(frozen=True, kw_only=True)
class Text(Checked):
    """Characters, words, language and script of the assistant's text; pictures do not count."""

    min_confidence: Fraction = 0.5
    """Minimum confidence, in [0, 1]; below it the language is `und`. 0: always the best guess."""

    languages: tuple[str, ...] = ()
    """ISO 639 codes of the languages that can occur, such as [en, zh]; restricting them identifies
    more short texts. Empty: all known languages, including `zxx` for no language."""

    model: ClassVar[str] = ""
    needs_pictures: ClassVar[bool] = False

    @property
    def data_version(self) -> str:
        """Versions of the tables of languages and of letters."""
        return f"py3langid {version('py3langid')}, Unicode {unicodedata.unidata_version}"

    @property
    def columns(self) -> Mapping[str, pa.DataType]:
        """Return lengths, the language with the confidence of the best guess, and the script."""
        return {
            "num_chars": pa.int32(),
            "num_words": pa.int32(),
            "language": pa.string(),
            "language_confidence": pa.float32(),
            "script": pa.string(),
        }

    def open(self, open_model: ModelOpener) -> TagFunction:
        """Load the table of languages."""
        identifier = language_table(self.languages)

        def language(text: str) -> tuple[str, float]:
            script = script_of(text)
            guess, confidence = identifier.classify(text) if script else (UNKNOWN, 0.0)
            return (guess if confidence >= self.min_confidence else UNKNOWN), float(confidence)

        def tag(inputs: Sequence[TaggerInput]) -> TagColumns:
            texts = [item.assistant_text.strip() for item in inputs]
            guesses = [language(text) for text in texts]
            columns: dict[str, Sequence[Any]] = {
                "num_chars": [len(text) for text in texts],
                "num_words": [num_words(text) for text in texts],
                "language": [name for name, _ in guesses],
                "language_confidence": [confidence for _, confidence in guesses],
                "script": [script_of(text) for text in texts],
            }
            return TagColumns(columns=columns, problems={})

        return tag
