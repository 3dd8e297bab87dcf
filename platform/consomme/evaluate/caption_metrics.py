"""How like the captions of people a caption is: CIDEr-D and BLEU-4.

CIDEr-D is that of COCO's evaluation, up to its tokenizer: here a word is what stands between spaces
and punctuation, English contractions are split as in the Penn Treebank, and each character of a
script without spaces is a word. BLEU is sacrebleu's.

Sources: Vedantam et al., CIDEr: Consensus-based Image Description Evaluation (2015), section 5;
Papineni et al., BLEU (2002).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from consomme.base.words import UNSPACED

CIDER_LARGEST = 10.0
"""CIDEr-D of a caption that equals all references."""

_MAX_WORDS = 4
_SIGMA = 6.0
_TOKEN = re.compile(
    rf"[{UNSPACED}]|(?:(?![{UNSPACED}])[^\W_])+(?:['’.\-](?:(?![{UNSPACED}])[^\W_])+)*"
)
_CONTRACTION = re.compile(r"(?<=\w)(n['’]t|['’](?:s|re|ve|ll|d|m))$")

Run = tuple[str, ...]


def tokens_of(caption: str) -> list[str]:
    """Return the lower-case words of a caption, without punctuation."""
    tokens = []
    for word in _TOKEN.findall(caption.lower()):
        parts = _CONTRACTION.split(word)
        tokens += [part for part in parts if part]
    return tokens


def cider_d(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Return CIDEr-D of each caption, from 0 to 10.

    Words that the references of few images hold count more. So the value of a caption depends on
    all references; those of a single image say nothing about it, and give 0.

    Args:
        captions: One per image.
        references: Captions by people of each image, one or more.
    """
    found = [[_runs(tokens_of(text)) for text in texts] for texts in references]
    holding: Counter[Run] = Counter()
    for texts in found:
        holding.update({run for runs in texts for run in runs})
    largest = math.log(len(references)) if references else 0.0
    weight = {run: largest - math.log(number) for run, number in holding.items()}
    scores = []
    for caption, texts in zip(captions, found, strict=True):
        runs = _runs(tokens_of(caption))
        alike = [_similarity(runs, one, weight, largest) for one in texts]
        scores.append(CIDER_LARGEST * math.fsum(alike) / len(alike))
    return scores


def bleu_4(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return BLEU-4 of all captions together, from 0 to 1: nearest length, no smoothing.

    Args:
        captions: One per image.
        references: Captions by people of each image, one or more.
    """
    from sacrebleu.metrics.bleu import BLEU

    most = max(map(len, references), default=0)
    streams = [
        [" ".join(tokens_of(texts[k])) if k < len(texts) else None for texts in references]
        for k in range(most)
    ]
    metric = BLEU(tokenize="none", smooth_method="none", force=True)
    said = [" ".join(tokens_of(caption)) for caption in captions]
    return float(metric.corpus_score(said, streams).score) / 100  # type: ignore[arg-type]


def _runs(tokens: Sequence[str]) -> Counter[Run]:
    return Counter(
        tuple(tokens[k : k + size])
        for size in range(1, _MAX_WORDS + 1)
        for k in range(len(tokens) - size + 1)
    )


def _similarity(
    said: Counter[Run], meant: Counter[Run], weight: Mapping[Run, float], largest: float
) -> float:
    """Return the mean cosine over lengths of runs, with counts clipped and length penalised."""
    total = 0.0
    num_said, num_meant = (sum(n for run, n in c.items() if len(run) == 2) for c in (said, meant))
    penalty = math.exp(-((num_said - num_meant) ** 2) / (2 * _SIGMA**2))
    for size in range(1, _MAX_WORDS + 1):
        one, other = (
            {run: n * weight.get(run, largest) for run, n in counts.items() if len(run) == size}
            for counts in (said, meant)
        )
        norms = math.hypot(*one.values()) * math.hypot(*other.values())
        both = one.keys() & other.keys()
        shared = math.fsum(min(one[run], other[run]) * other[run] for run in both)
        total += shared / norms if norms else 0.0
    return total / _MAX_WORDS * penalty
