"""Training mode for what is trained, eval mode for what is frozen.

A frozen module computes in training what it computes when the exported model is used: no dropout,
no moving statistics. Statistics of norms never move, not even in trained parts: a checkpoint and an
export hold what the optimizer changes, and each rank would have others.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from consomme.models.module_use import names_used


def set_modes(model: nn.Module) -> None:
    """Set training mode, and eval mode for frozen modules and for norms that keep statistics.

    A module is frozen if it has parameters and none of them is trained. Layers with activation
    checkpointing keep their own flag, because a layer in eval mode saves its activations instead;
    what is in them is in eval mode. A norm with statistics that is trained learns its scale and
    shift, and normalises by the statistics that the model came with.

    Args:
        model: Its parameters are marked as trained or frozen; it may be wrapped by a parallelism.
    """
    model.train()
    _freeze_modes(model)
    for module in model.modules():
        if isinstance(module, _NormBase) and module.track_running_stats:
            module.eval()


def _freeze_modes(module: nn.Module) -> None:
    parameters = list(module.parameters())
    if not parameters:
        return
    if any(parameter.requires_grad for parameter in parameters):
        for child in module.children():
            _freeze_modes(child)
        return
    module.eval()
    for part in module.modules():
        if _recomputes(part):
            part.training = True


def _recomputes(module: Any) -> bool:
    """Return whether a layer recomputes its activations, and its mode means nothing else to it."""
    return (
        getattr(module, "gradient_checkpointing", False)
        and hasattr(module, "_gradient_checkpointing_func")
        and "training" not in names_used(type(module), "forward")
    )
