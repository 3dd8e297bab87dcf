"""How a recipe trains the parts of a model, and the table of what is trained.

A part is frozen, trained in full, or trained through adapters. This module imports no torch, so
recipes load quickly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Interval

from consomme.base.bounds import NonNegativeFloat, PositiveInt
from consomme.base.checked import Checked

State = Literal["frozen", "lora", "dora", "full"]

VISION_ENCODER, PROJECTOR = "vision_encoder", "projector"
LANGUAGE_MODEL, EMBEDDINGS, HEAD = "language_model", "embeddings", "head"

NAMEABLE_PARTS = (
    VISION_ENCODER, PROJECTOR, EMBEDDINGS, HEAD, "audio_encoder", "video_encoder", "other",
)  # fmt: skip
"""Parts that a recipe may assign modules to; the language model's layers are never named."""


@dataclass(frozen=True, kw_only=True)
class Part(Checked):
    """How one part of a model is trained."""

    state: State = "frozen"
    """`full` trains the weights themselves; `lora` and `dora` train adapters on each linear layer,
    which are merged into the weights at the end."""

    lr: NonNegativeFloat | None = None
    """Peak learning rate of this part; None uses the run's."""

    weight_decay: NonNegativeFloat | None = None
    """Weight decay of this part's matrices; None uses the run's."""

    rank: PositiveInt = 16
    """Rank of the adapters; arXiv 2412.12785 trains with 128."""

    alpha: PositiveInt = 32
    """The output of an adapter is scaled by alpha / rank."""

    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Dropout on the inputs of an adapter."""

    @property
    def has_adapters(self) -> bool:
        """Whether adapters are trained instead of the weights."""
        return self.state in ("lora", "dora")


FROZEN = Part()
FULL = Part(state="full")


@dataclass(frozen=True, kw_only=True)
class Trainability:
    """How all parts are trained."""

    vision_encoder: Part = FROZEN
    projector: Part = FULL
    language_model: Part = FULL
    """How the selected layers are trained; the other layers are frozen."""

    embeddings: Part | None = None
    """None: in full if the language model is trained in full in all its layers, else frozen."""

    head: Part | None = None
    """Final norm and output matrix; None as for the embeddings."""

    modules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Modules that are assigned to a part by name, where the model does not show which is which."""

    def resolved(self, *, is_whole: bool) -> dict[str, Part]:
        """Return how each part is trained, by its name.

        Args:
            is_whole: Whether all layers are selected.
        """
        default = FROZEN
        if is_whole and self.language_model.state == "full":
            default = self.language_model
        return {
            VISION_ENCODER: self.vision_encoder,
            PROJECTOR: self.projector,
            LANGUAGE_MODEL: self.language_model,
            EMBEDDINGS: self.embeddings or default,
            HEAD: self.head or default,
        }


@dataclass(frozen=True, kw_only=True)
class TrainableRow:
    """One row of the table: a part, or one layer of the language model."""

    part: str
    layer: int | None = None
    """0-based; None for a part without layers."""

    state: State
    num_tensors: int
    """Tensors that receive updates."""

    num_trained: int
    """Parameters that receive updates: weights, or those of the adapters."""

    num_parameters: int
    """Parameters of the part in the model as it is saved."""

    lr: float | None
    """Peak learning rate; None if nothing is trained."""

    num_without_adapters: int = 0
    """Parameters of matrices that adapters cannot be added to, such as those of experts; 0 for a
    part without adapters."""

    @property
    def label(self) -> str:
        """Label in a table."""
        return self.part.replace("_", " ") if self.layer is None else f"layer {self.layer}"


@dataclass(frozen=True, kw_only=True)
class ParamGroup:
    """Parameters with the same learning rate and weight decay."""

    names: tuple[str, ...]
    """By names, as in the model with its adapters: wrapping a model may replace the parameters."""

    lr: float
    """Peak learning rate."""

    weight_decay: float


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What is trained of a model whose parameters are marked."""

    rows: tuple[TrainableRow, ...]
    groups: tuple[ParamGroup, ...]
    lowest_layer: int | None
    """Lowest layer that gradients pass through; None if gradients go further, to the projector, the
    vision encoder or the embeddings."""

    adapters: tuple[str, ...] = ()
    """Parts with adapters."""

    @property
    def num_trained(self) -> int:
        """Trained parameters of the model."""
        return sum(row.num_trained for row in self.rows)

    @property
    def num_parameters(self) -> int:
        """All parameters of the model."""
        return sum(row.num_parameters for row in self.rows)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Parts or layers of a model that are trained the same way, as one row."""

    part: str
    """Such as `layers 0, 4, 8`."""

    state: State
    num_tensors: int
    num_trained: int
    num_parameters: int
    lr: float | None
    num_without_adapters: int = 0


def summarise(rows: Iterable[TrainableRow]) -> list[Summary]:
    """Merge the rows of layers that are trained the same way."""
    lines: dict[tuple[str, State, float | None], list[TrainableRow]] = {}
    for row in rows:
        lines.setdefault((row.part, row.state, row.lr), []).append(row)
    summaries = []
    for (part, state, lr), group in lines.items():
        layers = [row.layer for row in group if row.layer is not None]
        label = f"layers {_ranges(layers)}" if layers else part.replace("_", " ")
        summaries.append(
            Summary(
                part=label,
                state=state,
                num_tensors=sum(row.num_tensors for row in group),
                num_trained=sum(row.num_trained for row in group),
                num_parameters=sum(row.num_parameters for row in group),
                lr=lr,
                num_without_adapters=sum(row.num_without_adapters for row in group),
            )
        )
    return summaries


def _ranges(numbers: Sequence[int]) -> str:
    """Write ascending numbers as ranges: 0-3, 7, 9-11."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{one[0]}-{one[-1]}" if len(one) > 1 else str(one[0]) for one in parts)
