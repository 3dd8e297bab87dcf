"""Open image models that are no VLM: dual encoders, image classifiers and object detectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from consomme.base.errors import CheckpointError
from consomme.models.imports import import_transformers
from consomme.models.weights import checkpoint_errors

DUAL_ENCODERS = (
    "align", "altclip", "chinese_clip", "clip", "metaclip_2", "siglip", "siglip2",
)  # fmt: skip
"""Families whose images and texts have embeddings of one space, each by itself."""


def open_dual_encoder(folder: str | Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Open a model that embeds images and texts in one space, as CLIP and SigLIP do.

    Returns:
        (model in eval mode, processor with a Pillow image processor).

    Raises:
        CheckpointError: It is another kind of model, or a tensor is missing.
    """
    hf = import_transformers()
    with checkpoint_errors(folder) as path:
        check_dual_encoder(path)
        model = _open(hf.AutoModel, path, dtype)
        processor = hf.AutoProcessor.from_pretrained(path, local_files_only=True, backend="pil")
        return model, processor


def check_dual_encoder(folder: str | Path) -> None:
    """Check that a folder is that of a dual encoder, by its config alone.

    Raises:
        CheckpointError: It is another kind of model.
    """
    hf = import_transformers()
    with checkpoint_errors(folder) as path:
        kind = hf.AutoConfig.from_pretrained(path, local_files_only=True).model_type
        if kind not in DUAL_ENCODERS:
            raise CheckpointError(
                f"found a {kind} model at {path}, expected one that embeds images and texts in one"
                f" space: {', '.join(DUAL_ENCODERS)}"
            )


def open_image_classifier(folder: str | Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Open a model that gives probabilities of labels for an image.

    Returns:
        (model in eval mode, Pillow image processor).

    Raises:
        CheckpointError: It is another kind of model, it has a single output, whose meaning nobody
            has written down, or a tensor is missing: a backbone without its head, for example.
    """
    hf = import_transformers()
    with checkpoint_errors(folder) as path:
        config = hf.AutoConfig.from_pretrained(path, local_files_only=True)
        if type(config) not in hf.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
            raise CheckpointError(
                f"found a {config.model_type} model at {path}, expected an image classifier"
                " (AutoModelForImageClassification)"
            )
        if config.num_labels < 2 or config.problem_type == "regression":
            raise CheckpointError(
                f"found a model with {config.num_labels} outputs and problem_type"
                f" {config.problem_type} at {path}; expected a classifier with two labels or more,"
                " whose outputs are probabilities"
            )
        model = _open(hf.AutoModelForImageClassification, path, dtype)
        processor = hf.AutoImageProcessor.from_pretrained(
            path, local_files_only=True, backend="pil"
        )
        return model, processor


def open_object_detector(folder: str | Path, dtype: torch.dtype) -> tuple[Any, Any, bool]:
    """Open a model that finds boxes of objects in an image.

    Returns:
        (model in eval mode, processor, whether it is asked in words). Without words, the processor
        is an image processor, and the model has labels of its own.

    Raises:
        CheckpointError: It is another kind of model, or a tensor is missing.
    """
    hf = import_transformers()
    with checkpoint_errors(folder) as path:
        config = hf.AutoConfig.from_pretrained(path, local_files_only=True)
        if type(config) in hf.MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING:
            model = _open(hf.AutoModelForZeroShotObjectDetection, path, dtype)
            processor = hf.AutoProcessor.from_pretrained(path, local_files_only=True, backend="pil")
            return model, processor, True
        if type(config) not in hf.MODEL_FOR_OBJECT_DETECTION_MAPPING:
            raise CheckpointError(
                f"found a {config.model_type} model at {path}, expected an object detector"
                " (AutoModelForObjectDetection or AutoModelForZeroShotObjectDetection)"
            )
        model = _open(hf.AutoModelForObjectDetection, path, dtype)
        processor = hf.AutoImageProcessor.from_pretrained(
            path, local_files_only=True, backend="pil"
        )
        return model, processor, False


def labels_of(model: Any) -> tuple[str, ...]:
    """Return the labels of an image classifier, in the order of its outputs."""
    names = model.config.id2label
    return tuple(str(names[index]) for index in range(model.config.num_labels))


def _open(family: Any, path: Path, dtype: torch.dtype) -> Any:
    model, info = family.from_pretrained(
        path, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    missing: Sequence[str] = sorted(info["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{path}: tensor {missing[0]} is missing ({len(missing)} in all), so what"
            f" {type(model).__name__} answers would be random; expected the weights of that whole"
            " model"
        )
    return model.eval()
