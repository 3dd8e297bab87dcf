"""Damaged bytes of any kind end in rejects or a `DataError`: no crash, no hang, no memory gone.

    CONSOMME_FUZZ_SECONDS=600 CONSOMME_FUZZ_SEED=7 pytest tests/storage/test_reader_fuzz.py

Each area runs in a process of its own, because a native library may end the process.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
AREAS = ("tar", "parquet", "jsonl", "json", "image")
SECONDS = float(os.environ.get("CONSOMME_FUZZ_SECONDS", "6"))
"""For all areas together."""
SEED = int(os.environ.get("CONSOMME_FUZZ_SEED", "0"))


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 300)
@pytest.mark.parametrize("area", AREAS)
def test_no_damage_breaks_reading(area: str, tmp_path: Path) -> None:
    script = str(HERE / "fuzz_child.py")
    share = str(SECONDS / len(AREAS))
    done = subprocess.run(
        [sys.executable, script, area, str(SEED), "0", share, str(tmp_path)],
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
