"""Runs that an earlier layout of the code wrote are read, verified, reported and used as inputs.

`data/runs-before-the-house.tar.gz` holds runs made at commit 800ae64 on two CPU cores, with @HERE@
for the folder they were made in:

    consomme score score.yaml       # the nano VLM on package://datasets/data/emoji-noto-v1.parquet
    consomme tag tag.yaml           # the tagger `text` on the same shard, unit_rows: 256 as above
    consomme filter filter.yaml     # beside: {tags: …}, keep: {name: one_of, column: tags.language}
    consomme loop loop.yaml         # one stage, four scenes, and a `story`
"""

import json
import tarfile
from pathlib import Path

import pytest

from consomme.cli import run_command
from consomme.ops import status
from consomme.ops.verify import verify
from consomme.pipelines.filter import run as filter_
from consomme.pipelines.filter.recipe import FilterRecipe
from consomme.pipelines.report import run as report
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.view import View

DATA = Path(__file__).parent / "data" / "runs-before-the-house.tar.gz"
VERBS = ("score", "tag", "filter", "loop", "prepare")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Run folders by verb."""
    here = tmp_path_factory.mktemp("before")
    with tarfile.open(DATA) as archive:
        archive.extractall(here, filter="data")
    for manifest in here.glob("runs/*/*/manifest.json"):
        manifest.write_text(manifest.read_text().replace("@HERE@", str(here)))
    return {path.parent.name: str(path) for path in here.glob("runs/*/*-????????")}


@pytest.mark.parametrize("verb", VERBS)
def test_they_verify(runs: dict[str, str], verb: str) -> None:
    assert verify(runs[verb]).problems == ()
    assert run_command(["verify", runs[verb]]) == 0


@pytest.mark.parametrize("verb", VERBS)
def test_their_state_is_told(runs: dict[str, str], verb: str) -> None:
    assert status.read_status(runs[verb]).state == "done"


@pytest.mark.parametrize("verb", VERBS)
def test_their_report_is_drawn(runs: dict[str, str], verb: str) -> None:
    report.run_folder(runs[verb])
    text = (Path(runs[verb]) / "report.html").read_text()
    assert f"consomme {verb}" in text or f"{verb} " in text
    if verb == "loop":
        assert "Made before the house was rebuilt." in text


def test_their_ledgers_are_read(runs: dict[str, str]) -> None:
    folder = RunFolder.at(runs["score"])
    records = list(folder.iter_commits())
    assert sum(record.counts["samples"] for record in records) == 1227
    assert folder.total_counts() == {"samples": 1227}
    assert folder.total_sums()["num_tokens"] > 1227


def test_new_filters_read_old_scores_tags_and_views(runs: dict[str, str], tmp_path: Path) -> None:
    old = json.loads((Path(runs["filter"]) / "manifest.json").read_text())
    recipe = FilterRecipe(
        name="again",
        root=str(tmp_path),
        scores=runs["score"],
        columns_from={"tags": runs["tag"]},
        keep=old["recipe"]["keep"],
    )
    again = filter_.run(recipe)
    assert again.counts == old["counts"]
    assert View.load(again.url).entries == View.load(runs["filter"]).entries
    of_those = filter_.run(
        FilterRecipe(
            name="of-those",
            root=str(tmp_path),
            scores=runs["score"],
            views={"english": runs["filter"]},
            keep={
                "name": "all_of",
                "policies": [
                    {"name": "threshold", "column": "english", "min": 1},
                    {"name": "lowest_fraction", "column": "perplexity", "fraction": 0.5},
                ],
            },
        )
    )
    assert 0 < of_those.counts["kept"] < again.counts["kept"]
    assert {parent.url for parent in of_those.parents} == {runs["score"], runs["filter"]}
