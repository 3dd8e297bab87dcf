"""Metrics of a recaption run: canaries, repeated texts, words and claims per caption."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from consomme.base.errors import DataError
from consomme.base.hashing import mix_hash
from consomme.curate.caption.canary import CanaryKind, judge_canaries
from consomme.curate.caption.guards import normalised_text, overly_frequent_texts
from consomme.storage.captions import CAPTIONS
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.sidecar import ID_HASH, iter_columns

MOST_COMPARED = 1_000_000
"""Captions among which the most common ones are looked for; of more, that many by hash."""


def check_canaries(run_url: str, max_same: float, sums: Mapping[str, float]) -> None:
    """Stop a run whose model ignores the images.

    Both kinds of canary have to say so: pictures that are much alike rightly get the same text.

    Raises:
        DataError: It is certain; says what was seen and what to look at.
    """
    looks: tuple[CanaryKind, ...] = ("blank", "swap")
    verdicts = {
        how: judge_canaries(int(sums[f"canary_{how}"]), int(sums[f"canary_{how}_same"]), max_same)
        for how in looks
        if sums.get(f"canary_{how}")
    }
    if verdicts and all(verdict.is_blind for verdict in verdicts.values()):
        how, verdict = next(iter(verdicts.items()))
        raise DataError(f"{run_url}: {verdict.explain(how)}")


def texts_of(run_url: str) -> Counter[str]:
    """Count the texts of a run, without differences of case and white space.

    Args:
        run_url: The run; all its units are committed.
    """
    total = RunFolder.at(run_url).total_counts().get("samples", 0)
    share = min(1.0, MOST_COMPARED / max(total, 1))
    seen: Counter[str] = Counter()
    for _, table in iter_columns(run_url, ["written", ID_HASH], CAPTIONS, with_ids=False):
        among = mix_hash(table[ID_HASH].to_numpy(), 0) / 2.0**64 <= share
        texts = table["written"].filter(pa.array(among)).to_pylist()
        seen.update(normalised_text(text) for text in texts if text is not None)
    return seen


def most_common(texts: Counter[str], number: int = 10) -> list[list[Any]]:
    """List the texts that were written more than once, most often first, and the share of each."""
    num = texts.total()
    return [[text, times / num] for text, times in texts.most_common(number) if times > 1]


def metrics_of(
    counts: Mapping[str, int], sums: Mapping[str, float], texts: Counter[str]
) -> dict[str, float]:
    """Compute the metrics of a run over the samples that were recaptioned.

    Words and claims are those of the text that stands now: the old one where a guard spoke.
    """
    asked = max(1, counts.get("asked", 0))
    mean = sums.get("words", 0.0) / asked
    variance = max(0.0, sums.get("words_squared", 0.0) / asked - mean**2)
    found = {
        "recaption/new_fraction": counts.get("new", 0) / asked,
        "recaption/words_per_caption": mean,
        "recaption/words_sd": math.sqrt(variance),
        "recaption/words_before": sums.get("words_before", 0.0) / asked,
        "recaption/mass_identical_fraction": sum(
            texts[text] for text in overly_frequent_texts(texts)
        )
        / max(1, texts.total()),
    }
    if sums.get("judged"):
        found |= {
            f"recaption/{key}_claims": value / sums["judged"]
            for key, value in sums.items()
            if key.startswith(("before_", "after_"))
        }
    for how in ("blank", "swap"):
        if sums.get(f"canary_{how}"):
            share = sums[f"canary_{how}_same"] / sums[f"canary_{how}"]
            found[f"recaption/canary_{how}_same_fraction"] = share
    if sums.get("canary_swap_left_out"):
        found["recaption/canaries_left_out"] = sums["canary_swap_left_out"]
    return found
