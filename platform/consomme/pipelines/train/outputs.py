"""Names of the files that a training writes into its run folder, and how they are read."""

from __future__ import annotations

import json
from typing import Any

from consomme.storage.ledger.run_folder import RunFolder

CURVE = "curve.json"
"""Loss, seconds and learning rate of every finished step; rewritten every few seconds."""


EVAL_LOSS = "eval_loss_nats"
"""Metric by which checkpoints are compared: mean nats per labelled token of `evaluation.data`."""


CHOICE = "choice"
"""Metric by which checkpoints are compared if a benchmark or a guard takes part; higher is better.
The main figure, or minus the loss, less `LOST` if the checkpoint lost more than a guard allows."""


LOST = 1e6
"""More than any figure or loss."""


TRAINABLE = "trainable.json"
"""What is trained, part by part and layer by layer; written before the first step."""


PLAN = "plan.json"
"""Planned memory, checkpoint size and time; written before the workers start."""


EVALUATIONS = "evaluations"
"""Folder with the evaluation of each checkpoint."""


def evaluations(folder: RunFolder) -> list[dict[str, Any]]:
    """Read the evaluations so far, by step."""
    paths = sorted(info.path for info in folder.store.list(f"{EVALUATIONS}/"))
    return [json.loads(folder.store.read(path)) for path in paths]
