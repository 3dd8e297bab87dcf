"""A table with columns of its own and several captions a row, through all verbs."""

import json
from pathlib import Path

import pytest
from tests.support.every_verb import NANO, TRAIN, run_verb

from consomme.datasets import scenes
from consomme.ops.verify import verify
from consomme.storage.sidecar import iter_columns
from consomme.storage.view import View, read_view_unit

pytestmark = [pytest.mark.ray, pytest.mark.long]

NUM = 8
"""Rows, with two captions each; beside them a row without an image and one that is too small."""


@pytest.fixture
def table(tmp_path: Path) -> tuple[str, dict[str, object]]:
    images = tmp_path / "elsewhere"
    images.mkdir()
    rows = []
    for k in range(NUM):
        scenes.render(scenes.make_scene(k)).save(images / f"{k}.png")
        rows.append({"nr": f"r{k}", "pic": f"{k}.png", "said": [f"scene {k}", f"picture {k}"]})
    scenes.render(scenes.make_scene(0)).resize((8, 8)).save(images / "small.png")
    rows.append({"nr": "gone", "pic": "gone.png", "said": ["a", "b"]})
    rows.append({"nr": "small", "pic": "small.png", "said": ["a", "b"]})
    path = tmp_path / "table.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reading = {
        "columns": {"id": "nr", "image": "pic", "caption": "said"},
        "image_root": str(images),
        "captions": "each",
        "min_side_px": 16,
        "allow": ["image_missing", "image_too_small"],
    }
    return str(path), reading


def test_options_of_reading_go_with_the_data(
    table: tuple[str, dict[str, object]], tmp_path: Path, lent_ray: None
) -> None:
    file, reading = table
    root = str(tmp_path / "runs")
    data = {"inputs": [file], "reading": reading, "unit_rows": 3, "root": root}
    texts = {f"{word} {k}" for k in range(NUM) for word in ("scene", "picture")}
    scores = run_verb("score", name="scores", model=NANO, **data)
    assert scores.counts["samples"] == 2 * NUM
    reasons = {key: n for key, n in scores.counts.items() if key.startswith("rejected/")}
    assert reasons == {"rejected/image_missing": 2, "rejected/image_too_small": 2}
    ids = {
        name for _, found in iter_columns(scores.url, []) for name in found["sample_id"].to_pylist()
    }
    assert len(ids) == 2 * NUM
    run_verb("tag", name="tags", taggers=[{"name": "size"}], **data)
    copies = run_verb("dedup", name="copies", **data)
    # Two captions of one image are two samples with the same bytes.
    assert (copies.counts["kept"], copies.counts["exact"]) == (NUM, NUM)
    keep = {"name": "highest_fraction", "column": "image_gain", "fraction": 0.5}
    view = run_verb(
        "filter", name="half", scores=scores.url, keep=keep, materialize=True, root=root
    )
    kept = [
        sample
        for unit, bitmap in View.load(view.url).entries
        for _, sample in read_view_unit(unit, bitmap)
    ]
    assert len(kept) == NUM
    assert {one.caption for one in kept} < texts
    writer = {"engine": {"name": "transformers"}, "max_tokens": 4, "model": NANO}
    new = run_verb("recaption", name="new", view=view.url, root=root, **writer)
    assert new.counts["samples"] == NUM
    also = run_verb("recaption", name="also", **writer, **data)
    assert also.counts["samples"] == 2 * NUM
    few = TRAIN | {"num_steps": 2, "checkpoint_every": 2, "root": root}
    sources = {
        "raw": {"inputs": [file], "reading": reading},
        "view": {"view": view.url},
        "new": {"view": view.url, "captions": new.url},
    }
    for name, source in sources.items():
        trained = run_verb("train", name=name, data=[source], **few)
        assert verify(trained.url).problems == ()
    for done in (scores, copies, view, new, also):
        assert verify(done.url).problems == ()
    written = run_verb("score", name="copied", model=NANO, inputs=[f"{view.url}/shards"], root=root)
    assert written.counts["samples"] == NUM
