"""Lets media packages built for CUDA sit beside a CPU build of torch without stopping any import.

The one decision: what to do about torchvision, torchaudio and torchcodec when their compiled
operators do not load. There is no CPU build of them for the pinned torch on the package index,
vLLM's CPU build requires all three, and `transformers` imports them wherever they are installed:
without this file its first import stops with "operator torchvision::nms does not exist".

- torchvision stays importable: the operator schemas it refers to while being imported are declared.
  No operator is implemented, so calling `nms` still fails; nothing here does.
- torchaudio and torchcodec are marked absent in this process; `transformers` and vLLM accept that.

Nothing is touched where the compiled operators load. This file sits in `models`, the lowest layer
that imports `transformers`; `engines.torchvision_shim` adds what vLLM's child processes need.
"""

import importlib.util
import sys
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


@cache
def operators_missing(package: str) -> bool:
    """Say whether `package` is installed while its compiled operators do not load here.

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
    """Return the installed packages that must look absent, since importing them would raise."""
    return tuple(
        package
        for package in OPERATOR_LIBRARIES
        if package != "torchvision" and operators_missing(package)
    )


def allow_torchvision() -> bool:
    """Make `import transformers` and `import vllm` possible in this process; call it before them.

    Safe to repeat, and does nothing where both packages work or are absent.

    Returns:
        Whether anything had to be mended.
    """
    for package in hidden_packages():
        sys.modules.setdefault(package, None)  # type: ignore[arg-type]
    if not operators_missing("torchvision"):
        return bool(hidden_packages())
    import torch

    for name, schema in MISSING_SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", schema)
    return True
