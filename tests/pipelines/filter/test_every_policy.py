"""Every keep policy makes the same choice from scores in 1, 7 and 64 files, in any order."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tests.support.hand_made import HandRecipe, unit_of, write_run, write_view

from consomme.curate.keep.registry import KEEP_POLICIES
from consomme.pipelines.filter import run as filter_
from consomme.pipelines.filter.recipe import FilterRecipe
from consomme.storage.unit import Unit
from consomme.storage.view import View

pytestmark = pytest.mark.slow

NUM = 260
OBJECTS = ("person", "person", "person", "text", "text", "building", "food", "spoon", None)
ENTROPY = {"name": "highest_fraction", "column": "tags.class_entropy", "fraction": 0.3}
UNIQUE = {"name": "threshold", "column": "unique", "min": 1.0}

NODES: Mapping[str, Mapping[str, Any]] = {
    "lowest_fraction": {"fraction": 0.3},
    "highest_fraction": {"fraction": 0.3},
    "drop_highest_fraction": {"column": "large.perplexity", "fraction": 0.3},
    "lowest_count": {"samples": 31},
    "highest_count": {"samples": 31},
    "random_fraction": {"fraction": 0.3, "seed": 2},
    "random_count": {"samples": 31, "seed": 2},
    "band": {"low": 0.2, "high": 0.7},
    "threshold": {"column": "tags.num_words", "min": 3.0, "max": 9.0},
    "one_of": {"column": "tags.object", "none_of": ["person", "spoon"]},
    "token_budget": {"tokens": 500},
    "per_stratum": {"by": "tags.object", "keep": {"name": "lowest_fraction", "fraction": 0.4}},
    "all_of": {"policies": [UNIQUE, {"name": "lowest_fraction", "fraction": 0.5}]},
    "any_of": {"policies": [UNIQUE, {"name": "lowest_fraction", "fraction": 0.2}]},
    "in_turn": {"policies": [UNIQUE, {"name": "lowest_fraction", "fraction": 0.5}]},
    "keep_missing": {
        "column": "tags.object",
        "keep": {"name": "lowest_fraction", "fraction": 0.3},
    },
    "mean_fraction": {
        "terms": [
            {"column": "perplexity", "log": True},
            {"column": "large.perplexity", "log": True, "weight": 2.0},
            {"column": "image_gain", "weight": -0.5},
        ]
    },
    "balance": {},
    "class_balanced": {"samples": 9},
    "k_center": {"fraction": 0.2},
    "badge": {"samples": 40, "seed": 1},
    "pseudo_class_balanced": {"samples": 40, "shortlist": ENTROPY},
}


def samples() -> dict[str, list[Any]]:
    """Columns with ties, gaps and equal vectors, made from a seed."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(NUM, 5)).round(1)
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    vectors = rng.normal(size=(NUM, 37)).astype(np.float32)
    vectors[::9] = vectors[0]
    perplexity = np.exp(rng.normal(2, 1, NUM)).round(1) + 1
    perplexity[::13] = np.nan
    return {
        "perplexity": perplexity.tolist(),
        "image_gain": rng.normal(size=NUM).round(1).tolist(),
        "num_tokens": rng.integers(3, 40, NUM).tolist(),
        "large.perplexity": (np.exp(rng.normal(2, 1, NUM)).round(1) + 1).tolist(),
        "tags.num_words": rng.integers(1, 12, NUM).tolist(),
        "tags.object": [OBJECTS[k] for k in rng.integers(0, len(OBJECTS), NUM)],
        "tags.class": [f"class {k}" for k in probs.argmax(axis=1)],
        "tags.class_entropy": (-(probs * np.log(probs)).sum(axis=1)).tolist(),
        "tags.class_probs": probs.tolist(),
        "tags.embedding": vectors.tolist(),
    }


FLOATS = {"perplexity", "image_gain", "large.perplexity", "tags.class_entropy"}
VECTORS = {"tags.class_probs", "tags.embedding"}


@dataclass(frozen=True)
class Layout:
    """The same samples in some number of files."""

    root: str
    scores: str
    columns_from: dict[str, str]
    views: dict[str, str]
    names: dict[tuple[str, int], int]


def lay_out(root: Path, num_files: int) -> Layout:
    columns = samples()
    shuffle = random.Random(num_files)
    order = list(range(NUM))
    shuffle.shuffle(order)
    stops = sorted(shuffle.sample(range(1, NUM), num_files - 1))
    files: list[tuple[Unit, dict[int, int]]] = []
    for k, (begin, end) in enumerate(zip([0, *stops], [*stops, NUM], strict=True)):
        # Some rows were rejected, at other places in each layout.
        unit = unit_of(k, end - begin + 3)
        rows = sorted(shuffle.sample(range(unit.count), end - begin))
        files.append((unit, dict(zip(rows, order[begin:end], strict=True))))

    def parts(prefix: str, gap: int | None) -> list[tuple[Unit, pa.Table]]:
        tables = []
        for unit, found in files:
            some = {row: n for row, n in found.items() if gap is None or n % gap}
            table: dict[str, Any] = {
                "row": pa.array(list(some), pa.int32()),
                "sample_id": pa.array([f"sample-{n}" for n in some.values()], pa.string()),
            }
            for name, values in columns.items():
                if name.rpartition(".")[0] == prefix:
                    kind = pa.float32() if name in FLOATS else pa.int32()
                    kind = pa.list_(pa.float32()) if name in VECTORS else kind
                    kind = pa.string() if name in {"tags.object", "tags.class"} else kind
                    own = [values[n] for n in some.values()]
                    table[name.rpartition(".")[2]] = pa.array(own, kind)
            tables.append((unit, pa.table(table)))
        return tables

    def recipe(name: str) -> HandRecipe:
        return HandRecipe(name=name, root=str(root))

    unique = {unit.unit_id: [r for r, n in found.items() if n % 3] for unit, found in files}
    return Layout(
        root=str(root),
        scores=write_run("score", recipe("scores"), parts("", None)),
        columns_from={
            "large": write_run("score", recipe("large"), parts("large", 19)),
            "tags": write_run("tag", recipe("tags"), parts("tags", 17)),
        },
        views={"unique": write_view("dedup", recipe("u"), [unit for unit, _ in files], unique)},
        names={(unit.unit_id, row): n for unit, found in files for row, n in found.items()},
    )


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> list[Layout]:
    return [lay_out(tmp_path_factory.mktemp(f"in-{n}"), n) for n in (1, 7, 64)]


def choice(layout: Layout, node: Mapping[str, Any]) -> tuple[set[int], dict[str, Any]]:
    done = filter_.run(
        FilterRecipe(
            name="f",
            root=layout.root,
            scores=layout.scores,
            columns_from=layout.columns_from,
            views=layout.views,
            keep=dict(node),
        )
    )
    kept = {
        layout.names[unit.unit_id, row] for unit, rows in View.load(done.url).rows() for row in rows
    }
    return kept, dict(done.decisions)


def test_every_policy_is_tried() -> None:
    assert set(NODES) == set(KEEP_POLICIES.names())


SHORT = (
    "lowest_fraction", "random_count", "band", "token_budget", "per_stratum", "all_of", "balance",
    "k_center",
)  # fmt: skip
"""One policy of each kind, which every run of the tests takes; the others are for long ones."""


@pytest.mark.parametrize(
    "name",
    [name if name in SHORT else pytest.param(name, marks=pytest.mark.long) for name in NODES],
)
def test_the_choice_is_the_same_from_any_files(name: str, layouts: list[Layout]) -> None:
    first, *others = [choice(layout, {"name": name, **NODES[name]}) for layout in layouts]
    assert 0 < len(first[0]) < NUM
    assert others == [first, first]
