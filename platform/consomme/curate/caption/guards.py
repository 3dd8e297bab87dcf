"""Caption guards: reasons not to believe a text a model wrote.

The one decision: a guard looks at the text alone (and at what was asked), never at the picture, so
it costs microseconds and can only catch failures of *writing*. Whether the caption is true is the
judges' business; whether anything looked at the picture is the canary's.
"""

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from consomme.base.bounds import Fraction, PositiveInt
from consomme.base.checked import Checked, raised_problems, rule
from consomme.curate.caption.refusals import is_refusal
from consomme.curate.language import check_languages, language_table, num_words, script_of

GUARD_REASONS = (
    "model_output_empty",
    "model_output_truncated",
    "model_output_template",
    "model_output_refusal",
    "model_output_echo",
    "model_output_short",
    "model_output_long",
    "model_output_language",
    "model_output_copy",
    "model_output_repetition",
)
"""Every reason that `Guards` can give, in the order they are tried."""

TEMPLATE_MARKERS = (
    "<image>",
    "<|",
    "|>",
    "</s>",
    "USER:",
    "ASSISTANT:",
    "[INST]",
    "<user>",
    "<assistant>",
)
"""Strings of chat templates that have no place in a caption."""

OF_THE_PROMPT = "prompt"
"""Written for `language`: that of the prompt."""

_MIN_ECHO_WORDS = 3
_LONGEST_WORD = 20
_LONGEST_PERIOD = 8
_SURE_OF_PROMPT = 0.5
"""Every prompt in `curate.prompts` is named rightly with more than this."""

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Guards(Checked):
    """When a written text is not used; each guard can be switched off."""

    empty: bool = True
    """Refuse texts without any word."""

    truncated: bool = True
    """Refuse texts that hit the token limit."""

    template_markers: tuple[str, ...] = TEMPLATE_MARKERS
    """Strings of chat templates that must not appear; none switches it off."""

    refusal: bool = True
    """Refuse excuses instead of captions ("I'm sorry, I cannot ..."), in some fifteen languages."""

    echo: bool = True
    """Refuse texts that say the prompt again."""

    min_words: PositiveInt | None = None
    """Fewest words; of Han and kana each character counts as one."""

    max_words: PositiveInt | None = None
    """Most words."""

    language: str | None = None
    """ISO 639 code of the language that is wanted, or `prompt` for that of the prompt. Loads a
    table of some 100 MB in each process."""

    language_confidence: Fraction = 0.99
    """How sure the table has to be that a text is in none but other languages, in [0, 1]."""

    language_min_words: PositiveInt = 8
    """Texts of fewer words are not judged by their language: it can rarely be told."""

    copy_similarity: Fraction | None = 0.95
    """Likeness from which on a text is a copy of the original one, in [0, 1], see `similarity`; 1
    is the same words. One changed word of sixty makes 0.95."""

    max_repeat_fraction: Fraction | None = 0.4
    """Largest share of n-grams that may be repeats of an earlier one, in [0, 1]."""

    repeat_ngram: PositiveInt = 4
    """Words per n-gram (characters in scripts written without spaces)."""

    max_run: PositiveInt | None = 3
    """How often a phrase may follow itself directly."""

    @rule
    def _word_range(self) -> Iterator[str]:
        if self.min_words and self.max_words and self.min_words > self.max_words:
            yield f"min_words: found {self.min_words}, above max_words {self.max_words}"

    @rule
    def _known_language(self) -> Iterator[str]:
        if self.language not in (None, OF_THE_PROMPT):
            yield from raised_problems(lambda: check_languages((str(self.language),)))

    def __call__(
        self, text: str, finish_reason: str, *, prompt: str, original: str | None
    ) -> str | None:
        """Return why a written text is not to be used, or None if nothing speaks against it.

        Args:
            text: What the model wrote.
            finish_reason: `stop`, or `length` if the token limit cut it off.
            prompt: What was asked, without chat template.
            original: The text that came with the picture; None if there is none.
        """
        words = _words(text)
        checks = (
            ("empty", self.empty and not words),
            ("truncated", self.truncated and finish_reason == "length"),
            ("template", any(marker in text for marker in self.template_markers)),
            ("refusal", self.refusal and is_refusal(text)),
            ("echo", self.echo and _is_echo(words, prompt)),
        )
        for reason, is_so in checks:
            if is_so:
                return f"model_output_{reason}"
        return self._by_length(text) or self._by_content(text, words, prompt, original)

    def _by_length(self, text: str) -> str | None:
        if self.min_words is None and self.max_words is None:
            return None
        number = num_words(text)
        if self.min_words is not None and number < self.min_words:
            return "model_output_short"
        if self.max_words is not None and number > self.max_words:
            return "model_output_long"
        return None

    def _by_content(
        self, text: str, words: list[str], prompt: str, original: str | None
    ) -> str | None:
        if self.language is not None and self._is_foreign(text, prompt):
            return "model_output_language"
        pieces = _pieces(words)
        if self.copy_similarity is not None and original is not None:
            there = _pieces(_words(original))
            if there and similarity(pieces, there) >= self.copy_similarity:
                return "model_output_copy"
        limit = self.max_repeat_fraction
        if limit is not None and repeated_fraction(pieces, self.repeat_ngram) > limit:
            return "model_output_repetition"
        if self.max_run is not None and longest_run(pieces, _LONGEST_PERIOD) > self.max_run:
            return "model_output_repetition"
        return None

    def _is_foreign(self, text: str, prompt: str) -> bool:
        if num_words(text) < self.language_min_words:
            return False
        wanted = _language(prompt) if self.language == OF_THE_PROMPT else self.language
        if wanted is None or not script_of(text):
            return False
        # Not how sure the best guess is: Chinese is hard to tell from Wu, and easily from English.
        return bool(1 - dict(language_table().rank(text))[wanted] >= self.language_confidence)


def overly_frequent_texts(
    counts: Mapping[K, int], *, max_fraction: float = 0.01, min_count: int = 20
) -> list[K]:
    """Return the texts that are suspiciously common in a run, the most common one first.

    A model that does not see, or has one answer for all it does not know, says the same thing of
    many pictures. Of a small run, few repetitions are a large share, hence `min_count`. Data with
    few different true captions repeats them too: raise `max_fraction` above the commonest one's.

    Args:
        counts: How often each text was written; give texts as `squeezed` makes them, or hashes of
            these, so that spellings count together.
        max_fraction: Largest share of the run that one text may have, in [0, 1].
        min_count: Texts written less often are never suspicious.
    """
    total = sum(counts.values())
    common = [
        text
        for text, number in counts.items()
        if number >= min_count and number > max_fraction * total
    ]
    return sorted(common, key=lambda text: (-counts[text], str(text)))


def normalised_text(text: str) -> str:
    """Return a text without differences of case and white space."""
    return " ".join(text.casefold().split())


def similarity(first: Sequence[str], second: Sequence[str]) -> float:
    """Return how much two texts have in common, in [0, 1]: Dice's measure on triples of words.

    Triples see order, which words alone do not: "a circle above a star" is no copy of "a star above
    a circle". A changed word costs three of them, so in short texts each word matters and in long
    ones few do not. Time is linear in the words, so a text of 200 kB does no harm. It is symmetric:
    a text that holds the original and more says something new.
    """
    ours, theirs = _triples(first), _triples(second)
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())


def repeated_fraction(pieces: Sequence[str], ngram: int) -> float:
    """Return the share of n-grams that occurred before in the same text; 0 for fewer than two."""
    grams = [tuple(pieces[i : i + ngram]) for i in range(len(pieces) - ngram + 1)]
    return 1 - len(set(grams)) / len(grams) if len(grams) > 1 else 0.0


def longest_run(pieces: Sequence[str], max_period: int) -> int:
    """Return how often the most insistent phrase of at most `max_period` pieces follows itself.

    "red red red" gives 3 (period 1), "a cat on a cat on a cat on" gives 3 (period 3).
    """
    longest = min(len(pieces), 1)
    for period in range(1, min(max_period, len(pieces) // 2) + 1):
        matches = 0
        for i in range(period, len(pieces)):
            matches = matches + 1 if pieces[i] == pieces[i - period] else 0
            longest = max(longest, matches // period + 1)
    return longest


@lru_cache(maxsize=1024)
def _language(prompt: str) -> str | None:
    """Name a prompt's language; None if it is not clear."""
    if not script_of(prompt):
        return None
    guess, confidence = language_table().classify(prompt)
    return str(guess) if confidence >= _SURE_OF_PROMPT else None


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _pieces(words: list[str]) -> list[str]:
    """Split very long words into characters: scripts without spaces have no words to repeat."""
    return [p for word in words for p in (word if len(word) > _LONGEST_WORD else (word,))]


def _triples(pieces: Sequence[str]) -> Counter[tuple[str, ...]]:
    # Two empty pieces on either side: the first and the last word are in three triples as well.
    padded = ["", "", *pieces, "", ""]
    return Counter(zip(padded, padded[1:], padded[2:], strict=False))


def _is_echo(words: list[str], prompt: str) -> bool:
    asked = _words(prompt)
    return len(asked) >= _MIN_ECHO_WORDS and _contains(words, asked)


def _contains(words: list[str], part: list[str]) -> bool:
    starts: Iterable[int] = (i for i, word in enumerate(words) if word == part[0])
    return any(words[i : i + len(part)] == part for i in starts)
