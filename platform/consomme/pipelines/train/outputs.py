"""Names of the files that a training writes into its run folder, and how they are read."""

from __future__ import annotations

import json

from consomme.storage.ledger.run_folder import RunFolder

CURVE = "curve.json"
"""Loss, seconds and learning rate of every finished step; renewed every few seconds."""


EVAL_LOSS = "eval_loss_nats"
"""What checkpoints are compared by: mean nats per labelled token of `evaluation.data`."""


TRAINABLE = "trainable.json"
"""What is trained, part by part and layer by layer; written before the first step."""


PLAN = "plan.json"
"""What the run was expected to take; written before the workers start."""


EVALUATIONS = "evaluations"
"""Folder in a run: what was found at each checkpoint."""


def evaluations(folder: RunFolder) -> list[dict[str, float]]:
    """Read what was found so far, by step."""
    paths = sorted(info.path for info in folder.store.list(f"{EVALUATIONS}/"))
    return [json.loads(folder.store.read(path)) for path in paths]
