"""Every shipped picture has its licence told."""

import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from consomme.datasets.emoji import DATA, HELD_OUT_STYLE, TRAIN_STYLES, shard

LICENCES = (DATA / "LICENSES.md").read_text()


def test_every_file_is_covered() -> None:
    named = set(re.findall(r"^\| `([\w.-]+\.parquet)`", LICENCES, re.MULTILINE))
    assert named == {path.name for path in DATA.glob("*.parquet")}
    assert named == {Path(shard(style)).name for style in (*TRAIN_STYLES, HELD_OUT_STYLE)}


@pytest.mark.parametrize("style", [*TRAIN_STYLES, HELD_OUT_STYLE])
def test_counts_are_right(style: str) -> None:
    num = pq.read_metadata(shard(style)).num_rows
    assert f"| `{shard(style).name}` | {num:,} |" in LICENCES
