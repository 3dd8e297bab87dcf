"""Damaged bytes of any kind end in rejects or a `DataError`: no crash, no hang, no memory gone.

    CONSOMME_FUZZ_SECONDS=600 CONSOMME_FUZZ_SEED=7 pytest tests/storage/readers/test_reader_fuzz.py

Each area runs in a process of its own, because a native library may end the process.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
AREAS = ("tar", "parquet", "jsonl", "json", "image")
SECONDS = float(os.environ.get("CONSOMME_FUZZ_SECONDS", "6"))
"""For all areas together."""
SEED = int(os.environ.get("CONSOMME_FUZZ_SEED", "0"))


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 300)
@pytest.mark.parametrize("area", AREAS)
def test_no_damage_breaks_reading(area: str, tmp_path: Path) -> None:
    share = str(SECONDS / len(AREAS))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.storage.readers.fuzz_child",
            area,
            str(SEED),
            "0",
            share,
            str(tmp_path),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    cases = done.stdout.split()
    if done.returncode:
        last = cases[-1] if cases else "?"
        kept = next(iter(tmp_path.glob("case.*")), tmp_path)
        pytest.fail(
            f"case {last} of area {area}, seed {SEED} ended with {done.returncode}; its bytes are "
            f"in {kept}\n{done.stderr[-5000:]}"
        )
    assert len(cases) > 3
