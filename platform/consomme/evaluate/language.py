"""Benchmarks of language alone, without a file: what words belong to names of Unicode's CLDR.

They show whether a model that is trained on images has lost its language, and serve as guards. No
image is shown; the model writes nothing, likelihoods decide. Names and keywords are those of the
embedded emoji (`consomme.datasets.emoji`), whose pictures are not used.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from consomme.base.bounds import NonNegativeInt, PositiveInt
from consomme.base.checked import Checked
from consomme.base.sample import Turn
from consomme.datasets import emoji
from consomme.evaluate.benchmark import BENCHMARKS, BenchmarkItem, accuracy_figures, mean
from consomme.evaluate.disjoint import name_of
from consomme.evaluate.metrics import interval_of_mean

NUM_OPTIONS = 4
_LETTERS = "ABCD"
_MIN_LETTERS = 3


@dataclass(frozen=True, kw_only=True)
class WordQuestion:
    """A name, its words, and words that belong to others."""

    name: str
    words: tuple[str, ...]
    """Keywords of the name that do not occur in it."""

    options: tuple[str, ...]
    """One of them and words of other names, in the order of their letters."""

    right: int
    """Which option belongs to the name."""


@cache
def word_questions() -> tuple[WordQuestion, ...]:
    """Return a question for each name that has words of its own, in Unicode order."""
    known: dict[str, tuple[str, ...]] = {}
    every: dict[str, frozenset[str]] = {}
    for one in emoji.load(emoji.HELD_OUT_STYLE):
        # Names with a colon are variants and flags, whose keywords are codes.
        if ":" in one.name or one.name in known:
            continue
        every[one.name] = frozenset(one.keywords)
        known[one.name] = tuple(
            word
            for word in one.keywords
            if word.isascii()
            and word.isalpha()
            and word.islower()
            and len(word) >= _MIN_LETTERS
            and word not in one.name.lower()
        )
    words = sorted({word for some in known.values() for word in some})
    questions = []
    for name, own in known.items():
        if not own:
            continue
        rng = random.Random(f"words-{name}")
        others = [word for word in words if word not in every[name] and word not in name.lower()]
        options = [rng.choice(own), *rng.sample(others, NUM_OPTIONS - 1)]
        right = options[0]
        rng.shuffle(options)
        questions.append(
            WordQuestion(name=name, words=own, options=tuple(options), right=options.index(right))
        )
    return tuple(questions)


@dataclass(frozen=True, kw_only=True)
class _OfLanguage(Checked):
    """What both benchmarks share."""

    not_identity: ClassVar[tuple[str, ...]] = ("label",)
    max_tokens: ClassVar[int] = 0

    every: PositiveInt = 4
    """Take each n-th name, of about 1,100."""

    first: NonNegativeInt = 0
    """Index of the first one: with the same `every`, others are other questions."""

    label: str = ""
    """Name in tables; empty: the registered name."""

    def _questions(self) -> tuple[WordQuestion, ...]:
        return word_questions()[self.first :: self.every]

    def data_version(self) -> str:
        """Return a hash of the names and words."""
        return hashlib.sha256(repr(self._questions()).encode()).hexdigest()

    def question_names(self) -> list[frozenset[str]]:
        """Name the questions; see `consomme.evaluate.disjoint`."""
        return [frozenset([name_of("words", one.name)]) for one in self._questions()]


@BENCHMARKS.register("emoji_words")
@dataclass(frozen=True, kw_only=True)
class EmojiWords(_OfLanguage):
    """Which of four words belongs to a name, by the likelihood of each; no image is shown."""

    def items(self) -> list[BenchmarkItem]:
        """A request for each name."""
        return [
            BenchmarkItem(
                turns=(Turn(role="user", content=f'Which word belongs to "{one.name}"?'),),
                images=(),
                truth=one.options[one.right],
            )
            for one in self._questions()
        ]

    def candidates(self, number: int) -> Mapping[str, str]:
        """Return the words by letter."""
        return dict(zip(_LETTERS, self._questions()[number].options, strict=True))

    def choose(self, nlls: Mapping[str, float], number: int) -> str:
        """Return the letter of the word that is most likely by character."""
        options = self.candidates(number)
        return min(nlls, key=lambda letter: nlls[letter] / len(options[letter]))

    def verdicts(self, answers: Sequence[str]) -> list[float]:
        """1 where the word is the right one."""
        return [
            float(answer == _LETTERS[one.right])
            for answer, one in zip(answers, self._questions(), strict=True)
        ]

    def outcomes(self, answers: Sequence[str]) -> list[float]:
        """The same: each question is asked once."""
        return self.verdicts(answers)

    def measure(self, answers: Sequence[str]) -> dict[str, float]:
        """Accuracy with its interval; a quarter is chance."""
        return accuracy_figures(self.verdicts(answers)) | {
            "chance_fraction": 1 / NUM_OPTIONS,
            "num_answers_empty": float(list(answers).count("")),
        }


@BENCHMARKS.register("emoji_glosses")
@dataclass(frozen=True, kw_only=True)
class EmojiGlosses(_OfLanguage):
    """How likely short texts are, "NAME: WORD, WORD"; perplexity by character, without an image."""

    def _text(self, number: int) -> str:
        one = self._questions()[number]
        return f"{one.name}: {', '.join(one.words)}"

    def items(self) -> list[BenchmarkItem]:
        """A request for each text."""
        turns = (Turn(role="user", content="Write a name and words that belong to it."),)
        return [
            BenchmarkItem(turns=turns, images=(), truth=self._text(number))
            for number in range(len(self._questions()))
        ]

    def candidates(self, number: int) -> Mapping[str, str]:
        """Return the text."""
        return {"nll": self._text(number)}

    def choose(self, nlls: Mapping[str, float], number: int) -> str:
        """Return the nll in nats."""
        del number
        return json.dumps(nlls)

    def verdicts(self, answers: Sequence[str]) -> list[float]:
        """Probability per character: the geometric mean; 0 where the model cannot be asked."""
        return [
            math.exp(-json.loads(answer)["nll"] / len(self._text(number))) if answer else 0.0
            for number, answer in enumerate(answers)
        ]

    def outcomes(self, answers: Sequence[str]) -> list[float]:
        """The same: each text is asked about once."""
        return self.verdicts(answers)

    def measure(self, answers: Sequence[str]) -> dict[str, float]:
        """Mean probability per character, with its interval, and perplexity over all texts."""
        shares = self.verdicts(answers)
        low, high = interval_of_mean(shares)
        known = [
            (json.loads(answer)["nll"], len(self._text(number)))
            for number, answer in enumerate(answers)
            if answer
        ]
        nats, characters = (sum(values) for values in zip(*known, strict=True)) if known else (0, 1)
        return {
            "character_probability_fraction": mean(shares),
            "character_probability_low_fraction": low,
            "character_probability_high_fraction": high,
            "bits_per_character": nats / characters / math.log(2),
            "character_perplexity": math.exp(nats / characters),
            "num_questions": float(len(shares)),
            "num_answers_empty": float(list(answers).count("")),
        }
