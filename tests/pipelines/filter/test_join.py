"""Several runs side by side: what is joined with what, and what is refused."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tests.support.hand_made import HandRecipe, unit_of, write_run, write_view

from consomme.base.errors import DataError, RecipeError
from consomme.base.manifest import Manifest
from consomme.pipelines.filter import run as filter_
from consomme.pipelines.filter.columns import ColumnStore
from consomme.pipelines.filter.inputs import InputRuns
from consomme.pipelines.filter.recipe import FilterRecipe
from consomme.storage.unit import Unit
from consomme.storage.view import View

UNITS = [unit_of(0, 6), unit_of(1, 5), unit_of(2, 4)]
Rows = Sequence[Sequence[int]]
ALL: Rows = [range(6), range(5), range(4)]


def number_of(unit: Unit, row: int) -> int:
    return 10 * int(unit.unit_id[-4:]) + row


def columns_of(unit: Unit, rows: Sequence[int]) -> pa.Table:
    """Columns that tell which sample they are of."""
    numbers = [number_of(unit, row) for row in rows]
    return pa.table(
        {
            "row": pa.array(list(rows), pa.int32()),
            "sample_id": pa.array([f"sample-{n}" for n in numbers], pa.string()),
            "perplexity": pa.array(numbers, pa.float32()),
            "num_words": pa.array(numbers, pa.int32()),
            "is_long": pa.array([n > 10 for n in numbers], pa.bool_()),
            "object": pa.array([f"object {n % 3}" if n % 4 else None for n in numbers]),
            "embedding": pa.array(
                [[n, -n] if n else None for n in numbers], pa.list_(pa.float32())
            ),
            "turns": pa.array([[1.0] * (1 + n % 2) for n in numbers], pa.list_(pa.float32())),
        }
    )


def run_of(
    root: Path | str,
    verb: str,
    name: str,
    rows: Rows = ALL,
    units: Sequence[Unit] = UNITS,
    make: Callable[[Unit, Sequence[int]], pa.Table] = columns_of,
    **options: Any,
) -> str:
    parts = [(unit, make(unit, some)) for unit, some in zip(units, rows, strict=True)]
    return write_run(verb, HandRecipe(name=name, root=str(root), **options), parts)


def view_of(
    root: Path | str, name: str, numbers: set[int], verb: str = "dedup", **options: Any
) -> str:
    rows = {
        unit.unit_id: [row for row in range(unit.count) if number_of(unit, row) in numbers]
        for unit in UNITS
    }
    return write_view(verb, HandRecipe(name=name, root=str(root), **options), UNITS, rows)


def read_columns_of(scores: str, columns: Sequence[str], **runs: Any) -> dict[str, Any]:
    with ColumnStore(InputRuns(scores=scores, **runs), columns) as store:
        return {name: np.array(store.whole(name)) for name in columns}


def filtered(root: Path | str, scores: str, keep: dict[str, Any], **options: Any) -> Manifest:
    recipe = FilterRecipe(name="f", root=str(root), scores=scores, keep=keep, **options)
    return filter_.run(recipe)


def kept(done: Manifest) -> set[int]:
    return {number_of(unit, row) for unit, rows in View.load(done.url).rows() for row in rows}


def test_rows_meet_their_like_and_what_was_rejected_there_is_missing(tmp_path: Path) -> None:
    # Rejected here: 2 and 11. There: 0, 12, and the whole last unit. Rows come in another order.
    scores = run_of(tmp_path, "score", "s", [[0, 1, 3, 4, 5], [4, 0, 3, 2], [0, 1, 2, 3]])
    tags = run_of(tmp_path, "tag", "t", [[1, 2, 3, 5, 4], [0, 1, 3, 4], []])
    columns = ["perplexity", "tags.num_words", "tags.object", "tags.embedding", "tags.is_long"]
    found = read_columns_of(scores, columns, columns_from={"tags": tags})
    here = [0, 1, 3, 4, 5, 14, 10, 13, 12, 20, 21, 22, 23]
    there = [n if n not in {0, 12, 20, 21, 22, 23} else None for n in here]
    assert found["perplexity"].tolist() == here
    nan = float("nan")
    expected = [nan if n is None else float(n) for n in there]
    np.testing.assert_array_equal(found["tags.num_words"], expected)
    assert found["tags.object"].tolist() == [
        f"object {n % 3}" if n and n % 4 else "" for n in there
    ]
    np.testing.assert_array_equal(
        found["tags.embedding"], [[nan, nan] if n is None else [n, -n] for n in there]
    )
    np.testing.assert_array_equal(
        found["tags.is_long"], [nan if n is None else float(n > 10) for n in there]
    )


def test_vectors_stay_on_the_disk_and_have_one_length(tmp_path: Path) -> None:
    scores = run_of(tmp_path, "score", "s")
    with ColumnStore(InputRuns(scores=scores), ["embedding"]) as store:
        ((columns, hash_N),) = store.chunks()
        assert isinstance(columns["embedding"], np.memmap)
        assert columns["embedding"].shape == (15, 2) == (len(hash_N), 2)
        assert np.isnan(columns["embedding"][0]).all()
    with pytest.raises(
        DataError, match="'turns' holds lists of different lengths, such as 1 and 2"
    ):
        read_columns_of(scores, ["turns"])


def test_a_view_is_ones_and_zeros_and_rules_can_use_it(tmp_path: Path) -> None:
    scores = run_of(tmp_path, "score", "s", [[0, 1, 2, 4, 5], [0, 1, 2, 3, 4], [0, 1, 2, 3]])
    unique = view_of(tmp_path, "u", {1, 3, 5, 12, 20})
    found = read_columns_of(scores, ["unique", "perplexity"], views={"unique": unique})
    assert found["unique"].tolist() == [0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 0]
    is_unique = {"name": "threshold", "column": "unique", "min": 1.0}
    half = {"name": "lowest_fraction", "fraction": 0.5}
    both = filtered(
        tmp_path,
        scores,
        {"name": "all_of", "policies": [is_unique, half]},
        views={"unique": unique},
    )
    assert kept(both) == {1, 5}
    in_turn = filtered(
        tmp_path,
        scores,
        {"name": "in_turn", "policies": [is_unique, {**half, "fraction": 0.75}]},
        views={"unique": unique},
    )
    assert kept(in_turn) == {1, 5, 12}


def test_a_view_of_a_view_has_no_units_that_keep_nothing(tmp_path: Path) -> None:
    scores = run_of(tmp_path, "score", "s")
    first = view_of(tmp_path, "first", {1, 21}, verb="filter")
    rows = {UNITS[0].unit_id: [1], UNITS[2].unit_id: []}
    recipe = HandRecipe(name="u", root=str(tmp_path), view=first)
    second = write_view("dedup", recipe, [UNITS[0], UNITS[2]], rows)
    found = read_columns_of(scores, ["unique"], views={"unique": second})
    assert np.flatnonzero(found["unique"]).tolist() == [1]


def test_tags_can_be_chosen_from_without_scores(tmp_path: Path) -> None:
    tags = run_of(tmp_path, "tag", "t")
    done = filtered(tmp_path, tags, {"name": "threshold", "column": "num_words", "max": 4.0})
    assert kept(done) == {0, 1, 2, 3, 4}


def test_all_runs_are_parents_and_part_of_the_fingerprint(tmp_path: Path) -> None:
    scores = run_of(tmp_path, "score", "same")
    large, other = (run_of(tmp_path, "score", "same", remark=text) for text in ("large", "other"))
    unique = view_of(tmp_path, "u", {1})
    keep = {"name": "lowest_fraction", "column": "large.perplexity", "fraction": 0.5}
    done = filtered(tmp_path, scores, keep, columns_from={"large": large}, views={"unique": unique})
    assert [parent.url for parent in done.parents] == [scores, large, unique]
    # The same places in the recipe, and another run in one of them: the name alone does not tell.
    Path(large).rename(tmp_path / "away")
    Path(other).rename(large)
    again = filtered(
        tmp_path, scores, keep, columns_from={"large": large}, views={"unique": unique}
    )
    assert again.fingerprint != done.fingerprint


@pytest.mark.parametrize("verb", ["score", "tag", "dedup"])
def test_runs_that_were_cut_otherwise_are_refused_and_named(tmp_path: Path, verb: str) -> None:
    def other(name: str, units: Sequence[Unit], **options: Any) -> dict[str, Any]:
        if verb == "dedup":
            recipe = HandRecipe(name=name, root=str(tmp_path), **options)
            return {"views": {"other": write_view("dedup", recipe, units, {})}}
        rows = [range(unit.count) for unit in units]
        return {"columns_from": {"other": run_of(tmp_path, verb, name, rows, units, **options)}}

    scores = run_of(tmp_path, "score", "s", unit_rows=6)
    column = "other" if verb == "dedup" else "other.num_words"
    coarse = other("coarse", [unit_of(0, 15)], unit_rows=20)
    with pytest.raises(
        DataError, match=r"web-0000 has 15 rows there and 6 in the scores"
    ) as caught:
        read_columns_of(scores, [column], **coarse)
    assert "the scores have inputs ['pairs.tar'], unit_rows 6" in str(caught.value)
    assert "other has inputs ['pairs.tar'], unit_rows 20" in str(caught.value)
    fewer = other("fewer", UNITS[:2], inputs=("fewer.tar",))
    with pytest.raises(DataError, match=r"web-0002 of the scores is not there.*fewer\.tar"):
        read_columns_of(scores, [column], **fewer)
    more = other("more", [*UNITS, unit_of(3, 2)], inputs=("more.tar",))
    with pytest.raises(DataError, match=r"web-0003 is there and not in the scores.*more\.tar"):
        read_columns_of(scores, [column], **more)


def test_another_sample_in_the_same_place_is_refused(tmp_path: Path) -> None:
    def renamed(unit: Unit, rows: Sequence[int]) -> pa.Table:
        table = columns_of(unit, rows)
        names = [
            f"{name}x" if name == "sample-12" else name for name in table["sample_id"].to_pylist()
        ]
        return table.set_column(1, "sample_id", pa.array(names))

    scores = run_of(tmp_path, "score", "s")
    tags = run_of(tmp_path, "tag", "t", make=renamed)
    with pytest.raises(DataError, match="row 2 of web-0001 has another id there"):
        read_columns_of(scores, ["tags.num_words"], columns_from={"tags": tags})


def test_mistaken_names_are_told(tmp_path: Path) -> None:
    scores, tags = run_of(tmp_path, "score", "s"), run_of(tmp_path, "tag", "t")
    unique = view_of(tmp_path, "u", {1})
    with pytest.raises(DataError, match="no column perplexty; did you mean 'perplexity'"):
        read_columns_of(scores, ["perplexty"])
    with pytest.raises(DataError, match="no run 'tgas'; did you mean 'tags'"):
        read_columns_of(scores, ["tgas.object"], columns_from={"tags": tags})
    with pytest.raises(DataError, match=r"no run 'tags'; add columns_from: \{tags: FOLDER\}"):
        read_columns_of(scores, ["tags.object"])
    with pytest.raises(DataError, match="no column objct; did you mean 'object'"):
        read_columns_of(scores, ["tags.objct"], columns_from={"tags": tags})
    with pytest.raises(
        DataError, match="is a dedup run, expected a run of score or tag; a view goes"
    ):
        read_columns_of(scores, ["tags.object"], columns_from={"tags": unique})
    with pytest.raises(DataError, match="is a tag run, expected a run of filter or dedup; columns"):
        read_columns_of(scores, ["unique"], views={"unique": tags})
    with pytest.raises(RecipeError, match="the scores have a column of this name"):
        read_columns_of(scores, ["perplexity"], views={"perplexity": unique})
    with pytest.raises(DataError, match="no run is there"):
        read_columns_of(scores, ["tags.object"], columns_from={"tags": str(tmp_path / "nowhere")})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns_from": {"a.b": "x"}}, "found the name 'a.b', expected one without a dot"),
        ({"views": {"source": "x"}}, "found the name 'source'"),
        ({"columns_from": {"a": "x"}, "views": {"a": "y"}}, "both have 'a'"),
    ],
)
def test_names_that_cannot_be_told_apart_are_refused(options: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        FilterRecipe(name="f", scores="x", keep={"name": "random_fraction"}, **options)


def test_text_is_not_ranked_and_numbers_are_no_names(tmp_path: Path) -> None:
    tags = run_of(tmp_path, "tag", "t")
    with pytest.raises(DataError, match="'object' holds text, expected numbers"):
        filtered(tmp_path, tags, {"name": "lowest_fraction", "column": "object"})
    with pytest.raises(DataError, match="'num_words' holds numbers, expected text"):
        filtered(tmp_path, tags, {"name": "one_of", "column": "num_words", "values": ["1"]})


def test_runs_on_s3_are_joined_as_well(s3_root: str) -> None:
    scores = run_of(s3_root, "score", "s", [[0, 1, 2, 4, 5], range(5), range(4)])
    tags = run_of(s3_root, "tag", "t")
    unique = view_of(s3_root, "u", {1, 3, 5, 12, 20})
    policies = [
        {"name": "threshold", "column": "unique", "min": 1.0},
        {"name": "threshold", "column": "tags.num_words", "max": 12.0},
    ]
    done = filtered(
        s3_root,
        scores,
        {"name": "all_of", "policies": policies},
        columns_from={"tags": tags},
        views={"unique": unique},
    )
    assert kept(done) == {1, 5, 12}
