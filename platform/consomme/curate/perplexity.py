"""Perplexity of captions: sums and counts of nats, kept apart until the last division.

One decision is made here: what is measured. The engines decide how the logits are made.
"""

from __future__ import annotations

import torch
from torch import Tensor

from consomme.base.errors import DataError

IGNORE_INDEX = -100

# Shapes: B samples, T token positions, N labelled tokens of all samples, V vocabulary.


def caption_nll(logits_BTV: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the negative log-likelihood of the labelled tokens of each sample.

    Sum and count come back apart, so that shards and ranks can be added before dividing; a mean of
    means would let short captions weigh as much as long ones.

    Args:
        logits_BTV: Raw scores of any float dtype; `logits_BTV[:, t]` predicts `labels_BT[:, t]`.
        labels_BT: Token ids, `IGNORE_INDEX` on prompt, image and padding positions.

    Returns:
        nll_B: Nats, float32.
        count_B: Labelled tokens, int64. Perplexity is `exp(nll_B / count_B)`.

    Raises:
        DataError: A row has no labelled token, so its perplexity is undefined.

    Source: arXiv 2409.04828, section on the perplexity filter. The released script rounds
        probabilities to bfloat16 before the logarithm; this does not.
    """
    labelled_BT = labels_BT != IGNORE_INDEX
    count_B = labelled_BT.sum(dim=1)
    if (count_B == 0).any():
        rows = (count_B == 0).nonzero().flatten().tolist()
        raise DataError(f"no labelled token in rows {rows}: perplexity is undefined")
    nll_N = token_nll(logits_BTV[labelled_BT], labels_BT[labelled_BT])
    row_N = labelled_BT.nonzero()[:, 0]
    nll_B = torch.zeros(labels_BT.shape[0]).index_add_(0, row_N, nll_N)
    return nll_B, count_B


def points_script_nll(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """Negative log-likelihood of each labelled token as the released POINTS script has it.

    Probabilities are rounded to bfloat16, with its 8 bits, before the logarithm; one that rounds to
    zero becomes infinite. Only for comparing with scores made by that script.

    Args:
        logits_NV: Raw scores of any float dtype.
        labels_N: Token ids.

    Returns:
        Nats, float32 (N,).

    Source: scripts/pretrain_filtering_with_ppl.py of WePOINTS (arXiv 2409.04828).
    """
    chance_NV = torch.softmax(logits_NV.float(), dim=-1)
    chance_N = chance_NV.gather(-1, labels_N[:, None])[:, 0]
    return -chance_N.to(torch.bfloat16).float().log()


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
"""What recipes may say of how nats are computed."""
