"""Which samples go, once it is known which of their pictures are copies.

Samples are decided about from the best to the worst. A group is a picture that stands for its
copies, and these. A picture of a sample is taken if a sample that was kept before has a picture of
the same group; what the sample itself holds twice is not taken by itself. The rule says how many
pictures of a sample have to be taken for it to go:

| rule | a sample goes if | what is kept |
|---|---|---|
| `all_copies` | all of its pictures are taken | every group; a picture may recur beside others |
| `any_copy` | one of them is taken | no group twice; pictures beside a copy go with it |
| `first_copy` | its first picture is taken | no group twice as the first picture of a sample |

A sample without pictures stays. With one picture per sample the rules are the same, and what
stays is what stands for each group.

With `all_copies` the picture that stands for a group always stays, so every picture of a sample
that goes was compared with one that stays. With the others its sample may go for another picture.
Then the best sample of the group that is left takes its place, and the worse ones were compared
with the picture that went.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from consomme.curate.dedup.copies import Duplicates
from consomme.curate.dedup.hash_tables import Index

# Shapes: R pictures by rank, those of a sample in a row and in order; S samples by rank.
DropRule = Literal["all_copies", "any_copy", "first_copy"]


@dataclass(frozen=True, kw_only=True)
class DroppedSamples:
    """The samples that go."""

    is_dropped_S: NDArray[np.bool_]  # noqa: N815

    is_exact_S: NDArray[np.bool_]  # noqa: N815
    """True for a dropped sample if what it was dropped for are copies with the same bytes."""

    num_inside: int
    """Pictures that are copies of another picture of their own sample."""


def drop_samples(begin_S: Index, duplicates: Duplicates, rule: DropRule) -> DroppedSamples:
    """Decide about samples.

    Args:
        begin_S: Rank of the first picture of each sample, ascending from 0.
        duplicates: Of pictures by rank, all pictures of better samples first.
        rule: When a sample goes.
    """
    center_R = duplicates.representative_N
    num_pictures = len(center_R)
    end_S = np.append(begin_S[1:], num_pictures)
    sample_R = np.repeat(np.arange(len(begin_S)), end_S - begin_S)
    # The center of a group is its best picture, so it is in this sample or in a better one.
    is_elsewhere_R = sample_R[center_R] != sample_R
    counts_R = np.ones(num_pictures, dtype=bool)
    if rule == "first_copy":
        counts_R[:] = False
        counts_R[begin_S] = True
    if not len(begin_S):
        is_dropped_S = np.zeros(0, dtype=bool)
    elif rule == "all_copies":
        # The sample of a center is never dropped: nothing better has a picture of that group.
        is_dropped_S = np.logical_and.reduceat(is_elsewhere_R, begin_S)
    else:
        is_dropped_S = _drop_in_order(
            (begin_S, end_S), center_R, sample_R, is_elsewhere_R, counts_R
        )
    is_inexact_R = is_elsewhere_R & counts_R & ~duplicates.is_exact_N
    is_exact_S = is_dropped_S.copy()
    is_exact_S[sample_R[is_inexact_R]] = False
    is_center_R = center_R == np.arange(num_pictures)
    return DroppedSamples(
        is_dropped_S=is_dropped_S,
        is_exact_S=is_exact_S,
        num_inside=int((~is_elsewhere_R & ~is_center_R).sum()),
    )


def _drop_in_order(
    range_S: tuple[Index, Index],
    center_R: Index,
    sample_R: Index,
    is_elsewhere_R: NDArray[np.bool_],
    counts_R: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Drop samples with a picture that counts and is taken; the others need no look."""
    is_dropped_S = np.zeros(len(range_S[0]), dtype=bool)
    inherited: set[int] = set()
    """Centers whose sample was dropped, and of whose group a later sample was kept."""
    for sample in np.unique(sample_R[is_elsewhere_R]).tolist():
        pictures = slice(int(range_S[0][sample]), int(range_S[1][sample]))
        centers = center_R[pictures].tolist()
        is_lost = is_dropped_S[sample_R[center_R[pictures]]].tolist()
        is_dropped_S[sample] = any(
            is_elsewhere and counts and (center in inherited or not lost)
            for center, lost, is_elsewhere, counts in zip(
                centers, is_lost, is_elsewhere_R[pictures], counts_R[pictures], strict=True
            )
        )
        if not is_dropped_S[sample]:
            inherited.update(center for center, lost in zip(centers, is_lost, strict=True) if lost)
    return is_dropped_S
