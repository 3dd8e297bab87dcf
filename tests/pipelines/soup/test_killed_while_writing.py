"""A soup whose process is killed between two of its files: run again, it has the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.pipelines.choosing.test_soup import NANO, damaged

from consomme.ops.verify import verify
from consomme.storage.stores.open import open_store

pytestmark = pytest.mark.slow

MAX_SHARD_GB = 0.0005


def start(recipe: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "consomme.cli", "soup", str(recipe)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def written(root: str) -> dict[str, bytes]:
    """All files of the models below a root, by name."""
    store = open_store(root)
    paths = [file.path for file in store.list() if "/model/" in file.path]
    return {path.rpartition("/model/")[2]: store.read(path) for path in paths}


def shards(root: str) -> list[str]:
    if not root.startswith("s3://") and not os.path.isdir(root):
        return []
    return [f.path for f in open_store(root).list() if f.path.endswith(".safetensors")]


@pytest.mark.parametrize("store", ["disk", pytest.param("s3", marks=pytest.mark.long)])
def test_killed_between_two_files(
    tmp_path: Path, store: str, request: pytest.FixtureRequest
) -> None:
    where = request.getfixturevalue("s3_root") if store == "s3" else str(tmp_path)
    models = {
        "nano": NANO,
        **{f"m{k}": damaged(tmp_path / f"m{k}", 0.1 * k, "language_model") for k in (1, 2, 3)},
    }
    recipes = {}
    for name in ("whole", "killed"):
        recipes[name] = tmp_path / f"{name}.yaml"
        content = {
            "name": "s", "root": f"{where}/{name}", "ingredients": models, "base": NANO,
            "max_shard_gb": MAX_SHARD_GB, "method": {"name": "ties"},
        }  # fmt: skip
        recipes[name].write_text(json.dumps(content))
    assert start(recipes["whole"]).wait(300) == 0
    expected = written(f"{where}/whole")
    assert len(expected) > 20
    kills = 0
    for least in (1, 9, 18):
        process = start(recipes["killed"])
        while process.poll() is None and len(shards(f"{where}/killed")) < least:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 2, "it was done before it could be killed"
    assert start(recipes["killed"]).wait(300) == 0
    found = written(f"{where}/killed")
    assert found == expected
    (run,) = {f.path.rpartition("/manifest.json")[0] for f in open_store(f"{where}/killed").list()
              if f.path.endswith("/manifest.json")}  # fmt: skip
    assert verify(f"{where}/killed/{run}").problems == ()
