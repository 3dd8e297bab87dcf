"""The report of a filter shows samples in the order that decided, and what became of them."""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tests.support.hand_made import HandRecipe, write_run

from consomme.pipelines.filter import run as filter_
from consomme.pipelines.filter.recipe import FilterRecipe
from consomme.pipelines.prepare import run as prepare
from consomme.pipelines.prepare.recipe import PrepareRecipe
from consomme.pipelines.report import run as report
from consomme.storage.units import plan_units, read_unit


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two score runs and a tag run over a few scenes; the second scorer has the same order."""
    root = str(tmp_path_factory.mktemp("runs"))
    data = prepare.run(PrepareRecipe(name="d", root=root, source={"name": "scenes", "num": 40}))
    units = [(unit, read_unit(unit)[0]) for unit in plan_units([f"{data.url}/data"], "data", 16)]

    def parts(**columns: Any) -> Any:
        for k, (unit, rows) in enumerate(units):
            numbers = range(16 * k, 16 * k + len(rows))
            table = {
                "row": pa.array([row for row, _ in rows], pa.int32()),
                "sample_id": [sample.sample_id for _, sample in rows],
                **{name: make(numbers) for name, make in columns.items()},
            }
            yield unit, pa.table(table)

    def ascending(factor: float) -> Any:
        return lambda numbers: pa.array([1.0 + factor * n for n in numbers], pa.float32())

    def run(verb: str, name: str, **columns: Any) -> str:
        return write_run(verb, HandRecipe(name=name, root=root), list(parts(**columns)))

    return {
        "root": root,
        "scores": run("score", "s", perplexity=ascending(1.0), image_gain=ascending(-1.0)),
        "large": run("score", "l", perplexity=ascending(2.0)),
        "tags": run(
            "tag",
            "t",
            object=lambda numbers: pa.array(["person" if n % 5 else "text" for n in numbers]),
            embedding=lambda numbers: pa.array([[n, 1.0] for n in numbers], pa.list_(pa.float32())),
        ),
    }


def drawn(runs: dict[str, str], keep: dict[str, Any]) -> tuple[list[tuple[str, str]], str]:
    recipe = FilterRecipe(
        name="f",
        root=runs["root"],
        scores=runs["scores"],
        columns_from={"large": runs["large"], "tags": runs["tags"]},
        keep=keep,
    )
    done = report.run_folder(filter_.run(recipe).url)
    text = (Path(done.url) / "report.html").read_text()
    cards = re.findall(r'<figure class="card">(.*?)</figure>', text, re.DOTALL)
    found = [
        (re.findall(r'badge \w+">(\w+)<', c)[0], "".join(re.findall("<p>(.*?)</p>", c)))
        for c in cards
    ]
    return found, text


TERMS = [{"column": "perplexity", "log": True}, {"column": "large.perplexity", "log": True}]


@pytest.mark.parametrize(
    ("keep", "column", "kept"),
    [
        ({"name": "lowest_fraction", "fraction": 0.5}, "perplexity", 12),
        ({"name": "lowest_fraction", "column": "large.perplexity", "fraction": 0.5}, "large", 12),
        ({"name": "mean_fraction", "terms": TERMS, "fraction": 0.25}, "mean of perplexity", 6),
        ({"name": "balance", "objects": ["person", "text"], "fraction": 0.0}, "perplexity", None),
        ({"name": "k_center", "samples": 20}, "perplexity", None),
        ({"name": "random_fraction", "fraction": 0.5}, "perplexity", None),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_samples_in_order_with_their_fate(
    runs: dict[str, str], keep: dict[str, Any], column: str, kept: int | None
) -> None:
    cards, text = drawn(runs, keep)
    assert len(cards) == 24
    assert all(line.startswith(column) for _, line in cards)
    numbers = [float(line.rpartition(" ")[2]) for _, line in cards]
    assert numbers == sorted(numbers)
    fates = [fate for fate, _ in cards]
    if kept is not None:
        assert fates == ["kept"] * kept + ["dropped"] * (24 - kept)
    else:
        assert {"kept", "dropped"} == set(fates)
    assert keep["name"] in text
