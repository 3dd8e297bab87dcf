"""Which texts quote a text of a benchmark: shared runs of words.

A text quotes another one if it holds most of its runs of `num_words` words. Case, punctuation and
white space do not count. In scripts that put no spaces between words, each character is a word.

What stands in many texts of a benchmark, such as "Answer with the letter of the option", is how the
benchmark asks and no sign of anything, so runs that more than `MAX_SHARED` of its texts hold are
left out. A text with fewer than `num_words` words is not compared: "How many dogs are there?"
stands in every data set.

Sources: Brown et al., Language Models are Few-Shot Learners (2020), appendix C, for runs of words;
Chowdhery et al., PaLM (2022), section 8, for a share of them, 70 % of those of 8 words.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from consomme.base.words import words_of

# Shapes: T texts, G runs of words, each of one text.
MAX_SHARED = 10
"""Texts that may hold the same run of words before it is taken for the benchmark's own words."""


def run_hashes(text: str, num_words: int) -> set[int]:
    """Return a 64-bit hash of each different run of so many words."""
    words = words_of(text)
    return {
        int.from_bytes(hashlib.blake2b(" ".join(run).encode(), digest_size=8).digest(), "little")
        for run in (words[k : k + num_words] for k in range(len(words) - num_words + 1))
    }


@dataclass(frozen=True, kw_only=True)
class QuoteIndex:
    """The runs of words of all texts, to look others up in."""

    num_words: int
    min_fraction: float
    run_G: NDArray[np.uint64]  # noqa: N815
    """Ascending."""

    text_G: NDArray[np.int32]  # noqa: N815
    """Index of the text that holds the run."""

    num_runs_T: NDArray[np.int32]  # noqa: N815
    """Different runs of each text; 0 for texts that are not compared."""

    @classmethod
    def of(
        cls, groups: Iterable[Sequence[str]], *, num_words: int, min_fraction: float
    ) -> QuoteIndex:
        """Index texts, which are numbered in their order.

        Args:
            groups: The texts of each benchmark.
            num_words: Words of a run.
            min_fraction: Share of a text's runs that another one holds if it quotes it.
        """
        runs: list[NDArray[np.uint64]] = []
        texts: list[NDArray[np.int32]] = []
        num_texts = 0
        for group in groups:
            found = [run_hashes(text, num_words) for text in group]
            run = np.array([one for some in found for one in some], dtype=np.uint64)
            text = np.repeat(np.arange(len(found), dtype=np.int32), [len(some) for some in found])
            _, place, counts = np.unique(run, return_inverse=True, return_counts=True)
            # Texts that are asked again and again are the same text, not the words of a benchmark.
            is_own = _num_different(place, text, group, len(counts))[place] <= MAX_SHARED
            runs.append(run[is_own])
            texts.append(text[is_own] + np.int32(num_texts))
            num_texts += len(group)
        run_G = np.concatenate([np.zeros(0, np.uint64), *runs])
        text_G = np.concatenate([np.zeros(0, np.int32), *texts])
        order = np.argsort(run_G, kind="stable")
        return cls(
            num_words=num_words,
            min_fraction=min_fraction,
            run_G=run_G[order],
            text_G=text_G[order],
            num_runs_T=np.bincount(text_G, minlength=num_texts).astype(np.int32),
        )

    def quoted(self, texts: Iterable[str]) -> list[tuple[int, float]]:
        """Return which indexed texts are quoted in these together, and which share of each."""
        held = {one for text in texts for one in run_hashes(text, self.num_words)}
        if not held or not len(self.run_G):
            return []
        wanted = np.array(sorted(held), dtype=np.uint64)
        begin = np.searchsorted(self.run_G, wanted, "left")
        end = np.searchsorted(self.run_G, wanted, "right")
        hits = [self.text_G[b:e] for b, e in zip(begin, end, strict=True) if b < e]
        if not hits:
            return []
        number, count = np.unique(np.concatenate(hits), return_counts=True)
        fraction = count / self.num_runs_T[number]
        is_quoted = fraction >= self.min_fraction
        pairs = zip(number[is_quoted].tolist(), fraction[is_quoted].tolist(), strict=True)
        return [(one, share) for one, share in pairs]


def _num_different(
    place: NDArray[np.int64], text: NDArray[np.int32], group: Sequence[str], num_runs: int
) -> NDArray[np.int64]:
    """Count the different texts that hold each run."""
    names: dict[tuple[str, ...], int] = {}
    same = np.array(
        [names.setdefault(tuple(words_of(one)), len(names)) for one in group], dtype=np.int64
    )
    pairs = np.unique(place * max(1, len(names)) + same[text]) if len(place) else place
    return np.bincount(pairs // max(1, len(names)), minlength=num_runs)
