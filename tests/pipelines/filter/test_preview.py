"""A preview says what the run will do, shows who lies at the cut, and leaves no run behind."""

import dataclasses
import hashlib
import io
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from tests.support.hand_made import HandRecipe, write_run

from consomme.base.hashing import hash_ids
from consomme.base.sample import Sample
from consomme.cli import run_command
from consomme.curate.keep.policy import PolicyResult
from consomme.curate.keep.registry import KEEP_POLICIES
from consomme.pipelines.filter import run as filter_
from consomme.pipelines.filter.preview import preview
from consomme.pipelines.filter.recipe import FilterRecipe
from consomme.pipelines.prepare import run as prepare
from consomme.pipelines.prepare.recipe import PrepareRecipe
from consomme.storage.sidecar import iter_columns
from consomme.storage.unit import Unit
from consomme.storage.units import plan_units, read_unit
from consomme.storage.view import View
from consomme.vision.thumbnail import thumbnail


def perplexity_of(sample: Sample) -> float:
    """A made-up score with ties, from the sample alone."""
    return 2.0 + hashlib.sha256(sample.sample_id.encode()).digest()[0] % 50


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Unit, list[tuple[int, Sample]]]]:
    root = tmp_path_factory.mktemp("data")
    units: list[Unit] = []
    for name, num in (("web", 60), ("books", 30)):
        made = prepare.run(
            PrepareRecipe(name=name, root=str(root), source={"name": "scenes", "num": num})
        )
        units += plan_units([f"{made.url}/data"], name, 16)
    return [(unit, read_unit(unit)[0]) for unit in units]


@pytest.fixture(scope="module")
def samples(data: Any) -> list[tuple[str, int, Sample]]:
    return [(unit.unit_id, row, sample) for unit, rows in data for row, sample in rows]


@pytest.fixture(scope="module")
def scores(data: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    def table(rows: list[tuple[int, Sample]]) -> pa.Table:
        return pa.table(
            {
                "row": pa.array([row for row, _ in rows], pa.int32()),
                "sample_id": [sample.sample_id for _, sample in rows],
                "perplexity": pa.array([perplexity_of(s) for _, s in rows], pa.float32()),
                "num_tokens": pa.array([len(s.caption.split()) for _, s in rows], pa.int32()),
            }
        )

    recipe = HandRecipe(name="s", root=str(tmp_path_factory.mktemp("scores")))
    return write_run("score", recipe, [(unit, table(rows)) for unit, rows in data])


def recipe_of(root: Path | str, scores: str, **keep: Any) -> FilterRecipe:
    node = {"name": "lowest_fraction", "fraction": 0.3, **keep}
    return FilterRecipe(name="p", root=str(root), scores=scores, keep=node)


def ranked(samples: list[tuple[str, int, Sample]]) -> list[Sample]:
    hashes = hash_ids(f"{sample.source}\t{sample.sample_id}" for _, _, sample in samples)
    order = sorted(
        range(len(samples)), key=lambda k: (perplexity_of(samples[k][2]), int(hashes[k]))
    )
    return [samples[k][2] for k in order]


def cards(text: str) -> list[tuple[str, str]]:
    """Badge and sample id of each picture on a page, in order."""
    found = re.findall(r'<figure class="card">(.*?)</figure>', text, re.DOTALL)
    return [
        (
            re.findall(r'class="badge \w+">(\w+)<', card)[0],
            re.findall(r"<p>(.*?)</p>", card)[-1],
        )
        for card in found
    ]


def test_its_numbers_are_those_of_the_runs(
    tmp_path: Path, scores: str, samples: list[tuple[str, int, Sample]]
) -> None:
    stats = preview(recipe_of(tmp_path, scores))
    assert stats.table["columns"] == ["keep", "samples", "cut", "mean tokens", "web", "books"]
    rows = {row[0]: row[1:] for row in stats.table["rows"]}
    assert list(rows) == ["everything", "5 %", "10 %", "20 %", "30 % (the recipe's)", "40 %"]
    assert rows["everything"][0] == "90"
    assert rows["everything"][3:] == ["60", "30"]
    for label, fraction in (("5 %", 0.05), ("30 % (the recipe's)", 0.3), ("40 %", 0.4)):
        done = filter_.run(recipe_of(tmp_path, scores, fraction=fraction))
        kept = {(unit.unit_id, row) for unit, some in View.load(done.url).rows() for row in some}
        stay = [sample for unit_id, row, sample in samples if (unit_id, row) in kept]
        words = [len(sample.caption.split()) for sample in stay]
        by_source = [sum(s.source == name for s in stay) for name in ("web", "books")]
        assert rows[label] == [
            f"{done.counts['kept']} ({100 * done.counts['kept'] / 90:.3g} %)",
            f"{done.decisions['cut']:.6g}",
            f"{sum(words) / len(words):.1f}",
            *(f"{n} ({100 * n / of:.3g} %)" for n, of in zip(by_source, (60, 30), strict=True)),
        ]


def test_the_page_shows_the_last_kept_and_the_first_dropped(
    tmp_path: Path, scores: str, samples: list[tuple[str, int, Sample]]
) -> None:
    stats = preview(recipe_of(tmp_path, scores, fraction=0.2))
    assert stats.page == str(tmp_path / "previews" / "p.html")
    text = Path(stats.page).read_text()
    order = ranked(samples)
    expected = []
    for n in (4, 9, 18, 36):
        expected += [("kept", s.sample_id) for s in order[max(0, n - 6) : n]]
        expected += [("dropped", s.sample_id) for s in order[n : n + 6]]
    assert cards(text) == expected
    assert text.count("data:image/") == len(expected)
    assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org", "")


def test_no_run_is_made_and_ray_is_not_started(tmp_path: Path, scores: str) -> None:
    preview(recipe_of(tmp_path, scores))
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()] == [
        "previews/p.html"
    ]
    ray = sys.modules.get("ray")
    assert ray is None or not ray.is_initialized()


@pytest.mark.parametrize(
    ("keep", "label", "shown"),
    [
        ({"name": "threshold", "min": 10.0, "max": 40.0}, "as the recipe says", 24),
        ({"name": "band", "low": 0.2, "high": 0.7}, "as the recipe says", 24),
        ({"name": "one_of", "column": "source", "values": ["books"]}, "as the recipe says", 12),
        ({"name": "random_fraction", "fraction": 0.1}, "10 % (the recipe's)", 4 * 12 - 2),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_other_policies_are_shown_as_they_are(
    tmp_path: Path, scores: str, keep: dict[str, Any], label: str, shown: int
) -> None:
    recipe = FilterRecipe(name="p", root=str(tmp_path), scores=scores, keep=keep)
    stats = preview(recipe)
    row = next(row for row in stats.table["rows"] if row[0] == label)
    done = filter_.run(recipe)
    assert row[1].startswith(f"{done.counts['kept']} (")
    kept = {(unit.unit_id, row) for unit, some in View.load(done.url).rows() for row in some}
    assert len(kept) == done.counts["kept"]
    found = cards(Path(stats.page).read_text())
    assert len(found) == shown
    assert {badge for badge, _ in found} == {"kept", "dropped"}


@pytest.mark.parametrize("name", ["all_of", "any_of", "in_turn"])
def test_at_the_cut_of_one_rule_stand_those_that_the_others_leave_to_it(
    tmp_path: Path, scores: str, name: str
) -> None:
    books = {"name": "one_of", "column": "source", "values": ["books"]}
    low = {"name": "lowest_fraction", "fraction": 0.5}
    keep = {"name": name, "policies": [books, low]}
    recipe = FilterRecipe(name="p", root=str(tmp_path), scores=scores, keep=keep)
    shown = cards(Path(preview(recipe).page).read_text())
    assert [badge for badge, _ in shown] == ["kept"] * 6 + ["dropped"] * 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShortIds:
    """A policy of somebody's own, which knows arrays only."""

    fraction: float = 0.5
    columns: tuple[str, ...] = ("perplexity",)

    def __call__(self, columns: Any, hash_N: Any) -> PolicyResult:
        mask_N = columns["perplexity"] <= np.quantile(columns["perplexity"], self.fraction)
        return PolicyResult(
            mask_N=mask_N, cut=2.5, tie_count=0, num_scored=len(hash_N), num_missing=0
        )


def test_a_policy_of_ones_own_is_shown_too(
    tmp_path: Path, scores: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KEEP_POLICIES._classes, "own", ShortIds)
    keep = {"name": "own", "fraction": 0.3}
    recipe = FilterRecipe(name="p", root=str(tmp_path), scores=scores, keep=keep)
    stats = preview(recipe).table["rows"]
    assert [row[0] for row in stats[1:]] == ["5 %", "10 %", "20 %", "30 % (the recipe's)", "40 %"]
    done = filter_.run(recipe)
    assert stats[4][1].startswith(f"{done.counts['kept']} (")
    assert {row[2] for row in stats[1:]} == {"2.5"}


def test_large_pictures_are_made_small_and_bad_ones_left_out() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (700, 900, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    with Image.open(io.BytesIO(thumbnail(buffer.getvalue()))) as small:
        assert (small.format, max(small.size)) == ("JPEG", 320)
    assert thumbnail(buffer.getvalue()[:5000]) == b""


def test_at_a_remote_root_the_page_is_a_temporary_file(
    tmp_path: Path, scores: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stats = preview(recipe_of("s3://bucket/runs", scores))
    assert Path(stats.page).parent == tmp_path
    assert "What would be kept" in Path(stats.page).read_text()


def test_pictures_that_are_gone_cost_the_pictures_only(tmp_path: Path, scores: str) -> None:
    before = preview(recipe_of(tmp_path, scores)).table
    parts = [
        (dataclasses.replace(record.unit, shard="/nowhere/gone.tar"), table)
        for record, table in iter_columns(scores, ["perplexity", "num_tokens"])
    ]
    moved = write_run("score", HandRecipe(name="moved", root=str(tmp_path)), parts)
    after = preview(recipe_of(tmp_path, moved))
    assert after.table == before
    text = Path(after.page).read_text()
    assert "the shard is gone" in text
    assert text.count("not shown") > 10


def test_the_command_line_prints_the_table_and_the_page(
    tmp_path: Path, scores: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("name: p\nscores: ???\nkeep: {name: lowest_fraction}\n")
    command = ["filter", str(path), f"scores={scores}", f"root={tmp_path / 'runs'}"]
    assert run_command([*command, "--preview", "keep.fraction=0.3"]) == 0
    shown = capsys.readouterr().out
    assert "30 % (the recipe's)" in shown
    assert "only a preview, no run was made" in shown
    page = tmp_path / "runs" / "previews" / "p.html"
    assert str(page) in shown.replace("\n", "")
    assert page.is_file()
    assert not (tmp_path / "runs" / "filter").exists()

    assert run_command([*command, "--previw"]) == 2
    assert "unknown option --previw" in capsys.readouterr().err
    assert run_command(["score", str(path), "--preview"]) == 2
    assert "unknown option --preview" in capsys.readouterr().err
    assert run_command(["filter", "--help"]) == 0
    assert "[--preview]" in capsys.readouterr().out
