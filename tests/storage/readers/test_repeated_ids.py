"""Rows with the same id, and rows that cannot be read: the same however a file is cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.zoo_images import good_image

from consomme.storage.units import plan_units, read_unit

PICTURE = good_image("one")
FORMS = ("parquet", "groups", "arrow file", "arrow stream", "lines", "array")

# A row: its id, and whether it has an image.
rows_lists = st.lists(
    st.tuples(st.sampled_from(["a", "b", "a@1", "c"]), st.booleans()), min_size=1, max_size=12
)


def write(folder: Path, form: str, rows: list[tuple[str, bool]]) -> Path:
    """Write rows in one of the forms."""
    if form in ("lines", "array"):
        (folder / "p.png").write_bytes(PICTURE)
        records = [
            {"id": name, "caption": f"text {k}"} | ({"image": "p.png"} if has else {"image": None})
            for k, (name, has) in enumerate(rows)
        ]
        path = folder / ("rows.jsonl" if form == "lines" else "rows.json")
        lines = "".join(json.dumps(one) + "\n" for one in records)
        path.write_text(lines if form == "lines" else json.dumps(records))
        return path
    table = pa.table(
        {
            "id": [name for name, _ in rows],
            "image": pa.array([PICTURE if has else None for _, has in rows], pa.binary()),
            "caption": [f"text {k}" for k in range(len(rows))],
        }
    )
    if form in ("parquet", "groups"):
        pq.write_table(table, folder / "rows.parquet", row_group_size=2 if form == "groups" else 99)
        return folder / "rows.parquet"
    path = folder / "rows.arrow"
    make: Any = pa.ipc.new_file if form == "arrow file" else pa.ipc.new_stream
    with make(str(path), table.schema) as sink:
        sink.write_table(table, max_chunksize=3)
    return path


def outcome(path: Path, max_rows: int) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Id and text of each sample, id and reason of each reject."""
    samples, rejects = [], []
    for unit in plan_units([str(path)], "web", max_rows=max_rows):
        good, bad = read_unit(unit)
        samples += [(one.sample_id, one.caption or "") for _, one in good]
        rejects += [(one.sample_id, one.reason) for _, one in bad]
    return samples, rejects


@pytest.mark.parametrize("form", FORMS)
@given(rows=rows_lists)
def test_units_of_any_size_have_the_same_ids(
    tmp_path_factory: pytest.TempPathFactory, form: str, rows: list[tuple[str, bool]]
) -> None:
    path = write(tmp_path_factory.mktemp("rows"), form, rows)
    whole = outcome(path, 1024)
    samples, rejects = whole
    assert [text for _, text in samples] == [f"text {k}" for k, (_, has) in enumerate(rows) if has]
    assert len(rejects) == sum(not has for _, has in rows)
    ids = [name for name, _ in samples]
    assert len(set(ids)) == len(ids), "an id was given twice"
    for max_rows in (1, 2, 3, 5):
        assert outcome(path, max_rows) == whole
