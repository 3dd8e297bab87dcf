"""Seconds that the self-check of a scorer takes when a model is opened, by size of the model.

    python -m tests.benchmarks.selfcheck FOLDER     # one process per model

The check runs once for a model's content and settings; afterwards its result is cached. Figures are
of one CPU thread in float32, beside the seconds in which the same process opened the model.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROUNDS = 3


def check_once(folder: str) -> dict[str, Any]:
    """Open the model without a cached check."""
    from consomme.curate.perplexity import token_nll
    from consomme.engines.scoring.transformers import TransformersScorer

    start = time.perf_counter()
    scorer = TransformersScorer(folder, token_nll, threads=1)
    seconds = time.perf_counter() - start
    return {"check": scorer.check.seconds, "open": seconds - scorer.check.seconds,
            "way": scorer.check.way}  # fmt: skip


def models(scratch: Path) -> dict[str, str]:
    """Return the folders of the nano VLM, SmolLM2-135M, and a random VLM of 1.1 billion."""
    from tests.benchmarks.scoring import random_vlm
    from tests.support import smollm2

    from consomme.storage.model_folder import model_folder

    return {
        "nano": str(model_folder("package://models/nano")),
        "smollm2": str(smollm2.make(scratch / "smollm2")),
        "1b": str(random_vlm("large", scratch / "1b")),
    }


def rows() -> list[dict[str, Any]]:
    """Run each check in processes of its own; the largest once."""
    from tests.benchmarks.run import row

    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, folder in models(Path(scratch)).items():
            runs = []
            for _ in range(1 if name == "1b" else ROUNDS):
                command = [sys.executable, "-m", "tests.benchmarks.selfcheck", folder]
                out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                runs.append(json.loads(out.splitlines()[-1]))
            seconds = statistics.median(run["check"] for run in runs)
            opening = statistics.median(run["open"] for run in runs)
            how = (
                f"once per content and settings of a model, one CPU thread, float32; opening the"
                f" model besides took {opening:.1f} s; way found: {runs[0]['way']}"
            )
            found.append(row(f"selfcheck.seconds_{name}", seconds, "s", "", how))
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(check_once(sys.argv[1])) + "\n")
