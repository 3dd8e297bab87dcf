"""Save and open model folders: safetensors only, names that both transformers and vLLM load.

A folder is written beside its final name and renamed when complete, so a folder that exists is
complete.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from consomme.base.errors import CheckpointError
from consomme.models.checkpoint_keys import rewrite_for_vllm
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
    except ImportError as error:
        raise CheckpointError(
            f"cannot load the checkpoint at {path}: its family needs a package that is not"
            f" installed: {error}"
        ) from error
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"cannot load the checkpoint at {path}: {error}") from error


def load_tensors(model: Any, weights: Mapping[str, Tensor]) -> None:
    """Copy stored tensors into an open model of the same architecture, in place.

    transformers itself loads them into a model of its own, whose tensors are then copied. So names,
    layouts and tied weights are what opening a folder of these tensors makes of them.

    Args:
        model: Returned by `open_model`.
        weights: By their names in a folder's safetensors files; cast to the model's dtype.

    Raises:
        CheckpointError: A tensor is missing or has another shape; no weight was changed.
    """
    try:
        loaded, info = type(model).from_pretrained(
            None,
            config=model.config,
            state_dict=dict(weights),
            dtype=model.dtype,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"cannot load the weights into the model: {error}") from error
    for name, found, expected in sorted(info["mismatched_keys"]):
        raise CheckpointError(
            f"tensor {name} has shape {tuple(found)}, the model has {tuple(expected)}: not the same"
            " architecture"
        )
    for name in sorted(info["missing_keys"]):
        raise CheckpointError(f"tensor {name} is missing from the weights to load")
    stored = loaded.state_dict(keep_vars=True)
    ours = model.state_dict(keep_vars=True)
    _check_tied(ours, stored)
    with torch.no_grad():
        for name, tensor in ours.items():
            tensor.copy_(stored[name])


def _check_tied(ours: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    """Check that tensors which the model shares are equal in the weights to load."""
    first_of: dict[int, str] = {}
    for name, tensor in ours.items():
        first = first_of.setdefault(id(tensor), name)
        if stored[name] is not stored[first] and not torch.equal(stored[name], stored[first]):
            raise CheckpointError(
                f"tensors {first} and {name} differ in the weights to load, the model has one"
                " tensor for both: not the same architecture"
            )


def open_keys(model: Any, names: Iterable[str]) -> dict[str, str]:
    """Return the names of an open model's parameters by the names of stored tensors.

    Args:
        model: Returned by `open_model`.
        names: In a folder's safetensors files, of any version of the format; or in the open model.

    Returns:
        Only names that are one parameter; a tensor that transformers merges with others is not.
    """
    import_transformers()
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    parameters = dict(model.named_parameters())
    steps = get_model_conversion_mapping(model)
    renamings = [step for step in steps if isinstance(step, WeightRenaming)]
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    found = {}
    for name in names:
        renamed, merged_by = name, None
        if name not in parameters:
            renamed, merged_by = rename_source_key(
                name, renamings, converters, model.base_model_prefix, parameters
            )
        if merged_by is None and renamed in parameters:
            found[name] = renamed
    return found
