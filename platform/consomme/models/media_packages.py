"""Make torchvision importable and hide torchaudio and torchcodec where they do not load.

There is no CPU build of them for the pinned torch on the package index, vLLM's CPU build requires
all three, and `transformers` imports them wherever they are installed: unprepared, its processors
stop with "operator torchvision::nms does not exist".

- torchvision stays importable: the operator schemas it refers to while being imported are declared.
  No operator is implemented, so calling `nms` still fails; nothing here does.
- torchaudio and torchcodec are marked absent in this process; `transformers` and vLLM accept that.

Nothing is patched where the compiled operators load. `engines.vllm_environment` does the same for
the child processes of vLLM.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from functools import cache
from pathlib import Path

MISSING_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
"""Operators for which torchvision 0.28 registers fake kernels at import, with their schemas."""

OPERATOR_LIBRARIES = {
    "torchvision": "_C*.so",
    "torchaudio": "lib/_torchaudio*.so",
    "torchcodec": "libtorchcodec_image*.so",
}
"""Package -> where its compiled operators lie, relative to the package folder."""

LOCK = threading.RLock()
"""Two threads may open their first models at the same time; an operator is declared once."""


def patch_media_packages() -> bool:
    """Make torchvision importable and hide torchaudio and torchcodec where their operators fail.

    Safe to repeat. Does nothing where the packages work or are not installed.

    Returns:
        Whether anything had to be patched.
    """
    with LOCK:
        for package in hidden_packages():
            sys.modules.setdefault(package, None)  # type: ignore[arg-type]
            # transformers caches which packages there are; others may have imported it before.
            utils = sys.modules.get("transformers.utils.import_utils")
            is_available = getattr(utils, f"is_{package}_available", None)
            if is_available is not None:
                is_available.cache_clear()
        if not operators_missing("torchvision"):
            return bool(hidden_packages())
        import torch

        for name, schema in MISSING_SCHEMAS.items():
            if not hasattr(torch.ops.torchvision, name):
                torch.library.define(f"torchvision::{name}", schema)
        return True


@cache
def operators_missing(package: str) -> bool:
    """Return whether `package` is installed while its compiled operators do not load here.

    Loads the library as the package itself would, so a working installation is left as it is.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return False
    libraries = sorted(Path(spec.origin).parent.glob(OPERATOR_LIBRARIES[package]))
    if not libraries:
        return False
    import torch

    try:
        torch.ops.load_library(str(libraries[0]))  # type: ignore[no-untyped-call]
    except (ImportError, OSError):
        return True
    return False


@cache
def hidden_packages() -> tuple[str, ...]:
    """Return the installed packages that must look absent, because importing them would raise."""
    return tuple(
        package
        for package in OPERATOR_LIBRARIES
        if package != "torchvision" and operators_missing(package)
    )
