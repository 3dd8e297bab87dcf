"""Save and open model folders: safetensors only, names that both transformers and vLLM load.

A folder is written beside its final name and renamed when complete, so a folder that exists is
complete.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from consomme.base.errors import CheckpointError
from consomme.models.checkpoint_keys import rewrite_for_vllm, vllm_key
from consomme.models.imports import import_transformers


def save_vlm(folder: str | Path, model: Any, processor: Any) -> Path:
    """Write model, processor and tokenizer as one Hugging Face folder.

    Args:
        folder: Destination; an older folder there is replaced.
        model: A transformers model; its weights keep their dtype.
        processor: Its processor, chat template included.
    """
    folder = Path(folder)
    building = folder.with_name(f".{folder.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    model.save_pretrained(building)
    processor.save_pretrained(building)
    rewrite_for_vllm(building)
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)
    return folder


def open_vlm(folder: str | Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Open a VLM folder.

    Returns:
        (model in eval mode with weights of `dtype`, processor with a Pillow image processor).

    Raises:
        CheckpointError: The folder is missing or is no checkpoint that transformers can load.
    """
    with _checkpoint_errors(folder) as path:
        return _load_vlm(path, dtype)


def open_model(folder: str | Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Open the folder of a VLM, or of a language model without a vision encoder.

    Returns:
        (model in eval mode, processor); for a language model, its tokenizer as the processor.

    Raises:
        CheckpointError: The folder is missing or is no checkpoint that transformers can load.
    """
    hf = import_transformers()
    with _checkpoint_errors(folder) as path:
        config = hf.AutoConfig.from_pretrained(path, local_files_only=True)
        if type(config) in hf.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            return _load_vlm(path, dtype)
        model = hf.AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, local_files_only=True, use_safetensors=True
        )
        model.eval()
        return model, hf.AutoTokenizer.from_pretrained(path, local_files_only=True)


def open_processor(folder: str | Path) -> tuple[Any, Any]:
    """Open the config and the processor of a model folder, without its weights.

    Returns:
        (config, processor); for a language model, its tokenizer as the processor.

    Raises:
        CheckpointError: The folder is missing or is no checkpoint that transformers can load.
    """
    hf = import_transformers()
    with _checkpoint_errors(folder) as path:
        config = hf.AutoConfig.from_pretrained(path, local_files_only=True)
        if type(config) in hf.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            return config, _load_processor(path)
        return config, hf.AutoTokenizer.from_pretrained(path, local_files_only=True)


def build_from_config(folder: str | Path) -> Any:
    """Build the model that a folder's config describes, float32, with initialised weights.

    Only config.json is read. Under `torch.device("meta")` or fake tensors, a model of any size is
    built in a second and takes no memory.

    Raises:
        CheckpointError: The folder is missing or is no checkpoint that transformers can load.
    """
    hf = import_transformers()
    with _checkpoint_errors(folder) as path:
        config = hf.AutoConfig.from_pretrained(path, local_files_only=True)
        is_vlm = type(config) in hf.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        family = hf.AutoModelForImageTextToText if is_vlm else hf.AutoModelForCausalLM
        return family.from_config(config, dtype=torch.float32)


def _load_vlm(path: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    hf = import_transformers()
    model = hf.AutoModelForImageTextToText.from_pretrained(
        path, dtype=dtype, local_files_only=True, use_safetensors=True
    )
    model.eval()
    return model, _load_processor(path)


def _load_processor(path: Path) -> Any:
    hf = import_transformers()
    try:
        return hf.AutoProcessor.from_pretrained(path, local_files_only=True, backend="pil")
    except ImportError:
        # Families with a video processor: it has no Pillow backend, and we never use it.
        processor = hf.AutoProcessor.from_pretrained(path, local_files_only=True)
        processor.image_processor = hf.AutoImageProcessor.from_pretrained(
            path, local_files_only=True, backend="pil"
        )
        return processor


@contextlib.contextmanager
def _checkpoint_errors(folder: str | Path) -> Iterator[Path]:
    path = Path(folder)
    if not (path / "config.json").exists():
        raise CheckpointError(
            f"no checkpoint at {path}: expected a Hugging Face folder with config.json and"
            " *.safetensors; give the path of a finished train or soup run's model folder"
        )
    try:
        yield path
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"cannot load the checkpoint at {path}: {error}") from error


def load_tensors(model: Any, weights: Mapping[str, Tensor]) -> None:
    """Copy stored tensors into an open model of the same architecture, in place.

    Args:
        model: Returned by `open_vlm`.
        weights: By their names in a folder's safetensors files; cast to the model's dtype.

    Raises:
        CheckpointError: A tensor is missing or has another shape.
    """
    stored = {stored_key(name): parameter for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for name, parameter in stored.items():
            if name not in weights:
                raise CheckpointError(f"tensor {name} is missing from the weights to load")
            if weights[name].shape != parameter.shape:
                raise CheckpointError(
                    f"tensor {name} has shape {tuple(weights[name].shape)}, the model has"
                    f" {tuple(parameter.shape)}: not the same architecture"
                )
            parameter.copy_(weights[name])


def stored_key(name: str) -> str:
    """Return the name of an open LLaVA's parameter in its safetensors file."""
    if name.startswith("model.language_model."):
        return "language_model.model." + name.removeprefix("model.language_model.")
    if name.startswith("lm_head."):
        return "language_model." + name
    return vllm_key(name.removeprefix("model."))
