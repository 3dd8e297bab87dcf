"""Negative log-likelihood of labelled tokens, in nats; the engines compute the logits.

Callers keep sums and counts apart until the last division.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Shapes: N labelled tokens of all samples, V vocabulary.


def points_script_nll(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """Negative log-likelihood of each labelled token, computed as the released POINTS script does.

    Probabilities are rounded to bfloat16 (8 bits of precision) before the logarithm; a probability
    that rounds to zero gives infinity. Use it only to compare with scores of that script.

    Args:
        logits_NV: Raw scores of any float dtype.
        labels_N: Token ids.

    Returns:
        Nats, float32 (N,).

    Source: scripts/pretrain_filtering_with_ppl.py of WePOINTS (arXiv 2409.04828).
    """
    prob_NV = torch.softmax(logits_NV.float(), dim=-1)
    prob_N = prob_NV.gather(-1, labels_N[:, None])[:, 0]
    return -prob_N.to(torch.bfloat16).float().log()


def token_nll(logits_NV: Tensor, labels_N: Tensor, chunk: int = 4096) -> Tensor:
    """Negative log-likelihood of each labelled token, in float32, a chunk of rows at a time.

    Args:
        logits_NV: Raw scores of any float dtype.
        labels_N: Token ids.
        chunk: Rows per float32 copy; bounds memory for large vocabularies.

    Returns:
        Nats, float32 (N,).
    """
    parts = [
        torch.nn.functional.cross_entropy(part.float(), labels, reduction="none")
        for part, labels in zip(
            torch.split(logits_NV, chunk), torch.split(labels_N, chunk), strict=True
        )
    ]
    return torch.cat(parts) if parts else torch.zeros(0)


FORMULAS = {"exact": token_nll, "points_script": points_script_nll}
"""Recipe name -> function that computes nats from logits."""
