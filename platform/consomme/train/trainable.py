"""Freeze what a recipe freezes, and say what is left.

One decision is made here: a part is `full` or `frozen`, and a run that would train nothing stops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from consomme.base.errors import RecipeError
from consomme.models.anatomy import anatomy


@dataclass(frozen=True, kw_only=True)
class TrainableTable:
    """Parameters per part, trained and in all."""

    rows: tuple[tuple[str, int, int], ...]
    """(part, trained parameters, all parameters)."""

    @property
    def num_trainable(self) -> int:
        """Trained parameters of the whole model."""
        return sum(trained for _, trained, _ in self.rows)

    @property
    def num_parameters(self) -> int:
        """All parameters of the model."""
        return sum(every for _, _, every in self.rows)


def set_trainable(
    model: Any, *, layers: Sequence[int], vision_encoder: str, projector: str
) -> TrainableTable:
    """Mark every parameter as trained or frozen.

    Embeddings, final norm and head are trained only when all layers are.

    Args:
        model: A VLM.
        layers: 0-based indices of the language model's layers to train.
        vision_encoder: `full` or `frozen`.
        projector: `full` or `frozen`.

    Raises:
        RecipeError: Nothing would be trained, or a layer does not exist.
    """
    parts = anatomy(model)
    num_layers = len(parts.layers)
    strangers = [index for index in layers if not 0 <= index < num_layers]
    if strangers:
        raise RecipeError(
            f"layers: {strangers} do not exist; the language model has layers 0 to {num_layers - 1}"
        )
    chosen = set(layers)
    whole = len(chosen) == num_layers
    rows = [
        ("vision encoder", *_mark(parts.vision_encoder, vision_encoder == "full")),
        ("projector", *_mark(parts.projector, projector == "full")),
    ]
    for index, layer in enumerate(parts.layers):
        rows.append((f"layer {index}", *_mark(layer, index in chosen)))
    for _, parameter in parts.rest:
        parameter.requires_grad_(whole)
    every = sum(parameter.numel() for _, parameter in parts.rest)
    rows.append(("embeddings, norm and head", every if whole else 0, every))
    table = TrainableTable(rows=tuple(rows))
    if table.num_trainable == 0:
        raise RecipeError(
            "nothing would be trained: vision_encoder and projector are frozen and no layer is"
            " selected; select layers or set projector=full"
        )
    return table


def _mark(part: nn.Module, trained: bool) -> tuple[int, int]:
    every = sum(parameter.numel() for parameter in part.parameters())
    for parameter in part.parameters():
        parameter.requires_grad_(trained)
    return (every if trained else 0), every


def freeze_unused(model: nn.Module, loss_of: Callable[[nn.Module], Tensor]) -> tuple[str, ...]:
    """Freeze trained parameters that the loss does not reach, such as a norm behind the last use.

    Data-parallel training waits for every gradient it was promised, so a parameter without one
    would stop it.

    Args:
        model: With its parameters marked as trained or frozen.
        loss_of: Computes the loss of any sample that uses the picture.

    Returns:
        Names of the parameters that were frozen here.
    """
    loss_of(model).backward()  # type: ignore[no-untyped-call]
    unused = tuple(
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    )
    for name, parameter in model.named_parameters():
        parameter.grad = None
        if name in unused:
            parameter.requires_grad_(False)
    return unused
