"""Measures of how much layers of a language model matter; what scores lowest is removed.

A measure scores runs of neighbouring layers: of one layer, or of as many as are removed together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from consomme.base.checked import Checked
from consomme.base.registry import Registry
from consomme.base.schema import located


@dataclass(frozen=True, kw_only=True)
class ImportanceInputs:
    """What layers are measured with."""

    folder: str
    """Of the model, on this machine."""

    model: Any
    """The open model, in eval mode."""

    batches: Callable[[], Iterable[Mapping[str, Any]]]
    """Returns the inputs of the calibration samples, one each, the same ones every time."""

    image_token_id: int | None
    """Placeholder of image positions; None if the model takes no images."""

    base: str | None = None
    """Folder on this machine of the model that `model` was tuned from, where a measure compares."""


class LayerImportance(ABC):
    """Interface of every registered measure."""

    compares: ClassVar[bool] = False
    """Whether it compares stored weights with those of a base, and needs no samples."""

    @abstractmethod
    def score_runs(self, inputs: ImportanceInputs, kept: Sequence[int], size: int) -> list[float]:
        """Return the score of each run of `size` of the kept layers, by its first."""


LAYER_IMPORTANCES: Registry[LayerImportance] = Registry(
    "layer importance", "consomme/prune/importance.py"
)


@LAYER_IMPORTANCES.register("angular_distance")
@dataclass(frozen=True, kw_only=True)
class AngularDistance(LayerImportance):
    """Angle between the hidden states of the last token before and after the layers.

    Source: Gromov et al., arXiv 2403.17887; as a share of pi.
    """

    def score_runs(self, inputs: ImportanceInputs, kept: Sequence[int], size: int) -> list[float]:
        """Return the angles."""
        from consomme.prune.observing import angular_distances

        return angular_distances(inputs.model, inputs.batches(), kept, size)


@LAYER_IMPORTANCES.register("block_influence")
@dataclass(frozen=True, kw_only=True)
class BlockInfluence(LayerImportance):
    """1 - cosine of the hidden states before and after the layers, averaged over tokens.

    Source: ShortGPT, arXiv 2403.03853.
    """

    def score_runs(self, inputs: ImportanceInputs, kept: Sequence[int], size: int) -> list[float]:
        """Return the influences."""
        from consomme.prune.observing import block_influences

        token = inputs.image_token_id
        return block_influences(inputs.model, inputs.batches(), kept, size, token)


@LAYER_IMPORTANCES.register("multimodal_block_influence")
@dataclass(frozen=True, kw_only=True)
class MultimodalBlockInfluence(LayerImportance):
    """Block Influence in which image tokens and text tokens weigh one half each.

    Source: arXiv 2412.12785.
    """

    def score_runs(self, inputs: ImportanceInputs, kept: Sequence[int], size: int) -> list[float]:
        """Return the influences."""
        from consomme.prune.observing import block_influences

        token = inputs.image_token_id
        return block_influences(inputs.model, inputs.batches(), kept, size, token, halves=True)


@LAYER_IMPORTANCES.register("image_attention")
@dataclass(frozen=True, kw_only=True)
class ImageAttention(LayerImportance):
    """Share of attention that text tokens give to images before them, summed over the layers.

    Families that do not return attention weights for every layer are refused. Source: arXiv
    2412.12785.
    """

    def score_runs(self, inputs: ImportanceInputs, kept: Sequence[int], size: int) -> list[float]:
        """Return the sums of shares."""
        from consomme.prune.observing import image_attention_shares

        token = inputs.image_token_id
        shares = image_attention_shares(inputs.model, inputs.batches(), kept, token)
        return sums_of_runs(shares, size)


@LAYER_IMPORTANCES.register("parameter_change")
@dataclass(frozen=True, kw_only=True)
class ParameterChange(Checked, LayerImportance):
    """How much training changed the matrices of the layers, relative to the base's norms.

    Source: arXiv 2412.12785; layers that training hardly changed score lowest.
    """

    compares: ClassVar[bool] = True

    base: str = located()
    """The model that training started from: as `model` of the recipe. A language model may stand
    for the VLM that was made of it."""

    def score_runs(self, inputs: ImportanceInputs, kept: Sequence[int], size: int) -> list[float]:
        """Return the sums of changes."""
        from consomme.prune.comparing import stored_changes
        from consomme.train.layer_scores import parameter_change

        assert inputs.base is not None
        changes = stored_changes(inputs.base, inputs.folder, parameter_change)
        return sums_of_runs([changes[index] for index in kept], size)


@LAYER_IMPORTANCES.register("parameter_angle")
@dataclass(frozen=True, kw_only=True)
class ParameterAngle(Checked, LayerImportance):
    """Angle between the matrices of the layers and the base's, as a share of pi, summed.

    Source: arXiv 2412.12785, which calls it angular distance.
    """

    compares: ClassVar[bool] = True

    base: str = located()
    """As for `parameter_change`."""

    def score_runs(self, inputs: ImportanceInputs, kept: Sequence[int], size: int) -> list[float]:
        """Return the sums of angles."""
        from consomme.prune.comparing import stored_changes
        from consomme.train.layer_scores import parameter_angle

        assert inputs.base is not None
        angles = stored_changes(inputs.base, inputs.folder, parameter_angle)
        return sums_of_runs([angles[index] for index in kept], size)


def sums_of_runs(values: Sequence[float], size: int) -> list[float]:
    """Return the sum of each run of neighbouring values."""
    return [sum(values[k : k + size]) for k in range(len(values) - size + 1)]
