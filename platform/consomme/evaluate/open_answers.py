"""How right a free answer is: one metric per kind of benchmark, each from 0, wrong, to 1, right.

| metric | benchmarks | definition |
|---|---|---|
| `exact` | short answers | equal after NFKC, case, white space and outer punctuation |
| `vqa` | VQAv2, TextVQA, OK-VQA | mean over the answers of min(1, others that agree / 3), after \
the official normalisation; arXiv 1505.00468 |
| `anls` | DocVQA, InfographicVQA, ST-VQA | 1 - distance / length of the best answer, 0 below 0.5; \
arXiv 1907.00490 |
| `relaxed` | ChartQA | numbers, with commas or not, within 5 %; other text equal without case; \
arXiv 2203.10244 |
| `number` | MathVista | the last number of the answer, rounded as the right one is |
| `contains` | OCRBench | any right answer occurs in the text, without case; arXiv 2305.07895 |
| `contains_formula` | OCRBench, handwritten formulas | the same without white space, with case |
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation

from rapidfuzz.distance import Levenshtein

from consomme.base.own_modules import claim
from consomme.evaluate.metrics import exact_match
from consomme.evaluate.thoughts import without_thoughts

RELAXED_TOLERANCE = 0.05
ANLS_THRESHOLD = 0.5
VQA_AGREEING = 3
"""Annotators who have to agree with an answer that is wholly right."""

_NUMBERS = {
    word: str(number)
    for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}
_ARTICLES = frozenset(("a", "an", "the"))

_CONTRACTED = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've"
    " hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll let's ma'am"
    " mightn't mightn't've might've mustn't must've needn't o'clock oughtn't shan't she'd've"
    " she's should've shouldn't somebody'd somebody'll somebody's someone'd someone'll"
    " someone's something'd something'll that's there'd there're there's they'd they'll"
    " they're they've 'twas wasn't we'd've weren't we've what'll what're what's what've when's"
    " where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't"
    " would've wouldn't y'all you'd you'd've you'll you're you've"
).split()
_CONTRACTIONS = {word.replace("'", ""): word for word in _CONTRACTED}
"""Word without its apostrophe -> as it is written."""

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),(?=\d)")
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d*\.?\d+)(?:[eE][-+]?\d+)?%?")


def exact(answer: str, truths: Sequence[str]) -> float:
    """Whether an answer is one of the right ones, normalised."""
    return float(exact_match(answer, truths))


def vqa(answer: str, truths: Sequence[str]) -> float:
    """Accuracy of VQA over the answers of several annotators, usually ten.

    Each annotator is left out in turn, and the answer is compared with those of the others. A
    single right answer, as some data sets have it, is simply compared.
    """
    said = vqa_normalise(answer)
    right = [vqa_normalise(truth) for truth in truths]
    if len(right) == 1:
        return float(said == right[0])
    agreeing = right.count(said)
    needed = min(VQA_AGREEING, len(right) - 1)
    shares = [min(1.0, (agreeing - (truth == said)) / needed) for truth in right]
    return math.fsum(shares) / len(shares)


def vqa_normalise(text: str) -> str:
    """Normalise as VQA's evaluation does: case, punctuation, articles, numbers, contractions."""
    given = text = " ".join(text.split()).lower()
    has_comma_in_number = _COMMA_IN_NUMBER.search(given) is not None
    for mark in _PUNCTUATION:
        is_apart = f"{mark} " in given or f" {mark}" in given or has_comma_in_number
        text = text.replace(mark, "" if is_apart else " ")
    text = _PERIOD.sub("", text)
    words = [_NUMBERS.get(word, word) for word in text.split()]
    words = [word for word in words if word not in _ARTICLES]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words)


def anls(answer: str, truths: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity: of the most similar right answer."""
    return max(_similarity(answer, truth) for truth in truths)


def _similarity(answer: str, truth: str) -> float:
    one, other = (" ".join(text.lower().split()) for text in (answer, truth))
    longest = max(len(one), len(other))
    distance = Levenshtein.distance(one, other) / longest if longest else 0.0
    return 1.0 - distance if distance < ANLS_THRESHOLD else 0.0


def relaxed(answer: str, truths: Sequence[str]) -> float:
    """Whether a number is within 5 % of a right one, or text equals a right one without case."""
    return float(any(_is_close(answer, truth) for truth in truths))


def _is_close(answer: str, truth: str) -> bool:
    said, right = _chart_number(answer), _chart_number(truth)
    if said is not None and right:
        return abs(said - right) <= RELAXED_TOLERANCE * abs(right)
    return _bare(answer) == _bare(truth)


def _bare(text: str) -> str:
    return " ".join(text.lower().split()).removesuffix(".")


def _chart_number(text: str) -> float | None:
    """Read a number; a percentage is its hundredth."""
    text = text.strip().removesuffix(".").strip()
    is_share = text.endswith("%")
    try:
        value = float(text.removesuffix("%").replace(",", ""))
    except ValueError:
        return None
    if not math.isfinite(value):
        return None
    return value / 100 if is_share else value


def number(answer: str, truths: Sequence[str]) -> float:
    """Whether the last number of an answer, rounded as a right one is, is that one.

    A right answer that is no number, such as a list, is compared as text.
    """
    found = _NUMBER.findall(answer.replace("−", "-"))
    for truth in truths:
        right = _decimal(truth)
        if right is None:
            if exact(answer, [truth]):
                return 1.0
            continue
        said = _decimal(found[-1]) if found else None
        if said is not None and _rounded(said, right) == right:
            return 1.0
    return 0.0


def _decimal(text: str) -> Decimal | None:
    try:
        value = Decimal(text.strip().removesuffix("%").replace(",", "").replace("−", "-"))
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


def _rounded(value: Decimal, like: Decimal) -> Decimal:
    """Round to as many places as another number is written with."""
    exponent = like.as_tuple().exponent
    places = min(0, exponent) if isinstance(exponent, int) else 0
    try:
        return value.quantize(Decimal(1).scaleb(places), rounding=ROUND_HALF_EVEN)
    except InvalidOperation:
        return value


def contains(answer: str, truths: Sequence[str]) -> float:
    """Whether any right answer occurs in the text, without case and line breaks."""
    said = " ".join(answer.lower().split())
    return float(any(" ".join(truth.lower().split()) in said for truth in truths))


def contains_formula(answer: str, truths: Sequence[str]) -> float:
    """Whether any right formula occurs in the text, whatever white space is in them."""
    said = "".join(answer.split())
    return float(any("".join(truth.split()) in said for truth in truths))


Metric = Callable[[str, Sequence[str]], float]

METRICS: dict[str, Metric] = {
    "exact": exact,
    "vqa": vqa,
    "anls": anls,
    "relaxed": relaxed,
    "number": number,
    "contains": contains,
    "contains_formula": contains_formula,
}
"""Name in recipes -> metric of an answer, given the right ones (at least one)."""


def register_metric(name: str) -> Callable[[Metric], Metric]:
    """Register a metric of a user's module.

    Args:
        name: In recipes: `{name: open, metric: NAME, …}`.

    Raises:
        RecipeError: The name exists.
    """

    def add(metric: Metric) -> Metric:
        claim("metric", name, is_taken=name in METRICS, forget=lambda: METRICS.pop(name, None))
        METRICS[name] = metric
        return metric

    return add


def judge(metric: str, answer: str, truths: Sequence[str]) -> float:
    """Judge an answer, without the thoughts before it, by a metric of `METRICS`."""
    said = without_thoughts(answer)
    # The words of some right answers are all left out by a normalisation; no answer is not right.
    return METRICS[metric](said, truths) if said else 0.0
