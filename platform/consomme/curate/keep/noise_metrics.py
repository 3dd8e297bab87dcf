"""Metrics of how well a score separates noise from clean samples, where the truth is known.

Ties are counted properly: scores of short captions tie often, and an area under the curve that
breaks ties by input order depends on that order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from consomme.base.errors import DataError

# Shapes: N samples.


def auc(scores_N: NDArray[np.floating], is_noise_N: NDArray[np.bool_]) -> float:
    """Return the ROC AUC: P(a noisy sample scores higher than a clean one), ties counting half.

    0.5 is chance, 1 is perfect. For a score where *low* values are suspicious (such as
    `image_gain`) pass its negative. This is the Mann-Whitney U statistic over `n_noise * n_clean`.

    Raises:
        DataError: There is no noisy or no clean sample, or a score is NaN.
    """
    num_noise = int(is_noise_N.sum())
    num_clean = len(is_noise_N) - num_noise
    if not num_noise or not num_clean:
        raise DataError(f"{num_noise} noisy and {num_clean} clean samples: a comparison needs both")
    if np.isnan(scores_N).any():
        raise DataError(f"{int(np.isnan(scores_N).sum())} scores are NaN: leave those samples out")
    _, group_N, size_G = np.unique(scores_N, return_inverse=True, return_counts=True)
    # The mean rank of a group of equal scores, counted from 1.
    rank_G = np.cumsum(size_G) - (size_G - 1) / 2
    rank_sum = float(rank_G[group_N][is_noise_N].sum())
    return (rank_sum - num_noise * (num_noise + 1) / 2) / (num_noise * num_clean)


def auc_by_kind(scores_N: NDArray[np.floating], kinds: Sequence[str]) -> dict[str, float]:
    """Return one AUC per kind of noise, each against the clean samples; kind `""` means clean."""
    kind_N = np.array(kinds)
    is_clean_N = kind_N == ""
    by_kind = {}
    for kind in sorted(set(kinds) - {""}):
        part_N = is_clean_N | (kind_N == kind)
        by_kind[kind] = auc(scores_N[part_N], (kind_N == kind)[part_N])
    return by_kind


@dataclass(frozen=True, kw_only=True)
class NoiseShare:
    """Shares of noise among the kept and the dropped samples."""

    kept_fraction: float
    """Noisy samples among the kept, in [0, 1]; NaN if nothing was kept."""

    dropped_fraction: float
    """Noisy samples among the dropped, in [0, 1]; NaN if nothing was dropped."""

    all_fraction: float
    """Noisy samples among all, in [0, 1]: what a random selection would leave among the kept."""

    caught_fraction: float
    """Share of all noise that was dropped, in [0, 1]; NaN if there is no noise."""


def noise_share(kept_N: NDArray[np.bool_], is_noise_N: NDArray[np.bool_]) -> NoiseShare:
    """Compute the shares of noise on both sides of a keep decision."""
    return NoiseShare(
        kept_fraction=_mean(is_noise_N[kept_N]),
        dropped_fraction=_mean(is_noise_N[~kept_N]),
        all_fraction=_mean(is_noise_N),
        caught_fraction=_mean(~kept_N[is_noise_N]),
    )


def _mean(values: NDArray[np.bool_]) -> float:
    return float(values.mean()) if len(values) else float("nan")
