"""Every kind of bad input at once, through a whole run on Ray: one reject each, rightly named."""

from collections import Counter
from pathlib import Path

import pytest
from tests.chaos import harness
from tests.support.zoo import CONTAINERS, write_data_set

from consomme.ops.verify import verify
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.sidecar import read_columns

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_each_bad_input_is_one_reject_and_each_good_one_a_row(
    tmp_path: Path, one_ray: dict[str, str]
) -> None:
    shards = write_data_set(tmp_path / "zoo")
    root = str(tmp_path / "root")
    work = harness.job(tmp_path, root, "unused", one_ray, unit_rows=1024)
    folders = ", ".join(str(tmp_path / "zoo" / container) for container in CONTAINERS)
    work.recipe.write_text(f"root: {root}\ninputs: [{folders}]\nunit_rows: 1024\n")
    work.finish()
    url = harness.run_url(root)
    rows = [row for shard in shards for row in shard.rows]
    expected = Counter(row.kind.reason for row in rows if row.kind)
    assert len({row.kind.name for row in rows if row.kind}) >= 40
    assert Counter(reject.reason for reject in RunFolder.at(url).rejects()) == expected
    good = Counter(row.key for row in rows if not row.kind)
    seen = Counter(read_columns(url, [], kind="pixels")["sample_id"].to_pylist())
    assert seen == good
    assert verify(url).problems == ()
