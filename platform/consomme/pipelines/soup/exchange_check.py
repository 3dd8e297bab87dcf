"""Check that a model whose weights were exchanged in an engine answers as it does from its folder.

An engine may keep what it derived from the weights before: packed copies, tied heads, encoded
images. It would then answer for a mixture of two models, without a word. So before the first
candidate, weights of a second ingredient are exchanged for the first one's, and the likelihoods of
some probes are compared with those of an engine that opened the second one from its folder.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from consomme.base.errors import CheckpointError
from consomme.engines.scoring.requests import Score, ScoringRequest
from consomme.models.selfcheck import make_probes
from consomme.pipelines.evaluate.in_memory import InMemoryAnswerer
from consomme.soup.ingredients import Ingredient
from consomme.soup.mixing import ModelMix, mixed_tensors
from consomme.soup.writing import write_soup
from consomme.storage.ledger.run_folder import SELF_CHECKS, RunFolder

EXCHANGE_CHECK = f"{SELF_CHECKS}/exchange.json"

_OF_DIFFERENCE = 0.02
"""Tolerance, as a share of what lies between the two models."""

_OF_NATS = 1e-4
"""Tolerance for other orders of sums, as a share of the nats of a probe."""


def check_exchange(
    answerer: InMemoryAnswerer,
    other: Ingredient,
    opened: Callable[[str], InMemoryAnswerer],
    run: RunFolder,
) -> None:
    """Check the engine of a run once; the result is kept in the run folder.

    Args:
        answerer: Of the first ingredient; has the weights of `other` afterwards.
        other: An ingredient with other weights.
        opened: Makes the answerer of a folder.
        run: Of the run.

    Raises:
        CheckpointError: The likelihoods differ.
    """
    if run.store.exists(EXCHANGE_CHECK):
        return
    mix = ModelMix.of([other])
    if any(other.updates.values()):
        with tempfile.TemporaryDirectory(prefix="consomme-") as folder:
            expected = _nats_of_folder(opened(str(write_soup(Path(folder) / "model", mix))))
    else:
        expected = _nats_of_folder(opened(str(other.folder)))
    before = _nats(answerer)
    answerer.load_weights(lambda: dict(mixed_tensors(mix)))
    found = _nats(answerer)
    told = {"first": before, "other": expected, "exchanged": found}
    for one, wanted, own in zip(found, expected, before, strict=True):
        if abs(one - wanted) > _OF_DIFFERENCE * abs(own - wanted) + _OF_NATS * abs(wanted):
            raise CheckpointError(
                f"the engine {answerer.node['name']} does not answer as {other.name} when its"
                f" weights are exchanged in place: nats of probes {_told(found)}, from its folder"
                f" {_told(expected)}; search with engine: {{name: transformers}}"
            )
    run.store.create(EXCHANGE_CHECK, json.dumps(told).encode())


def _told(nats: list[float]) -> str:
    return ", ".join(f"{one:.4f}" for one in nats)


def _nats_of_folder(answerer: InMemoryAnswerer) -> list[float]:
    try:
        return _nats(answerer)
    finally:
        answerer.close()


def _nats(answerer: InMemoryAnswerer) -> list[float]:
    """Return the nats of the probes that the family takes.

    Raises:
        CheckpointError: It takes none.
    """
    scorer = answerer.engine(writes=False)
    requests = [
        ScoringRequest(turns=one.turns, images=one.images, scores_text=False)
        for one in make_probes(has_vision=scorer.chat.has_vision)
    ]
    scores = scorer.score(requests)
    if not any(isinstance(one, Score) for one in scores):
        raise CheckpointError(f"{answerer.folder} takes no probe: {scores[0]}")
    return [one.nll for one in scores if isinstance(one, Score)]
