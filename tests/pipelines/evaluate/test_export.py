"""Exported results hold what the manifest holds, in the layouts of others."""

import csv
import io
import json
from pathlib import Path

import pytest

from consomme.evaluate.metrics import accuracy
from consomme.pipelines.evaluate.export import write_export
from consomme.storage.stores.open import open_store

INTERVAL = accuracy([True, False])
FIGURES = {
    "accuracy_fraction": INTERVAL.value,
    "accuracy_low_fraction": INTERVAL.low,
    "accuracy_high_fraction": INTERVAL.high,
    "num_questions": 3.0,
    "num_unreadable_rows": 1.0,
}
ROWS = [
    {"model": "a/b", "benchmark": "mine", "number": 0, "question": "<image>what\tcolor,\n\"it\"?",
     "truth": "rød", "answer": "blue", "verdict": 0.0, "refused": None},
    {"model": "a/b", "benchmark": "mine", "number": 1, "question": "q", "truth": "t",
     "answer": None, "verdict": 0.0, "refused": "too_long"},
]  # fmt: skip


def test_each_layout_has_the_figures_and_the_answers(tmp_path: Path) -> None:
    node = {"name": "open", "file": "mine.tsv", "shots": 4}
    figures = {"a/b": {"mine": FIGURES}}
    write_export(open_store(str(tmp_path)), figures, {"mine": node}, ROWS, {"a/b": "org/model"})
    folder = tmp_path / "export" / "a-b"
    assert {path.name for path in folder.iterdir()} == {
        "mine_results.json",
        "mine_samples.jsonl",
        "a-b_mine.tsv",
        "a-b_mine_acc.csv",
    }
    long = list(csv.DictReader(io.StringIO((tmp_path / "export" / "results.csv").read_text())))
    assert {row["figure"]: float(row["value"]) for row in long} == FIGURES
    assert {(row["model"], row["benchmark"]) for row in long} == {("a/b", "mine")}

    found = json.loads((folder / "mine_results.json").read_text())
    values = found["results"]["mine"]
    assert values["accuracy_fraction,none"] == 0.5
    half = (INTERVAL.high - INTERVAL.low) / 2
    assert values["accuracy_fraction_stderr,none"] == pytest.approx(half / 1.96, rel=1e-4)
    assert found["n-shot"] == {"mine": 4}
    assert found["n-samples"] == {"mine": {"original": 3, "effective": 2}}
    assert found["configs"]["mine"]["file"] == "mine.tsv"
    assert found["model_name"] == "org/model"

    lines = [json.loads(line) for line in (folder / "mine_samples.jsonl").read_text().splitlines()]
    assert [one["filtered_resps"] for one in lines] == [["blue"], [""]]
    assert [one["target"] for one in lines] == ["rød", "t"]
    with (folder / "a-b_mine.tsv").open(newline="") as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    assert table[0] == {
        "index": "0", "question": "<image>what\tcolor,\n\"it\"?", "answer": "rød",
        "prediction": "blue",
    }  # fmt: skip
    acc = list(csv.DictReader((folder / "a-b_mine_acc.csv").open()))
    assert [float(row["accuracy_fraction"]) for row in acc] == [0.5]


def test_names_that_make_one_path_have_files_of_their_own(tmp_path: Path) -> None:
    labels = ("a/b", "a-b", "A-b", "c")
    rows = [ROWS[0] | {"model": label, "answer": label} for label in labels]
    figures = {label: {"mine": FIGURES} for label in labels}
    node = {"name": "open", "file": "mine.tsv"}
    write_export(
        open_store(str(tmp_path)), figures, {"mine": node}, rows, dict.fromkeys(labels, "")
    )
    found = {
        json.loads(path.read_text())["filtered_resps"][0]: path.parent.name
        for path in (tmp_path / "export").glob("*/mine_samples.jsonl")
    }
    assert set(found) == set(labels)
    assert found["c"] == "c"
    assert len({name.casefold() for name in found.values()}) == 4
