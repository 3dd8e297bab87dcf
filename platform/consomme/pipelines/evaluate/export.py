"""Results for programs that read those of lmms-eval or VLMEvalKit, and one table for all others.

| file under `export/` | layout |
|---|---|
| `results.csv` | a row for each model, benchmark and figure |
| `MODEL/BENCHMARK_results.json` | lmms-eval: `results`, `configs`, `n-shot`, `n-samples` |
| `MODEL/BENCHMARK_samples.jsonl` | lmms-eval, as with `--log_samples`: one request a line |
| `MODEL/MODEL_BENCHMARK.tsv` | VLMEvalKit: index, question, answer, prediction |
| `MODEL/MODEL_BENCHMARK_acc.csv` | VLMEvalKit: the figures of the benchmark in one row |
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from consomme.evaluate.metrics import Z_95
from consomme.storage.stores.store import Store

EXPORT = "export"
"""Folder of the run folder."""

RESULTS = f"{EXPORT}/results.csv"

Figures = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Label of a model -> name of a benchmark -> its figures, the main one first."""


def write_export(
    store: Store,
    figures: Figures,
    nodes: Mapping[str, Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    models: Mapping[str, str],
) -> None:
    """Write all files.

    Args:
        store: The run folder.
        figures: All figures.
        nodes: Of the recipe, by the names of the benchmarks.
        rows: Every answer; see `consomme.pipelines.evaluate.kept`.
        models: Label -> model as the recipe names it.
    """
    long = [
        (label, name, figure, repr(value))
        for label, by_name in figures.items()
        for name, found in by_name.items()
        for figure, value in found.items()
    ]
    store.write(RESULTS, _table(("model", "benchmark", "figure", "value"), long, ","))
    answers: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        answers.setdefault((row["model"], row["benchmark"]), []).append(row)
    folders = _file_names(figures)
    files = _file_names({name: None for by_name in figures.values() for name in by_name})
    for label, by_name in figures.items():
        for name, found in by_name.items():
            some = answers.get((label, name), [])
            folder = f"{EXPORT}/{folders[label]}"
            results = _lmms_results(name, found, nodes[name], len(some), models[label])
            store.write(f"{folder}/{files[name]}_results.json", _json(results))
            lines = [json.dumps(_lmms_sample(row, next(iter(found)))) + "\n" for row in some]
            store.write(f"{folder}/{files[name]}_samples.jsonl", "".join(lines).encode())
            path = f"{folder}/{folders[label]}_{files[name]}"
            said = [(r["number"], r["question"], r["truth"], r["answer"] or "") for r in some]
            names = ("index", "question", "answer", "prediction")
            store.write(f"{path}.tsv", _table(names, said, "\t"))
            values = [tuple(repr(value) for value in found.values())]
            store.write(f"{path}_acc.csv", _table(tuple(found), values, ","))


def _lmms_results(
    name: str,
    figures: Mapping[str, float],
    node: Mapping[str, Any],
    num_requests: int,
    model: str,
) -> dict[str, Any]:
    """Return the results of one benchmark; standard errors are made from the intervals."""
    found: dict[str, Any] = {"alias": name}
    for figure, value in figures.items():
        found[f"{figure},none"] = value
        stem, fraction, _ = figure.partition("_fraction")
        low, high = (figures.get(f"{stem}_{end}{fraction}") for end in ("low", "high"))
        if low is not None and high is not None:
            found[f"{figure}_stderr,none"] = (high - low) / (2 * Z_95)
    asked = int(figures.get("num_questions", num_requests))
    effective = asked - int(figures.get("num_unreadable_rows", 0))
    return {
        "results": {name: found},
        "configs": {name: {"task": name, **node}},
        "n-shot": {name: node.get("shots", 0)},
        "n-samples": {name: {"original": asked, "effective": effective}},
        "higher_is_better": {name: {next(iter(figures)): True}},
        "model_source": "consomme",
        "model_name": model,
    }


def _lmms_sample(row: Mapping[str, Any], figure: str) -> dict[str, Any]:
    answer = row["answer"] or ""
    return {
        "doc_id": row["number"],
        "target": row["truth"],
        "input": row["question"],
        "resps": [[answer]],
        "filtered_resps": [answer],
        figure: row["verdict"],
    }


def _table(names: Sequence[str], rows: Sequence[Sequence[Any]], delimiter: str) -> bytes:
    text = io.StringIO()
    table = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    table.writerow(names)
    table.writerows(rows)
    return text.getvalue().encode()


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _file_names(names: Iterable[str]) -> dict[str, str]:
    """Return a part of a path for each name; no two are the same, on any file system."""
    parts = {name: name.replace("/", "-").replace("\\", "-").strip(".") or "-" for name in names}
    counts = Counter(part.casefold() for part in parts.values())
    return {
        name: part
        if counts[part.casefold()] == 1
        else f"{part}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        for name, part in parts.items()
    }
