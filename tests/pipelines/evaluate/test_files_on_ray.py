"""Benchmarks from files by the verb: caches by content, changed files, comparisons of models."""

from pathlib import Path

import pytest
from tests.evaluate.test_file_kinds import in_text, write_tsv

from consomme.ops.verify import verify
from consomme.pipelines.evaluate import report as evaluate_report
from consomme.pipelines.evaluate import run as evaluate
from consomme.pipelines.evaluate.examples import read_examples
from consomme.pipelines.evaluate.recipe import EvaluateRecipe
from consomme.report import model as page
from consomme.storage.ledger.run_folder import RunFolder, load_manifest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NANO = "package://models/nano"


def recipe(folder: Path, file: str) -> EvaluateRecipe:
    choice = {"name": "multiple_choice", "file": file, "prompt": "{question}"}
    return EvaluateRecipe(
        name="files",
        models={"one": NANO, "two": NANO},
        benchmarks=(
            choice | {"answer_by": "text_likelihood"},
            choice | {"answer_by": "text_likelihood", "blank": True},
            {"name": "open", "file": file, "prompt": "{question}", "label": "said"},
        ),
        root=str(folder / "runs"),
        num_actors=1,
    )


def test_files_are_evaluated_cached_and_watched(tmp_path: Path, lent_ray: None) -> None:
    rows = [
        {"index": k, "image": in_text(color), "question": "what color is it?",
         "A": "red", "B": "blue", "answer": letter}
        for k, (color, letter) in enumerate([("red", "A"), ("blue", "B"), ("red", "A")])
    ]  # fmt: skip
    file = write_tsv(tmp_path / "colors.tsv", rows)
    first = evaluate.run(recipe(tmp_path, file))
    assert set(first.decisions["results"]["one"]) == {"colors", "colors_blank", "said"}
    assert first.decisions["main_figures"]["said"] == "exact_fraction"
    (section,) = evaluate_report.sections([load_manifest(first.url)], {})
    columns = [block.columns for block in section.blocks if isinstance(block, page.Table)]
    assert ("model", "exact") in [names[:2] for names in columns]
    for one in first.decisions["comparisons"]:
        assert (one["models"], one["difference"], one["p_value"]) == (["one", "two"], 0, 1)
    assert len(first.decisions["comparisons"]) == 3
    assert RunFolder.at(first.url).store.exists("export/one/one_said.tsv")
    assert verify(first.url).problems == ()
    examples = read_examples(RunFolder.at(first.url).store)
    assert {one.meta["expected"] for one in examples if one.meta["benchmark"] == "said"} == {
        "A",
        "B",
    }
    assert evaluate.run(recipe(tmp_path, file)).is_found
    # The same rows elsewhere are the same run; one row less is another.
    moved = write_tsv(tmp_path / "moved.tsv", rows)
    (tmp_path / "colors.tsv").unlink()
    Path(moved).rename(file)
    assert evaluate.run(recipe(tmp_path, file)).is_found
    write_tsv(tmp_path / "colors.tsv", rows[:2])
    again = evaluate.run(recipe(tmp_path, file))
    assert again.url != first.url
    assert again.metrics["evaluate/one/colors/num_questions"] == 2
