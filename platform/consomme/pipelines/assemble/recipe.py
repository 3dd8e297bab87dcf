"""The recipe of `assemble`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from consomme.assemble.choices import LanguageShape, VisionShape
from consomme.base.bounds import Fraction, PositiveInt
from consomme.base.checked import Checked, rule
from consomme.base.schema import located, runtime, strategy
from consomme.storage.options import StorageOptions

_OF_PARTS = (
    "vision_encoder", "vision_shape", "ocr_encoder", "language_model", "language_shape",
    "tokenizer", "connector", "fusion", "vision_layer", "tiling", "split",
)  # fmt: skip
"""Fields that decide how parts are put together."""

_UNCHANGED = ({"name": "mlp"}, {"name": "autoregressive"})
"""Defaults of strategies, as a recipe has them that was read from a file."""


@dataclass(frozen=True, kw_only=True)
class AssembleRecipe(Checked):
    """The parts of a VLM, and how they are put together."""

    name: str
    """Name of the run."""

    root: str = runtime("runs")
    """Where run folders are created: a local path or a URL."""

    storage: StorageOptions = runtime(StorageOptions())
    """How patient the run is with its storage."""

    model: str | None = located(None)
    """A VLM that stays as it is, except that its encoder takes squares of `image_px`: positions are
    interpolated. For stages of growing resolution; no parts are named then."""

    vision_encoder: str | None = located(None)
    """A CLIP, SigLIP or SigLIP 2 (of native resolution too), or a VLM whose encoder it is: a
    folder, a run, a URL, or a model of the hub. None: random weights of `vision_shape`."""

    vision_shape: VisionShape | None = None
    """Sizes of an encoder with random weights."""

    ocr_encoder: str | None = located(None)
    """A second encoder of the same shape, such as one trained to read; the features of both are
    averaged before the connector. None: there is none."""

    general_weight: Fraction = 0.5
    """Share of the first encoder in the average; 1 leaves the second one out of it.

    Source: POINTS (arXiv 2409.04828), f = w · f_general + (1 - w) · f_ocr."""

    language_model: str | None = located(None)
    """A causal language model with its tokenizer, or a VLM whose language model it is, named as
    `vision_encoder`. None: random weights of `language_shape`."""

    language_shape: LanguageShape | None = None
    """Sizes of a language model with random weights."""

    tokenizer: str | None = located(None)
    """The model whose tokenizer a language model with random weights gets."""

    connector: dict[str, Any] = strategy(
        "consomme.assemble.choices:CONNECTORS", default={"name": "mlp"}
    )
    """What turns the encoder's features into image tokens; see consomme/assemble/choices.py."""

    fusion: dict[str, Any] = strategy(
        "consomme.assemble.choices:FUSIONS", default={"name": "autoregressive"}
    )
    """How the language model sees them; see consomme/assemble/choices.py."""

    vision_layer: Literal[-1, -2] = -1
    """Layer of the encoder whose features are used; LLaVA and POINTS use the penultimate one."""

    tiling: dict[str, Any] | None = strategy(
        "consomme.vision.tiling.registry:TILINGS", default=None
    )
    """How images are cut into squares of the encoder, see consomme/vision/tiling; its `tile_px` is
    the encoder's side. None: the whole image is squashed to a square, or what `split` says."""

    image_px: PositiveInt | None = None
    """Longest side of an image, where its shape is kept (Idefics2) or where it is cut into a grid
    of tiles by `split`. None: that of the encoder, or twice it with `split`. With `model`: the new
    side of the encoder's squares."""

    split: bool = False
    """Cut images into tiles that are encoded too, as the class of transformers does it: into a grid
    with `mlp` (LLaVA-OneVision), `linear` and `pixel_shuffle` (Idefics3), into four quarters with
    `perceiver` (Idefics2); and the whole."""

    pad_tokens_to: PositiveInt = 64
    """The number of rows of tokens is rounded up to a multiple of this."""

    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of all weights; None: that of the language model."""

    seed: int = 0
    """Of everything that is random."""

    @rule
    def _model_stays(self) -> Iterator[str]:
        if self.model is None:
            return
        if self.image_px is None:
            yield "image_px: found none with model, expected the new side of its squares"
        for name in _OF_PARTS:
            default = type(self).__dataclass_fields__[name].default
            if (found := getattr(self, name)) != default and found not in _UNCHANGED:
                yield f"{name}: found {found} with model, which stays as it is but for image_px"

    @rule
    def _has_parts(self) -> Iterator[str]:
        if self.model is not None:
            return
        for name, shape in (
            ("vision_encoder", self.vision_shape),
            ("language_model", self.language_shape),
        ):
            given = getattr(self, name)
            other = name.partition("_")[0] + "_shape"
            if (given is None) == (shape is None):
                found = "both" if given else "neither"
                yield f"{name}: found {found} of {name} and {other}, expected one of them"

    @rule
    def _random_language_has_tokens(self) -> Iterator[str]:
        if (self.language_shape is None) != (self.tokenizer is None):
            yield (
                "tokenizer: expected a model's name together with language_shape, and none without"
                " it: a language model that is opened has its own"
            )

    @rule
    def _cut_one_way(self) -> Iterator[str]:
        if self.split and self.tiling is not None:
            yield "split, tiling: found both, expected one: split is the own way of a class"

    @rule
    def _tiles_have_a_connector(self) -> Iterator[str]:
        if self.split and self.connector["name"] == "average":
            yield (
                f"split: no class of transformers with the connector {self.connector['name']} has"
                " tiles of its own; use tiling={name: split, …}"
            )
