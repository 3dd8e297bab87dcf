"""Helpers of other folders that tests of training use."""

import sys
from pathlib import Path

for folder in (Path(__file__).parent, Path(__file__).parents[1] / "models"):
    sys.path.append(str(folder))
