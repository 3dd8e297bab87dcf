"""The blind-image canary: detects during a run that captions do not depend on the pictures.

A few samples are captioned twice more, once with a blank picture and once with another sample's. A
model that uses the picture then writes another caption; one whose chat template drops the picture
writes the same. Neither an error nor a score would show it, since the captions read well. This
module decides how many unchanged captions are statistically conclusive.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from consomme.base.errors import DataError
from consomme.base.hashing import mix_hash
from consomme.curate.caption.guards import normalised_text
from consomme.curate.checks import check_fraction

# Shapes: N samples of a unit.

CanaryKind = Literal["blank", "swap"]
"""Replacement for a canary's picture: a blank one, or another sample's."""

CONFIDENCE = 0.99
"""Confidence required to stop a run."""

_PICTURES: Mapping[CanaryKind, str] = MappingProxyType(
    {"blank": "a blank picture", "swap": "another sample's picture"}
)
_CHOICE, _ORDER = 7701, 7702


def choose_canaries(hash_N: NDArray[np.uint64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Select canaries by hash only, so that they are the same with any number of workers.

    Args:
        hash_N: Hashes of the sample ids.
        fraction: Share of canaries, in [0, 1].
        seed: Another seed selects others.
    """
    check_fraction(fraction)
    drawn_N = mix_hash(mix_hash(hash_N, seed), _CHOICE) >> np.uint64(11)
    is_canary_N: NDArray[np.bool_] = drawn_N.astype(np.float64) / 2.0**53 < fraction
    return is_canary_N


def choose_partners(
    hash_N: NDArray[np.uint64],
    canaries: Sequence[int],
    picture_N: NDArray[np.uint64] | None = None,
) -> dict[int, int]:
    """Choose the sample whose picture each canary of a unit is shown.

    Canaries exchange their pictures, each with one other; if there is only one, or all have the
    same picture, another sample of the unit provides its own.

    Args:
        hash_N: Hashes of the sample ids.
        canaries: Indices of the canaries.
        picture_N: Hashes of the pictures, if several samples may have the same one: a canary that
            is shown an equal picture rightly gets the same caption.

    Returns:
        Index of the canary -> index of its partner; canaries without a possible partner are left
        out.
    """
    pictures_N = np.arange(len(hash_N)) if picture_N is None else picture_N
    order_N = mix_hash(hash_N, _ORDER)
    # Canaries with the same picture are adjacent; shifted by the largest group, none gets its own
    # picture unless a group is more than half.
    ring = sorted(canaries, key=lambda n: (pictures_N[n], order_N[n]))
    sizes = np.unique(pictures_N[ring], return_counts=True)[1]
    shift = int(sizes.max()) if len(sizes) else 0
    others = sorted(range(len(hash_N)), key=lambda n: order_N[n])
    partners = {}
    for at, canary in enumerate(ring):
        candidates = (ring[(at + shift) % len(ring)], *others)
        partner = next((n for n in candidates if pictures_N[n] != pictures_N[canary]), None)
        if partner is not None:
            partners[canary] = partner
    return partners


def same_caption(first: str, second: str) -> bool:
    """Whether two captions are equal except for case and white space."""
    return normalised_text(first) == normalised_text(second)


@dataclass(frozen=True, kw_only=True)
class CanaryVerdict:
    """The result of the canaries so far."""

    num: int
    """Number of canaries captioned twice."""

    num_same: int
    """Canaries with the same caption both times."""

    max_same: float
    """Maximum allowed share with the same caption."""

    confidence: float
    """Confidence of the test."""

    @property
    def at_least(self) -> float:
        """Return the lower bound of the true share of unchanged captions, at `confidence`."""
        return lower_bound(self.num_same, self.num, self.confidence)

    @property
    def is_blind(self) -> bool:
        """Whether captions do not depend on the picture, with the required confidence."""
        if not self.num_same or self.max_same == 1:
            return False
        return self.max_same == 0 or (
            _tail(self.num_same, self.num, self.max_same) < 1 - self.confidence
        )

    def explain(self, kind: CanaryKind) -> str:
        """Return a message with the counts, likely causes, and what to do."""
        return (
            f"of {self.num} captions {self.num_same} stayed the same when the model was shown"
            f" {_PICTURES[kind]} instead. With {self.confidence:.0%} confidence that is at least"
            f" {math.floor(100 * self.at_least)}% of all; {self.max_same:.0%} is what is allowed."
            + (
                " The captions do not depend on the pictures. Likely causes: the chat template"
                " drops the picture, the prompt has no placeholder for it, the checkpoint has no"
                " vision part or lost its projector, or the processor makes every picture the"
                " same. Caption one picture with this model by hand and look at the tokens it is"
                " given; mend the model folder and start the run again. If the data has few"
                " different captions, so that repeating them is right, raise the limit."
                if self.is_blind
                else " That is not enough to be sure that pictures do not matter."
            )
        )


def judge_canaries(
    num: int, num_same: int, max_same: float = 0.8, confidence: float = CONFIDENCE
) -> CanaryVerdict:
    """Test whether captions depend on the picture, by the number of unchanged captions.

    Args:
        num: Canaries captioned twice.
        num_same: Canaries with the same caption both times.
        max_same: Maximum allowed share of these. Not near 0: a sample's own picture may be blank,
            and data with few distinct captions rightly repeats them.
        confidence: A run whose true share is exactly `max_same` is called blind with a probability
            of at most `1 - confidence` per test.

    Raises:
        DataError: The counts contradict each other.
    """
    check_fraction(max_same)
    if not 0 <= num_same <= num:
        raise DataError(f"found {num_same} canaries that stayed the same, of {num}; expected fewer")
    return CanaryVerdict(num=num, num_same=num_same, max_same=max_same, confidence=confidence)


def lower_bound(successes: int, total: int, confidence: float) -> float:
    """Return the exact one-sided lower bound of a proportion (Clopper and Pearson, 1934).

    It is the proportion at which at least this many successes have a probability of
    `1 - confidence`. At 99 %, 21 of 21 give more than 0.8.

    Returns:
        In [0, 1]; 0 without a success.
    """
    if successes == 0:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        is_rare = _tail(successes, total, middle) < 1 - confidence
        low, high = (middle, high) if is_rare else (low, middle)
    return low


def _tail(successes: int, total: int, share: float) -> float:
    """Return the probability of at least this many successes (binomial upper tail)."""
    # In logarithms: binomial coefficients overflow floats from about a thousand trials on.
    return math.fsum(
        math.exp(
            math.lgamma(total + 1)
            - math.lgamma(k + 1)
            - math.lgamma(total - k + 1)
            + k * math.log(share)
            + (total - k) * math.log1p(-share)
        )
        for k in range(successes, total + 1)
    )
