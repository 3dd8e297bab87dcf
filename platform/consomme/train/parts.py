"""What a recipe says of the parts of a model, and the table of what came of it.

One decision is made here: a part is frozen, trained in full, or trained through adapters. There is
no torch here, so recipes are read quickly.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from consomme.base.bounds import NonNegativeFloat, PositiveInt
from consomme.base.checked import Checked

State = Literal["frozen", "lora", "dora", "full"]

VISION_ENCODER, PROJECTOR = "vision_encoder", "projector"
LANGUAGE_MODEL, EMBEDDINGS, HEAD = "language_model", "embeddings", "head"


@dataclass(frozen=True, kw_only=True)
class Part(Checked):
    """How one part of a model is trained."""

    state: State = "frozen"
    """`full` moves the weights themselves; `lora` and `dora` move adapters beside each linear map,
    which are added to the weights at the end."""

    lr: NonNegativeFloat | None = None
    """Peak learning rate of this part; None takes the run's."""

    weight_decay: NonNegativeFloat | None = None
    """Decay of this part's matrices; None takes the run's."""

    rank: PositiveInt = 16
    """Of the adapters; arXiv 2412.12785 trains with 128."""

    alpha: PositiveInt = 32
    """Adapters are added times alpha / rank."""

    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Share of an adapter's inputs that is left out at each step."""

    @property
    def has_adapters(self) -> bool:
        """Whether adapters are trained instead of the weights."""
        return self.state in ("lora", "dora")


FROZEN = Part()
FULL = Part(state="full")


@dataclass(frozen=True, kw_only=True)
class Trainability:
    """The states of all parts."""

    vision_encoder: Part = FROZEN
    projector: Part = FULL
    language_model: Part = FULL
    """Of the selected layers; the others are frozen."""

    embeddings: Part | None = None
    """None: full if the language model is trained in full in all its layers, else frozen."""

    head: Part | None = None
    """Final norm and output matrix; None as for the embeddings."""

    def resolved(self, *, is_whole: bool) -> dict[str, Part]:
        """Return each part's state by its name.

        Args:
            is_whole: Whether all layers are selected.
        """
        rest = FROZEN
        if is_whole and self.language_model.state == "full":
            rest = self.language_model
        return {
            VISION_ENCODER: self.vision_encoder,
            PROJECTOR: self.projector,
            LANGUAGE_MODEL: self.language_model,
            EMBEDDINGS: self.embeddings or rest,
            HEAD: self.head or rest,
        }


@dataclass(frozen=True, kw_only=True)
class TrainableRow:
    """One line of the table: a part, or one layer of the language model."""

    part: str
    layer: int | None = None
    """0-based; None for a part without layers."""

    state: State
    num_tensors: int
    """Tensors that receive updates."""

    num_trained: int
    """Parameters that receive updates; those of adapters, where there are adapters."""

    num_parameters: int
    """Parameters of the part in the model as it is saved."""

    lr: float | None
    """Peak learning rate; None if nothing is trained."""

    @property
    def label(self) -> str:
        """What a table says."""
        return self.part.replace("_", " ") if self.layer is None else f"layer {self.layer}"


@dataclass(frozen=True, kw_only=True)
class ParamGroup:
    """Parameters that move at one pace."""

    names: tuple[str, ...]
    """As in the model with its adapters; wrapping a model may replace the parameters themselves."""

    lr: float
    """At its peak."""

    weight_decay: float


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model with its parameters marked, and what was decided."""

    rows: tuple[TrainableRow, ...]
    groups: tuple[ParamGroup, ...]
    lowest_layer: int | None
    """First layer that has to be gone through backwards, None if the projector or the vision
    encoder is trained, or the embeddings, which stand before all layers."""

    adapters: tuple[str, ...] = ()
    """Parts with adapters."""

    @property
    def num_trained(self) -> int:
        """Trained parameters of the whole model."""
        return sum(row.num_trained for row in self.rows)

    @property
    def num_parameters(self) -> int:
        """All parameters of the model."""
        return sum(row.num_parameters for row in self.rows)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Parts of a model that are trained alike, on one line."""

    part: str
    """Such as `layers 0, 4, 8`."""

    state: State
    num_tensors: int
    num_trained: int
    num_parameters: int
    lr: float | None


def summarise(rows: Iterable[TrainableRow]) -> list[Summary]:
    """Put layers that are trained alike on one line."""
    lines: dict[tuple[str, State, float | None], list[TrainableRow]] = {}
    for row in rows:
        lines.setdefault((row.part, row.state, row.lr), []).append(row)
    found = []
    for (part, state, lr), some in lines.items():
        layers = [row.layer for row in some if row.layer is not None]
        label = f"layers {_ranges(layers)}" if layers else part.replace("_", " ")
        found.append(
            Summary(
                part=label,
                state=state,
                num_tensors=sum(row.num_tensors for row in some),
                num_trained=sum(row.num_trained for row in some),
                num_parameters=sum(row.num_parameters for row in some),
                lr=lr,
            )
        )
    return found


def _ranges(numbers: Sequence[int]) -> str:
    """Write ascending numbers shortly: 0-3, 7, 9-11."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{one[0]}-{one[-1]}" if len(one) > 1 else str(one[0]) for one in parts)
