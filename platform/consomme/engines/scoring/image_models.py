"""Run dual encoders (CLIP, SigLIP) and image classifiers: embeddings, and probabilities of labels.

A batch must not change what an image or a text gets. Families differ in how they pad texts and in
what they return, so each model is compared with its own plain forward pass when it is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from consomme.base.errors import CheckpointError
from consomme.engines.scoring.requests import NotScored
from consomme.models import selfcheck
from consomme.models.image_models import labels_of, open_dual_encoder, open_image_classifier

_T = TypeVar("_T")

# Shapes: N images or texts, W width of the embeddings, A labels.

_PADS_TO_LIMIT = ("siglip", "siglip2")
"""Families that were trained on texts padded to their limit, and attend to the padding."""

_IMAGES_PER_BATCH = {"cuda": 256, "cpu": 16}
_TEXTS_PER_BATCH = {"cuda": 512, "cpu": 32}

_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Of a cosine or a probability."""


class _ImageModel:
    """A model on this process's device."""

    def __init__(
        self, opener: Callable[[str, torch.dtype], tuple[Any, Any]], folder: str, dtype: str
    ) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if dtype == "auto":
            dtype = "bfloat16" if self.device.type == "cuda" else "float32"
        self.dtype: torch.dtype = getattr(torch, dtype)
        with selfcheck.family_faults(f"cannot open the model at {folder}"):
            self.model, self.processor = opener(folder, self.dtype)
            self.model.to(self.device)
        self.folder = folder

    def on_device(self, inputs: Any) -> dict[str, Tensor]:
        return {
            name: value.to(self.device, self.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }

    def run_images(
        self, images: Sequence[Image.Image], run: Callable[[dict[str, Tensor]], Tensor]
    ) -> list[NDArray[np.float64] | NotScored]:
        """Run the model on batches of images that its processor takes."""
        results: dict[int, NDArray[np.float64] | NotScored] = {}
        # Processors that crop nothing give inputs of many shapes; a batch has one.
        waiting: dict[tuple[Any, ...], dict[int, dict[str, Tensor]]] = {}
        for index, image in enumerate(images):
            try:
                inputs = self.prepare([image])
            except MemoryError:
                raise
            # Processors raise many types on images of shapes that they do not take.
            except Exception as error:  # noqa: BLE001
                detail = f"{image.width} x {image.height} pixels: {error}"
                results[index] = NotScored(reason="image_not_encodable", detail=detail)
                continue
            shape = tuple(sorted((name, value.shape) for name, value in inputs.items()))
            batch = waiting.setdefault(shape, {})
            batch[index] = inputs
            if len(batch) == _IMAGES_PER_BATCH[self.device.type]:
                results |= self._run_batch(waiting.pop(shape), run)
        for batch in waiting.values():
            results |= self._run_batch(batch, run)
        return [results[index] for index in range(len(images))]

    def _run_batch(
        self, batch: Mapping[int, dict[str, Tensor]], run: Callable[[dict[str, Tensor]], Tensor]
    ) -> dict[int, NDArray[np.float64]]:
        first, *_ = batch.values()
        inputs = {name: torch.cat([one[name] for one in batch.values()]) for name in first}
        with torch.inference_mode():
            rows = _on_cpu(run(self.on_device(inputs)))
        return dict(zip(batch, rows, strict=True))

    def prepare(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Return the inputs of some images."""
        processor = getattr(self.processor, "image_processor", self.processor)
        found: dict[str, Tensor] = dict(processor(images=list(images), return_tensors="pt"))
        return found


class ImageTextEmbedder(_ImageModel):
    """Embeds images and texts in one space."""

    def __init__(self, folder: str, dtype: str = "auto") -> None:
        """Open a dual encoder.

        Args:
            folder: Of the model.
            dtype: Of the weights: `float32`, `bfloat16`, `float16`, or `auto`, which is bfloat16 on
                a GPU.

        Raises:
            CheckpointError: It is another kind of model, or its batches have other numbers than its
                forward pass.
        """
        super().__init__(open_dual_encoder, folder, dtype)
        self.kind = self.model.config.model_type
        self.tokenizer = self.processor.tokenizer
        self.max_tokens = self._max_tokens()
        with selfcheck.family_faults(f"cannot embed with this {self.kind} model"):
            self._check()

    def embed_images(self, images: Sequence[Image.Image]) -> list[NDArray[np.float64] | NotScored]:
        """Return for each image a vector (W,) of norm 1, or why there is none."""
        return self.run_images(
            images, lambda inputs: _pooled(self.model.get_image_features(**inputs))
        )

    def embed_texts(self, texts: Sequence[str]) -> list[tuple[NDArray[np.float64], bool]]:
        """Return for each text a vector (W,) of norm 1, and whether its end was cut off."""
        found = []
        for batch in _batches(texts, _TEXTS_PER_BATCH[self.device.type]):
            lengths = [len(ids) for ids in self.tokenizer(list(batch), verbose=False)["input_ids"]]
            with torch.inference_mode():
                inputs = self.on_device(self.encode(batch))
                rows = _on_cpu(_pooled(self.model.get_text_features(**inputs)))
            found += [(row, n > self.max_tokens) for row, n in zip(rows, lengths, strict=True)]
        return found

    def encode(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return the inputs of some texts."""
        return dict(
            self.processor(
                text=list(texts),
                padding="max_length" if self.kind in _PADS_TO_LIMIT else True,
                truncation=True,
                max_length=self.max_tokens,
                return_tensors="pt",
            )
        )

    def _max_tokens(self) -> int:
        text = self.model.config.text_config
        positions = int(text.max_position_embeddings)
        if self.kind == "altclip":
            # Positions are counted from the token of padding on, as in RoBERTa.
            positions -= int(text.pad_token_id) + 1
        return min(positions, int(self.tokenizer.model_max_length))

    def _check(self) -> None:
        """Compare batches with the model's own forward pass of one image and one text."""
        rng = np.random.default_rng(0)
        images = [
            Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
            for width, height in ((96, 64), (50, 150))
        ]
        texts = ["a photo of a cat", "two"]
        got = [row for row in self.embed_images(images) if not isinstance(row, NotScored)]
        if len(got) < len(images):
            raise CheckpointError(f"{self.folder}: its processor takes no image of 96 x 64 pixels")
        for index, (image, text) in enumerate(zip(images, texts, strict=True)):
            with torch.inference_mode():
                output = self.model(**self.on_device(self.prepare([image]) | self.encode([text])))
            plain = [_on_cpu(e)[0] for e in (output.image_embeds, output.text_embeds)]
            ours = got[index], self.embed_texts(texts)[index][0]
            for what, one, other in zip(("image", "text"), ours, plain, strict=True):
                apart = float(np.abs(one - other).max())
                if not apart < _TOLERANCE[self.dtype]:
                    raise CheckpointError(
                        f"{self.folder}: the embedding of a {what} in a batch is {apart:.2g} from"
                        f" that of the plain forward pass of this {self.kind} model, so its"
                        " similarities would be wrong; choose another model"
                    )


class LabelClassifier(_ImageModel):
    """Gives probabilities of labels for images."""

    def __init__(self, folder: str, dtype: str = "auto") -> None:
        """Open an image classifier; arguments and errors as of `ImageTextEmbedder`."""
        super().__init__(open_image_classifier, folder, dtype)
        self.labels = labels_of(self.model)
        self.is_multi_label = self.model.config.problem_type == "multi_label_classification"

    def probs(self, images: Sequence[Image.Image]) -> list[NDArray[np.float64] | NotScored]:
        """Return for each image the probabilities (A,) of the labels, or why there are none."""
        return self.run_images(images, self._probs)

    def _probs(self, inputs: dict[str, Tensor]) -> Tensor:
        logits_NA: Tensor = self.model(**inputs).logits.double()
        return logits_NA.sigmoid() if self.is_multi_label else logits_NA.softmax(dim=-1)


def _pooled(output: Any) -> Tensor:
    """Return embeddings (N, W) of norm 1."""
    values_NW: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    scaled_NW: Tensor = torch.nn.functional.normalize(values_NW.double(), dim=-1)
    return scaled_NW


def _on_cpu(values: Tensor) -> NDArray[np.float64]:
    found: NDArray[np.float64] = values.double().cpu().numpy()
    return found


def _batches(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
