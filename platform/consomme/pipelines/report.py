"""Gather what finished runs left behind into one page with pictures.

One decision is made here: every number and picture is read from run folders; nothing is computed
that a stage did not decide or measure, so a report can be drawn again at any time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from consomme.base.manifest import Manifest, lineage
from consomme.pipelines.report_dedup import dedup_section
from consomme.pipelines.report_filter import filter_section
from consomme.pipelines.report_plan import plan_tables
from consomme.pipelines.report_recaption import recaption_section
from consomme.pipelines.report_rounds import rounds_section
from consomme.pipelines.report_sweep import sweep_report
from consomme.pipelines.report_tags import tag_section
from consomme.pipelines.train_evaluation import evaluations
from consomme.report import model as page
from consomme.report.html import render
from consomme.storage.ledger import RunFolder, load_manifest
from consomme.storage.records import reject_reasons
from consomme.storage.sidecar import read_columns
from consomme.train.parts import TrainableRow, summarise

CLEAN = "clean"


def run_folder(url: str) -> Manifest:
    """Draw the report of one finished run into its folder.

    Args:
        url: The run folder.
    """
    manifest = load_manifest(url)
    folder = RunFolder.at(url)
    if manifest.verb == "loop":
        manifests = {m.name: m for m in lineage(manifest, load_manifest) if m.verb != "loop"}
        table = manifest.decisions.get("summary", [])
        story = str(manifest.recipe.get("story", ""))
        rounds = manifest.decisions.get("rounds", {})
        text = render(_loop_page(manifest.name, story, manifests, table, rounds))
    elif manifest.verb == "sweep":
        story = str(manifest.recipe.get("story", ""))
        text = sweep_report(manifest.name, story, manifest.fingerprint, manifest.decisions)
    else:
        text = render(
            page.Report(
                title=f"{manifest.verb} {manifest.name}",
                subtitle=f"run `{manifest.fingerprint}`, {manifest.seconds:.0f} s",
                facts=_facts(manifest),
                sections=[*_sections({manifest.name: manifest}), _lineage(manifest)],
                footer=_versions(manifest),
            )
        )
    folder.store.write("report.html", text.encode())
    # The manifest on disk is never changed; this one tells the command line where to look.
    return replace(manifest, outputs={**manifest.outputs, "report": "report.html"})


def loop_report(
    recipe: Any,
    manifests: Mapping[str, Manifest],
    table: Sequence[Mapping[str, Any]],
    rounds: Mapping[str, Any],
) -> str:
    """Draw the report of a whole loop as one HTML text.

    Args:
        recipe: The loop's recipe.
        manifests: Finished stages by name.
        table: Rows of the final table: label, values, note.
        rounds: What the loop decided about its rounds; empty if it has none.
    """
    return render(_loop_page(recipe.name, recipe.story, manifests, table, rounds))


def _loop_page(
    name: str,
    story: str,
    manifests: Mapping[str, Manifest],
    table: Sequence[Mapping[str, Any]],
    rounds: Mapping[str, Any],
) -> page.Report:
    seconds = sum(m.seconds for m in manifests.values())
    samples = sum(m.counts.get("samples", 0) for m in manifests.values() if m.verb == "score")
    rejected = sum(m.counts.get("rejected", 0) for m in manifests.values() if m.verb == "score")
    facts = [
        ("stages", str(len(manifests))),
        ("stage time", f"{seconds:.0f} s"),
        ("samples scored", f"{samples:,}"),
        ("rejected", f"{rejected:,}"),
    ]
    first = page.Section(
        title="What came out",
        lead_text=story,
        blocks=[summary_block(table)] if table else [],
    )
    return page.Report(
        title=f"consomme loop: {name}",
        subtitle="score, filter, recaption, train, soup and evaluate, as one run",
        facts=facts,
        sections=[
            first,
            *([rounds_section(rounds)] if rounds else []),
            *_sections(manifests),
            _chain(manifests),
        ],
        footer=_versions(next(iter(manifests.values()))),
    )


def summary_block(table: Sequence[Mapping[str, Any]]) -> page.Table:
    """The final table as a block."""
    rows = [
        (row["label"], " | ".join(f"{value:.3g}" for value in row["values"]), row["note"])
        for row in table
    ]
    return page.Table(columns=("figure", "value", "how to read it"), rows=rows)


def _sections(manifests: Mapping[str, Manifest]) -> list[page.Section]:
    makers: Mapping[str, Callable[[list[Manifest]], list[page.Section]]] = {
        "score": lambda found: [section for m in found for section in _score(m, manifests)],
        "tag": lambda found: [tag_section(m) for m in found],
        "filter": lambda found: [filter_section(m) for m in found],
        "dedup": lambda found: [dedup_section(m) for m in found],
        "recaption": lambda found: [recaption_section(m) for m in found],
        "train": lambda found: [_train(found)],
        "soup": lambda found: [_soup(m) for m in found],
        "evaluate": lambda found: [_evaluate(m) for m in found],
    }
    sections = []
    for verb, maker in makers.items():
        found = [m for m in manifests.values() if m.verb == verb]
        if found:
            sections += maker(found)
    return sections


def _score(manifest: Manifest, manifests: Mapping[str, Manifest]) -> list[page.Section]:
    labels = manifest.recipe.get("labels", [])
    has_noise = "noise" in labels
    columns = ["perplexity", "image_gain", *(["noise"] if has_noise else [])]
    table = read_columns(manifest.url, columns)
    noise = table["noise"].to_pylist() if has_noise else [CLEAN] * table.num_rows
    groups = {
        "clean": np.array([kind in (None, CLEAN) for kind in noise]),
        "noise": np.array([kind not in (None, CLEAN) for kind in noise]),
    }
    if not has_noise:
        groups = {"all samples": groups["clean"]}
    # Only of filters that choose from these scores: one that reads them beside others names them
    # otherwise.
    cuts: dict[str, tuple[float | None, Literal["left", "right"]]] = {
        m.recipe["keep"].get("column"): (
            m.decisions.get("cut"),
            "right" if m.recipe["keep"]["name"].startswith("highest") else "left",
        )
        for m in manifests.values()
        if m.verb == "filter"
        and m.decisions.get("cut") is not None
        and m.parents[0].url == manifest.url
    }
    blocks: list[page.Block] = []
    for column, log_x, label in (
        ("perplexity", True, "perplexity of the caption, given the picture"),
        ("image_gain", False, "image gain, nats per token"),
    ):
        values = table[column].to_numpy(zero_copy_only=False)
        cut, side = cuts.get(column, (None, None))
        edges = _edges(values, log_x)
        blocks.append(
            page.Histogram(
                series={
                    name: np.histogram(values[mask].clip(edges[0], edges[-1]), edges)[0].tolist()
                    for name, mask in groups.items()
                },
                edges=edges.tolist(),
                x_label=label,
                cut=cut,
                kept_side=side,
                log_x=log_x,
                normalise=has_noise,
                caption="Shares of clean and of damaged captions." if has_noise else "",
            )
        )
    rejects = reject_reasons(manifest.counts)
    text = (
        f"{manifest.counts['samples']:,} samples were scored in {manifest.seconds:.0f} s by"
        f" `{manifest.recipe['model']}`; {manifest.counts.get('rejected', 0)} were rejected"
        + (": " if rejects else "")
        + ", ".join(f"{reason} {number}" for reason, number in rejects)
        + "."
    )
    return [page.Section(title=f"Scores: {manifest.name}", lead_text=text, blocks=blocks)]


def _edges(values: Any, log_x: bool) -> Any:
    low, high = np.quantile(values, (0.002, 0.995))
    if high <= low:
        high = low + 1.0
    return np.geomspace(max(low, 1e-3), high, 41) if log_x else np.linspace(low, high, 41)


def _train(manifests: Sequence[Manifest]) -> page.Section:
    curves = {}
    for manifest in manifests:
        text = RunFolder.at(manifest.url).store.read("curve.json")
        points = [(p["step"], p["loss"]) for p in json.loads(text)]
        curves[manifest.name] = _smooth(points)
        if seen := evaluations(RunFolder.at(manifest.url)):
            label = f"{manifest.name}, on other samples"
            curves[label] = [(point["step"], point["loss"]) for point in seen]
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
                line.state,
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
    went_back = [
        f"`{m.name}` went back to a checkpoint: {reason}."
        for m in manifests
        for reason in m.decisions.get("rollbacks", ())
    ]
    return page.Section(
        title="Training",
        lead_text=" ".join(went_back),
        blocks=[
            page.Curves(series=curves, x_label="step", y_label="loss, nats per token"),
            table,
            *plan_tables(manifests),
            strip,
            parts,
        ],
    )


def _smooth(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    width = max(1, len(points) // 20)
    return [
        (float(step), float(np.mean([loss for _, loss in points[max(0, k - width + 1) : k + 1]])))
        for k, (step, _) in enumerate(points)
    ]


def _soup(manifest: Manifest) -> page.Section:
    labels = manifest.decisions["labels"]
    blocks: list[page.Block] = []
    for name, result in manifest.decisions["searches"].items():
        items = []
        for step in result["trace"]:
            members = " + ".join(labels[k] for k in step["members"])
            items.append(
                page.Step(
                    candidate=members,
                    score=step["score"],
                    best_before=step["best_before"],
                    accepted=step["accepted"],
                )
            )
        blocks.append(page.Steps(items=items, score_label="held-out score", caption=name))
    singles = manifest.decisions["singles"]
    best = max(singles.values()) if singles else float("nan")
    scores = ", ".join(
        f"{name} {result['score']:.3f}" for name, result in manifest.decisions["searches"].items()
    )
    text = f"Best single ingredient {best:.3f}; {scores}, on the held-out set they were chosen by."
    return page.Section(title=f"Soup: {manifest.name}", lead_text=text, blocks=blocks)


def _evaluate(manifest: Manifest) -> page.Section:
    blocks: list[page.Block] = []
    table: Mapping[str, Mapping[str, Mapping[str, float]]] = manifest.decisions["results"]
    names = list(dict.fromkeys(name for row in table.values() for name in row))
    for name in names:
        figures = list(next(row[name] for row in table.values() if name in row))
        blocks.append(
            page.Table(
                columns=(
                    "model",
                    *(f.removesuffix("_fraction").replace("_", " ") for f in figures),
                ),
                rows=[
                    (label, *(row[name][figure] for figure in figures))
                    for label, row in table.items()
                    if name in row
                ],
                caption=name,
            )
        )
    return page.Section(title=f"Evaluation: {manifest.name}", blocks=blocks)


def _facts(manifest: Manifest) -> list[tuple[str, str]]:
    return [(key, f"{value:,}") for key, value in list(manifest.counts.items())[:6]]


def _versions(manifest: Manifest) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    return f"Made with {versions}."


def _lineage(manifest: Manifest) -> page.Section:
    runs = {m.url: m for m in [manifest, *lineage(manifest, load_manifest)]}
    return _graph(runs)


def _chain(manifests: Mapping[str, Manifest]) -> page.Section:
    return _graph({m.url: m for m in manifests.values()})


def _graph(runs: Mapping[str, Manifest]) -> page.Section:
    nodes = [page.LineageNode(node_id=url, verb=m.verb, title=m.name) for url, m in runs.items()]
    edges = [
        (parent.url, url) for url, m in runs.items() for parent in m.parents if parent.url in runs
    ]
    return page.Section(
        title="Lineage", blocks=[page.Lineage(nodes=nodes, edges=edges)] if edges else []
    )
