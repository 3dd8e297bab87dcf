"""Makes transformers importable and puts this folder's tiny model builder on the path."""

import sys
from pathlib import Path

from consomme.models.torchvision_shim import allow_torchvision

allow_torchvision()
sys.path.insert(0, str(Path(__file__).parent))
