"""What trainings were planned to take, beside what they took."""

from __future__ import annotations

import json
from collections.abc import Sequence

from consomme.base.manifest import Manifest
from consomme.pipelines.train import PLAN
from consomme.report import model as page
from consomme.storage.ledger import RunFolder

MB = 2.0**20


def plan_tables(manifests: Sequence[Manifest]) -> list[page.Block]:
    """Draw the plans of train runs; nothing if none of them has one."""
    rows: list[tuple[page.Cell, ...]] = []
    for manifest in manifests:
        store = RunFolder.at(manifest.url).store
        if not store.exists(PLAN):
            continue
        plan = json.loads(store.read(PLAN))
        kinds = {kind: (one["device"] + one["host"]) / MB for kind, one in plan["kinds"].items()}
        rows.append(
            (
                manifest.name,
                kinds["weights"],
                kinds["gradients"],
                kinds["optimizer"],
                manifest.decisions["optimizer_bytes"] / MB,
                kinds["activations"] if plan["kept"] else "",
                (plan["step"]["device"] + plan["step"]["host"]) / MB,
                manifest.metrics["train/peak_bytes"] / MB,
                plan["checkpoint_bytes"] / MB,
                plan["saving_fraction"],
            )
        )
    if not rows:
        return []
    return [
        page.Table(
            columns=(
                "run",
                "weights MB",
                "gradients MB",
                "optimizer MB",
                "… measured",
                "activations MB, about",
                "at most in a step MB",
                "… measured",
                "checkpoint MB",
                "predicted saving of a step",
            ),
            rows=rows,
            caption=(
                "Planned before the start, of one worker, beside what was measured. Without a GPU"
                " what is measured is the whole process, some hundred MB of libraries included."
                " The saving is against training all layers."
            ),
        )
    ]
