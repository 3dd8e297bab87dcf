"""Report of training runs: loss curves, what was trained, planned and measured memory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np

from consomme.base.manifest import Manifest
from consomme.pipelines.train.outputs import PLAN, evaluations
from consomme.report import model as page
from consomme.report.guards import guard_tables
from consomme.storage.ledger.run_folder import SELF_CHECK, RunFolder
from consomme.train.parts import Summary, TrainableRow, summarise

MB = 2.0**20


def plan_tables(manifests: Sequence[Manifest]) -> list[page.Block]:
    """Make the table of plans of train runs; empty if no run has a plan."""
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
                "activations MB, estimated",
                "peak of a step MB",
                "… measured",
                "checkpoint MB",
                "predicted saving of a step",
            ),
            rows=rows,
            caption=(
                "Planned memory of one worker, and what was measured. Without a GPU the measured"
                " peak is that of the whole process, some hundred MB of libraries included. The"
                " saving is against training all layers."
            ),
        )
    ]


def sections(runs: Sequence[Manifest], every_run: Mapping[str, Manifest]) -> list[page.Section]:
    """Make the sections of these runs.

    Args:
        runs: The train runs of a page.
        every_run: All runs of the page, by name.
    """
    return [_section(runs)]


def _section(manifests: Sequence[Manifest]) -> page.Section:
    curves = {}
    for manifest in manifests:
        text = RunFolder.at(manifest.url).store.read("curve.json")
        points = [(p["step"], p["loss"]) for p in json.loads(text)]
        curves[manifest.name] = _smooth(points)
        if evaluated := evaluations(RunFolder.at(manifest.url)):
            label = f"{manifest.name}, held-out samples"
            losses = [(point["step"], point["loss"]) for point in evaluated if "loss" in point]
            curves |= {label: losses} if losses else {}
    strip = page.LayerStrip(
        rows=[(m.name, m.decisions["num_layers"], m.decisions["layers"]) for m in manifests],
        caption="Layers of the language model that received updates.",
    )
    table = page.Table(
        columns=("run", "samples", "steps", "trained", "of", "step s", "optimizer MB", "last loss"),
        rows=[
            (
                m.name,
                m.counts["samples"],
                m.recipe["num_steps"],
                m.decisions["num_trainable"],
                m.decisions["num_parameters"],
                m.metrics["train/step_s"],
                m.decisions["optimizer_bytes"] / 2**20,
                m.metrics["train/last_loss_nats"],
            )
            for m in manifests
        ],
    )
    parts = page.Table(
        columns=("run", "part", "state", "tensors", "trained", "of", "learning rate"),
        rows=[
            (
                m.name,
                line.part,
                _state(line),
                line.num_tensors,
                line.num_trained,
                line.num_parameters,
                "" if line.lr is None else f"{line.lr:g}",
            )
            for m in manifests
            for line in summarise(TrainableRow(**row) for row in m.decisions["trainable"])
            if line.num_parameters
        ],
    )
    rollbacks = [
        f"`{m.name}` went back to a checkpoint: {reason}."
        for m in manifests
        for reason in m.decisions.get("rollbacks", ())
    ]
    return page.Section(
        title="Training",
        lead_text=" ".join([*rollbacks, *_slower_rows(manifests)]),
        blocks=[
            page.Curves(series=curves, x_label="step", y_label="loss, nats per token"),
            table,
            *plan_tables(manifests),
            strip,
            parts,
            *(block for manifest in manifests for block in _choice(manifest)),
        ],
    )


def _choice(manifest: Manifest) -> list[page.Block]:
    """Show how checkpoints compare by a benchmark, and what the exported one has kept."""
    choice = manifest.decisions.get("choice")
    if not choice:
        return []
    points = [("start", choice["start"]), *((one["step"], one) for one in choice["checkpoints"])]
    figure = next((one["figure"] for _, one in points if "figure" in one), None)
    columns = ["step", "loss", *([figure] if figure else []), "guards"]
    rows: list[list[page.Cell]] = []
    for step, one in points:
        lost = [g["benchmark"] for g in one.get("guards", ()) if not g["passes"]]
        kept = f"lost: {', '.join(lost)}" if lost else ("kept" if one.get("guards") else "")
        scores: list[page.Cell] = [one.get("score")] if figure else []
        rows.append([step, one.get("loss"), *scores, kept])
    chosen = [number for number, (step, _) in enumerate(points) if step == choice["step"]]
    caption = f"{manifest.name}: checkpoints; exported is step {choice['step']}, by {choice['by']}."
    table = page.Table(columns=columns, rows=rows, highlight=chosen, caption=caption)
    kept_of = f"{manifest.name}: what the exported model has kept of its start."
    reported = [
        page.Table(
            columns=("figure", "value"),
            rows=list(figures.items()),
            caption=f"{manifest.name}: {name}, which chose nothing.",
        )
        for name, figures in choice.get("report", {}).items()
    ]
    return [table, *guard_tables(choice.get("guards", ()), kept_of), *reported]


def _slower_rows(manifests: Sequence[Manifest]) -> list[str]:
    """Say which runs could not put samples into rows as they were asked to, and why."""
    lines = []
    for manifest in manifests:
        store = RunFolder.at(manifest.url).store
        check = json.loads(store.read(SELF_CHECK)) if store.exists(SELF_CHECK) else {}
        lines += [
            f"`{manifest.name}` trained on {check['way']} instead of {way}: {reason}."
            for way, reason in check.get("failed", {}).items()
        ]
    return lines


def _state(line: Summary) -> str:
    if not line.num_without_adapters:
        return line.state
    return f"{line.state}; {line.num_without_adapters:,} parameters without adapters"


def _smooth(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    width = max(1, len(points) // 20)
    return [
        (float(step), float(np.mean([loss for _, loss in points[max(0, k - width + 1) : k + 1]])))
        for k, (step, _) in enumerate(points)
    ]
