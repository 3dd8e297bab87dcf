"""Caption guards: checks that reject a generated text.

A guard reads the text, the prompt and the original caption, but not the picture, so it costs
microseconds and catches failures of *generation* only. Judges check whether a caption is true;
the canary checks whether captions depend on the picture.
"""

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from consomme.base.bounds import Fraction, PositiveInt
from consomme.base.checked import Checked, raised_problems, rule
from consomme.base.schema import added
from consomme.curate.caption.refusals import is_refusal
from consomme.curate.language import check_languages, language_table, num_words, script_of
from consomme.datasets.boxes import has_only_boxes

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
    "model_output_boxes",
)
"""Every reject reason of `Guards`, in the order of the checks."""

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
"""Strings of chat templates that must not appear in a caption."""

SAME_AS_PROMPT = "prompt"
"""Value of `language` that stands for the language of the prompt."""

_MIN_ECHO_WORDS = 3
_LONGEST_WORD = 20
_LONGEST_PERIOD = 8
_MIN_PROMPT_CONFIDENCE = 0.5
"""The language of every prompt in `caption.prompts` is identified correctly above this."""

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Guards(Checked):
    """When a generated text is rejected; each guard can be switched off."""

    empty: bool = True
    """Reject texts without a word."""

    truncated: bool = True
    """Reject texts that hit the token limit."""

    template_markers: tuple[str, ...] = TEMPLATE_MARKERS
    """Strings of chat templates that must not appear; an empty list disables this guard."""

    refusal: bool = True
    """Reject refusals ("I'm sorry, I cannot ..."), in fifteen languages."""

    echo: bool = True
    """Reject texts that repeat the prompt."""

    min_words: PositiveInt | None = None
    """Minimum number of words; each character of Han and kana counts as one."""

    max_words: PositiveInt | None = None
    """Maximum number of words."""

    language: str | None = None
    """ISO 639 code of the expected language, or `prompt` for that of the prompt. Loads a table of
    about 100 MB in each process."""

    language_confidence: Fraction = 0.99
    """Reject a text if the probability of all other languages reaches this, in [0, 1]."""

    language_min_words: PositiveInt = 8
    """The language of texts with fewer words is not checked, since it can rarely be identified."""

    copy_similarity: Fraction | None = 0.95
    """Reject a text whose `similarity` to the original reaches this, in [0, 1]; 1 means the same
    words. One changed word of sixty gives 0.95."""

    max_repeat_fraction: Fraction | None = 0.4
    """Maximum share of n-grams that repeat an earlier one, in [0, 1]."""

    repeat_ngram: PositiveInt = 4
    """Words per n-gram (characters in scripts written without spaces)."""

    max_run: PositiveInt | None = 3
    """Maximum number of consecutive repetitions of a phrase."""

    boxes: bool = added(False)
    """Reject answers to prompts about places (`grounding`, `main_box`, your own with `has_boxes`)
    that name no box, or one that is none: outside of 0 to 999, or without an area."""

    @rule
    def _word_range(self) -> Iterator[str]:
        if self.min_words and self.max_words and self.min_words > self.max_words:
            yield f"min_words: found {self.min_words}, above max_words {self.max_words}"

    @rule
    def _known_language(self) -> Iterator[str]:
        if self.language not in (None, SAME_AS_PROMPT):
            yield from raised_problems(lambda: check_languages((str(self.language),)))

    def __call__(
        self,
        text: str,
        finish_reason: str,
        *,
        prompt: str,
        original: str | None,
        has_boxes: bool = False,
    ) -> str | None:
        """Return the reason to reject a generated text, or None if all checks pass.

        Args:
            text: The generated text.
            finish_reason: `stop`, or `length` if the token limit cut it off.
            prompt: The prompt, without chat template.
            original: The text that came with the picture; None if there is none.
            has_boxes: Whether the prompt asks for boxes.
        """
        words = _words(text)
        checks = (
            ("empty", self.empty and not words),
            ("truncated", self.truncated and finish_reason == "length"),
            ("template", any(marker in text for marker in self.template_markers)),
            ("refusal", self.refusal and is_refusal(text)),
            ("echo", self.echo and _is_echo(words, prompt)),
        )
        for reason, is_failed in checks:
            if is_failed:
                return f"model_output_{reason}"
        found = self._check_length(text) or self._check_content(text, words, prompt, original)
        if found is None and self.boxes and has_boxes and not has_only_boxes(text):
            return "model_output_boxes"
        return found

    def _check_length(self, text: str) -> str | None:
        if self.min_words is None and self.max_words is None:
            return None
        number = num_words(text)
        if self.min_words is not None and number < self.min_words:
            return "model_output_short"
        if self.max_words is not None and number > self.max_words:
            return "model_output_long"
        return None

    def _check_content(
        self, text: str, words: list[str], prompt: str, original: str | None
    ) -> str | None:
        if self.language is not None and self._is_foreign(text, prompt):
            return "model_output_language"
        pieces = _pieces(words)
        if self.copy_similarity is not None and original is not None:
            original_pieces = _pieces(_words(original))
            if original_pieces and similarity(pieces, original_pieces) >= self.copy_similarity:
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
        expected = _language(prompt) if self.language == SAME_AS_PROMPT else self.language
        if expected is None or not script_of(text):
            return False
        # The confidence of the best guess would not do: Chinese is easily confused with Wu, but not
        # with English.
        return bool(1 - dict(language_table().rank(text))[expected] >= self.language_confidence)


def overly_frequent_texts(
    counts: Mapping[K, int], *, max_fraction: float = 0.01, min_count: int = 20
) -> list[K]:
    """Return the texts that are suspiciously frequent in a run, the most frequent one first.

    A model that ignores the picture, or has one fallback answer, gives many pictures the same
    caption. In a small run, few repetitions are a large share, hence `min_count`. Data with few
    distinct true captions repeats them as well: raise `max_fraction` above the most frequent one's.

    Args:
        counts: Number of occurrences of each text; pass texts through `normalised_text`, or hashes
            of these, so that variants count together.
        max_fraction: Maximum share of the run for one text, in [0, 1].
        min_count: Texts with fewer occurrences are never returned.
    """
    total = sum(counts.values())
    common = [
        text
        for text, number in counts.items()
        if number >= min_count and number > max_fraction * total
    ]
    return sorted(common, key=lambda text: (-counts[text], str(text)))


def normalised_text(text: str) -> str:
    """Return a text with case folded and white space collapsed."""
    return " ".join(text.casefold().split())


def similarity(first: Sequence[str], second: Sequence[str]) -> float:
    """Return the similarity of two texts, in [0, 1]: the Dice coefficient of word trigrams.

    Trigrams capture order, which single words do not: "a circle above a star" is no copy of "a star
    above a circle". A changed word affects three trigrams, so in short texts every word matters and
    in long ones a few do not. Time is linear in the number of words, so long texts are no problem.
    The measure is symmetric: a text that contains the original and more is not similar to it.
    """
    ours, theirs = _trigrams(first), _trigrams(second)
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())


def repeated_fraction(pieces: Sequence[str], ngram: int) -> float:
    """Return the share of n-grams that occur earlier in the same text; 0 for fewer than two."""
    grams = [tuple(pieces[i : i + ngram]) for i in range(len(pieces) - ngram + 1)]
    return 1 - len(set(grams)) / len(grams) if len(grams) > 1 else 0.0


def longest_run(pieces: Sequence[str], max_period: int) -> int:
    """Return the most consecutive repetitions of a phrase of up to `max_period` pieces.

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
    """Return a prompt's language; None if it is uncertain."""
    if not script_of(prompt):
        return None
    guess, confidence = language_table().classify(prompt)
    return str(guess) if confidence >= _MIN_PROMPT_CONFIDENCE else None


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _pieces(words: list[str]) -> list[str]:
    """Split very long words into characters: scripts without spaces have no words to repeat."""
    return [p for word in words for p in (word if len(word) > _LONGEST_WORD else (word,))]


def _trigrams(pieces: Sequence[str]) -> Counter[tuple[str, ...]]:
    # Padding with two empty pieces puts the first and the last word into three trigrams as well.
    padded = ["", "", *pieces, "", ""]
    return Counter(zip(padded, padded[1:], padded[2:], strict=False))


def _is_echo(words: list[str], prompt: str) -> bool:
    prompt_words = _words(prompt)
    return len(prompt_words) >= _MIN_ECHO_WORDS and _contains(words, prompt_words)


def _contains(words: list[str], part: list[str]) -> bool:
    starts: Iterable[int] = (i for i, word in enumerate(words) if word == part[0])
    return any(words[i : i + len(part)] == part for i in starts)
