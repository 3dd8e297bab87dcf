"""Prepare a process, and every process it starts, for importing vLLM.

Where torchvision's compiled operators do not load, each child process gets the same patch as its
parent (see `consomme.models.media_packages`), through a generated `sitecustomize` folder at the
head of `PYTHONPATH`. vLLM starts children of its own (model inspection, engine core, workers), in
which no other code of ours runs before torchvision is imported. Where the operators load, nothing
is set.
"""

import hashlib
import os
import uuid
from pathlib import Path

from consomme.base.places import cache_folder
from consomme.models.media_packages import (
    MISSING_SCHEMAS,
    hidden_packages,
    operators_missing,
    patch_media_packages,
)
from consomme.storage.stores.hub_client import OFFLINE_VARIABLE, is_offline

_SITECUSTOMIZE = '''\
"""Generated: patches imports of media packages with a CPU build of torch in child processes."""
import importlib
import sys
from pathlib import Path

SCHEMAS = {schemas!r}
HIDDEN = {hidden!r}
HERE = str(Path(__file__).parent)


class DeclareOperators:
    """Declares torchvision's missing operators when it is first imported, then removes itself."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "torchvision" and cls in sys.meta_path:
            sys.meta_path.remove(cls)
            import torch

            for operator, schema in SCHEMAS.items():
                if not hasattr(torch.ops.torchvision, operator):
                    torch.library.define("torchvision::" + operator, schema)
        return None


if SCHEMAS:
    sys.meta_path.insert(0, DeclareOperators)
for hidden in HIDDEN:
    sys.modules.setdefault(hidden, None)

# Another sitecustomize further down the path must still run.
sys.path[:] = [entry for entry in sys.path if entry != HERE]
ours = sys.modules.pop("sitecustomize", None)
try:
    importlib.import_module("sitecustomize")
except ModuleNotFoundError as error:
    if error.name != "sitecustomize":
        raise
if ours is not None:
    # The import that runs this file expects to find the module afterwards.
    sys.modules.setdefault("sitecustomize", ours)
'''


def sitecustomize_folder() -> Path:
    """Write the generated `sitecustomize` and return its folder; the same text has one folder.

    The folder is one of our own (`consomme.base.places`): whoever could write it could run code in
    every child of this process.
    """
    text = _SITECUSTOMIZE.format(
        schemas=MISSING_SCHEMAS if operators_missing("torchvision") else {},
        hidden=list(hidden_packages()),
    )
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    folder = cache_folder("sitecustomize", digest)
    target = folder / "sitecustomize.py"
    if target.is_symlink() or not target.is_file() or target.read_text() != text:
        temporary = folder / f".{uuid.uuid4().hex}.tmp"
        temporary.write_text(text)
        temporary.replace(target)
    return folder


def prepare_environment() -> bool:
    """Make vLLM importable here and in the children of this process; call before importing it.

    Safe to repeat. It also points Hugging Face libraries at local files only and switches vLLM's
    usage reports off, because an engine inside an actor has no business on the network.

    Returns:
        Whether the patch was needed.
    """
    # What the user says of the hub still holds for consomme itself, which brings the models.
    os.environ.setdefault(OFFLINE_VARIABLE, "1" if is_offline() else "0")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    if not patch_media_packages():
        return False
    folder = str(sitecustomize_folder())
    entries = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if folder not in entries:
        os.environ["PYTHONPATH"] = os.pathsep.join([folder, *entries])
    return True
