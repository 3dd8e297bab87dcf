"""An evaluation keeps some questions with all images and answers, and its report shows them."""

from pathlib import Path

import pytest

from consomme.base.manifest import Manifest
from consomme.base.sample import ImageRef
from consomme.evaluate.benchmarks import BENCHMARKS
from consomme.pipelines.evaluate.examples import (
    NUM_EXAMPLES,
    examples_of,
    read_examples,
    write_examples,
)
from consomme.pipelines.evaluate.report import sections
from consomme.report import model as page
from consomme.report.html import render
from consomme.report.model import ShownPicture
from consomme.storage.stores.local import LocalStore
from consomme.vision.decode import decode

NODES = [
    {"name": "scene_which", "num": 13},
    {"name": "scene_changes", "num": 4},
    {"name": "scene_documents", "num": 13},
    {"name": "scene_questions", "num": 2},
]


def evaluated(folder: Path, node: dict[str, object]) -> Manifest:
    """What an evaluation of two models leaves, one of them always right, one never."""
    name = str(node["name"])
    benchmark = BENCHMARKS.build(node)
    answers = {
        "knows": [item.truth for item in benchmark.items()],
        "mute": ["" for _ in benchmark.items()],
    }
    verdicts = {label: benchmark.verdicts(given) for label, given in answers.items()}
    write_examples(LocalStore(folder), list(examples_of(name, benchmark, answers, verdicts)))
    results = {label: {name: benchmark.measure(given)} for label, given in answers.items()}
    return Manifest(
        verb="evaluate",
        name="run",
        fingerprint="0" * 8,
        recipe={"benchmarks": [node]},
        decisions={"results": results},
        url=str(folder),
    )


@pytest.mark.parametrize("node", NODES, ids=lambda node: node["name"])
def test_questions_are_kept_with_all_images_in_their_places(tmp_path: Path, node) -> None:
    evaluated(tmp_path, node)
    benchmark = BENCHMARKS.build(node)
    items = benchmark.items()
    kept = read_examples(LocalStore(tmp_path))
    assert len(kept) == min(NUM_EXAMPLES, len(items))
    for sample in kept:
        item = items[int(sample.sample_id.partition("/")[2])]
        assert sample.turns == item.placed_turns
        shown = [decode(image.data) for image in sample.images]
        assert [one.tobytes() for one in shown] == [one.tobytes() for one in item.images]
        assert sample.meta["expected"] == item.truth
        assert sample.meta["answers"] == {"knows": item.truth, "mute": ""}
        assert sample.meta["verdicts"] == {"knows": 1.0, "mute": 0.0}


@pytest.mark.parametrize("node", NODES, ids=lambda node: node["name"])
def test_the_report_shows_them(tmp_path: Path, node) -> None:
    manifest = evaluated(tmp_path, node)
    (section,) = sections([manifest], {})
    table, gallery = section.blocks
    assert isinstance(table, page.Table)
    assert isinstance(gallery, page.Gallery)
    for card, sample in zip(gallery.items, read_examples(LocalStore(tmp_path)), strict=True):
        (turn,) = card.turns
        places = [isinstance(part, ShownPicture) for part in turn.parts]
        assert places == [isinstance(part, ImageRef) for part in sample.turns[0].parts]
        assert sum(places) == len(sample.images)
        assert card.badge == "1 of 2 right"
        assert card.lines[1:] == [f"knows: {sample.meta['expected']}", "mute: "]
    html = render(page.Report(title="run", sections=[section]))
    assert html.count("<img") == sum(len(s.images) for s in read_examples(LocalStore(tmp_path)))


def test_runs_that_kept_none_have_a_table_only(tmp_path: Path) -> None:
    manifest = evaluated(tmp_path, NODES[0])
    (tmp_path / "examples.parquet").unlink()
    (section,) = sections([manifest], {})
    assert [type(block) for block in section.blocks] == [page.Table]
