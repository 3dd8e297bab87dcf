"""The blind-image canary: notices while a run goes on that nothing looks at the pictures.

One decision is made here: from how many canaries on one is certain. A few samples are captioned
twice more, once with a blank picture and once with another sample's. A model that sees writes
something else then; one whose template drops the picture writes the same. Neither an error nor a
score would tell: its captions read well.
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
from consomme.curate.caption.guards import squeezed
from consomme.curate.checks import check_fraction

# Shapes: N samples of a unit.

CanaryKind = Literal["blank", "swap"]
"""What a canary is shown instead of its picture: a blank one, or another sample's."""

CONFIDENCE = 0.99
"""How sure one has to be to stop a run."""

_LOOKS: Mapping[CanaryKind, str] = MappingProxyType(
    {"blank": "a blank picture", "swap": "another sample's picture"}
)
_CHOICE, _ORDER = 7701, 7702


def choose_canaries(hash_N: NDArray[np.uint64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Say which samples are canaries, by their hashes alone: the same on any number of workers.

    Args:
        hash_N: Hashes of the sample ids.
        fraction: Share of canaries, in [0, 1].
        seed: Another seed chooses others.
    """
    check_fraction(fraction)
    drawn_N = mix_hash(mix_hash(hash_N, seed), _CHOICE) >> np.uint64(11)
    chosen_N: NDArray[np.bool_] = drawn_N.astype(np.float64) / 2.0**53 < fraction
    return chosen_N


def choose_partners(
    hash_N: NDArray[np.uint64],
    canaries: Sequence[int],
    picture_N: NDArray[np.uint64] | None = None,
) -> dict[int, int]:
    """Say whose picture each canary of a unit is shown.

    Canaries lend each other their pictures, each to one other; where there is only one, or all have
    the same picture, any other sample of the unit lends its own.

    Args:
        hash_N: Hashes of the sample ids.
        canaries: Which samples are canaries.
        picture_N: Hashes of the pictures, if several samples may have the same one: a canary that
            is shown its own picture again says the same, and rightly.

    Returns:
        Index of the lender by the canary's; without those that nobody can lend another picture.
    """
    pictures_N = np.arange(len(hash_N)) if picture_N is None else picture_N
    order_N = mix_hash(hash_N, _ORDER)
    # Those with the same picture stand together; shifted by the largest group, nobody meets its own
    # as long as no group is more than half.
    ring = sorted(canaries, key=lambda n: (pictures_N[n], order_N[n]))
    sizes = np.unique(pictures_N[ring], return_counts=True)[1]
    shift = int(sizes.max()) if len(sizes) else 0
    others = sorted(range(len(hash_N)), key=lambda n: order_N[n])
    partners = {}
    for at, canary in enumerate(ring):
        lenders = (ring[(at + shift) % len(ring)], *others)
        partner = next((n for n in lenders if pictures_N[n] != pictures_N[canary]), None)
        if partner is not None:
            partners[canary] = partner
    return partners


def is_same(first: str, second: str) -> bool:
    """Say whether two captions are the same but for case and white space."""
    return squeezed(first) == squeezed(second)


@dataclass(frozen=True, kw_only=True)
class CanaryVerdict:
    """What the canaries have shown so far."""

    num: int
    """Canaries captioned twice."""

    num_same: int
    """Those that said the same both times."""

    max_same: float
    """Largest share that may say the same."""

    confidence: float
    """How sure one has to be."""

    @property
    def at_least(self) -> float:
        """Return the share that stays the same at least, as surely as `confidence` says."""
        return lower_bound(self.num_same, self.num, self.confidence)

    @property
    def is_blind(self) -> bool:
        """Say whether captions certainly do not depend on the picture."""
        if not self.num_same or self.max_same == 1:
            return False
        return self.max_same == 0 or (
            _tail(self.num_same, self.num, self.max_same) < 1 - self.confidence
        )

    def explain(self, how: CanaryKind) -> str:
        """Say what was seen, why that may be, and what to do."""
        return (
            f"of {self.num} captions {self.num_same} stayed the same when the model was shown"
            f" {_LOOKS[how]} instead. With {self.confidence:.0%} confidence that is at least"
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
    """Judge by how many canaries said the same with another picture.

    Args:
        num: Canaries captioned twice.
        num_same: Those that said the same.
        max_same: Largest share that may. Not near 0: a blank picture may be what it is shown
            already, and data with few different captions repeats them rightly.
        confidence: A run of which exactly `max_same` stay the same is called blind with a chance of
            `1 - confidence` at most, each time one looks.

    Raises:
        DataError: The counts contradict each other.
    """
    check_fraction(max_same)
    if not 0 <= num_same <= num:
        raise DataError(f"found {num_same} canaries that stayed the same, of {num}; expected fewer")
    return CanaryVerdict(num=num, num_same=num_same, max_same=max_same, confidence=confidence)


def lower_bound(successes: int, total: int, confidence: float) -> float:
    """Return the exact one-sided lower bound of a share (Clopper and Pearson, 1934).

    It is the share at which so many successes, or more, have a chance of `1 - confidence`. At
    99 %, 21 of 21 give more than 0.8.

    Returns:
        In [0, 1]; 0 for no success.
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
    """Return the chance of at least so many successes."""
    # In logarithms: the coefficients leave the range of floats from about a thousand on.
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
